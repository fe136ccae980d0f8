"""Parameters on a mesh of devices, most of it in a process that has eight."""

import pytest

from snipjax.training import sharding
from tests.training import eight_devices


def test_on_eight_devices() -> None:
    eight_devices.check("eight_devices_sharding.py")


def test_a_mesh_of_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="asks for 10000 devices, but there are"):
        sharding.make_mesh({"data": 10_000})


def test_a_mesh_must_divide_batches() -> None:
    class Mesh:
        size = 8

    sharding.check_divides(Mesh, 104, "train.batch_size")
    with pytest.raises(ValueError, match=r"train\.batch_size is 100.*e\.g\. 104"):
        sharding.check_divides(Mesh, 100, "train.batch_size")
