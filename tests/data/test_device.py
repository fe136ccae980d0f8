"""Batches that are put on the device ahead of time, by a thread that ends."""

import gc
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from snipjax import data
from tests.data.builders import refused


def batches(total: int) -> Iterator[dict[str, np.ndarray]]:
    for i in range(total):
        yield {"x": np.full((8, 2), i, np.float32), "y": np.arange(8)}


@pytest.mark.parametrize("is_sharded", [False, True])
def test_has_the_same_batches_in_order(is_sharded: bool) -> None:
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.NamedSharding(mesh, jax.P("data")) if is_sharded else None
    with data.to_device(batches(5), sharding) as on_device:
        seen = list(on_device)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(seen))
    assert sharding in (None, seen[0]["x"].sharding)
    assert sharding in (None, seen[0]["y"].sharding)
    assert [int(batch["x"][0, 0]) for batch in seen] == list(range(5))
    np.testing.assert_array_equal(seen[4]["y"], np.arange(8))


def test_the_buffer_is_filled_ahead_and_no_more_is_taken() -> None:
    filled, taken, asked = threading.Event(), [], []

    def counting() -> Iterator[np.ndarray]:
        for i in range(50):
            taken.append((i, len(asked)))
            if i == 2:
                filled.set()
            yield np.zeros(2)

    with data.to_device(counting(), buffer=3) as on_device:
        filled.wait()  # forever, if nothing were taken before it is asked for
        for i in range(50):
            asked.append(i)
            next(on_device)
    assert len(taken) == 50
    assert all(index < before + 3 for index, before in taken)


def test_an_error_comes_after_the_batches_before_it() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield np.zeros(2)
        raise data.DatasetError("record 7 of shard 3 cannot be read")

    with data.to_device(failing()) as on_device:
        next(on_device)
        with refused("record 7 of shard 3"):
            next(on_device)
        assert list(on_device) == []


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_closing_it_ends_its_thread_and_the_batches(how: str) -> None:
    closed = threading.Event()

    def endless() -> Iterator[np.ndarray]:
        try:
            while True:
                yield np.zeros(2)
        finally:
            closed.set()

    on_device: Any = data.to_device(endless())
    next(on_device)
    if how == "with":
        with on_device:
            pass
    elif how == "close":
        on_device.close()
    else:
        del on_device
        gc.collect()
    assert closed.is_set()
    assert "snipjax-to-device" not in [thread.name for thread in threading.enumerate()]
    if how != "drop":
        assert list(on_device) == []
        on_device.close()


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer is 0"):
        data.to_device(iter([]), buffer=0)
