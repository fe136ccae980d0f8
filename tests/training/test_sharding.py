"""Parameters on a mesh of devices, most of it in a process that has eight."""

from types import SimpleNamespace
from typing import Any

import pytest

from snipjax.training import sharding
from tests.training import eight_devices


def test_on_eight_devices() -> None:
    eight_devices.check("eight_devices_sharding.py")


def test_a_mesh_must_divide_batches() -> None:
    mesh: Any = SimpleNamespace(size=8)
    sharding.check_divides(mesh, 104, "train.batch_size")
    with pytest.raises(ValueError, match=r"train\.batch_size is 100.*e\.g\. 104"):
        sharding.check_divides(mesh, 100, "train.batch_size")
