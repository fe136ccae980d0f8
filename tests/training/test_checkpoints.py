"""What is restored is what was saved, bit by bit, whatever happened in between."""

from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax.training import checkpoints


class State(NamedTuple):
    step: chex.Array
    params: dict[str, chex.Array]
    empty: dict
    mask: chex.Array
    key: chex.PRNGKey


def state_of(seed: int) -> State:
    key = jax.random.key(seed)
    weights = jax.random.normal(key, (64, 32))
    return State(
        step=jnp.int32(seed),
        params={
            "w": weights.at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -0.0])),
            "half": weights.astype(jnp.bfloat16),
        },
        empty={},
        mask=weights > 0,
        key=key,
    )


def assert_same_bits(state: State, other: State) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def restore(directory: Path, like: State) -> tuple[State, dict]:
    with checkpoints.open_directory(directory) as manager:
        return checkpoints.restore_latest(manager, like)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert restore(tmp_path / "new", state_of(0)) is None


def test_the_last_is_restored_with_its_progress(tmp_path: Path) -> None:
    progress = {"best": {"step": 1, "loss": None}, "recent": [[2, 0.1, float("nan")]]}
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), {})
        checkpoints.save(manager, 2, state_of(2), progress)
    state, restored_progress = restore(tmp_path, jax.eval_shape(state_of, 0))
    assert_same_bits(state, state_of(2))
    assert str(restored_progress) == str(progress)


def test_a_saved_state_may_be_donated_at_once(tmp_path: Path) -> None:
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0
    )
    state = {"w": jnp.arange(2.0**20), "n": jnp.int32(1)}
    expected = np.arange(2.0**20, dtype=np.float32)
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 0, state, {})
        for _ in range(20):
            state = overwrite(state)
    restored, _ = restore(tmp_path, state)
    np.testing.assert_array_equal(restored["w"], expected)


def test_a_saved_progress_may_be_changed_at_once(tmp_path: Path) -> None:
    progress = {"best": {"step": 1}}
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), progress)
        progress["best"]["step"] = 2
    _, restored = restore(tmp_path, state_of(0))
    assert restored == {"best": {"step": 1}}


def test_two_are_kept(tmp_path: Path) -> None:
    with checkpoints.open_directory(tmp_path) as manager:
        for step in (10, 20, 30):
            checkpoints.save(manager, step, state_of(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "30"]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), {})
        checkpoints.wait(manager)
        checkpoints.save(manager, 1, state_of(2), {})
    assert_same_bits(restore(tmp_path, state_of(0))[0], state_of(1))


def test_what_an_interrupted_write_left_is_removed(tmp_path: Path) -> None:
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), {})
    left = tmp_path / "2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    (left / "state" / "half").write_bytes(b"\0" * 100)
    assert_same_bits(restore(tmp_path, state_of(0))[0], state_of(1))
    assert not left.exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_left(
    tmp_path: Path,
) -> None:
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), {})
        checkpoints.save(manager, 2, state_of(2), {})
    for path in (tmp_path / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint 2 in '.*' cannot be read"):
        restore(tmp_path, state_of(0))
    for path in sorted((tmp_path / "2").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "2").rmdir()
    assert_same_bits(restore(tmp_path, state_of(0))[0], state_of(1))


def test_a_failing_write_is_an_error_and_the_one_before_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(1), {})
        checkpoints.wait(manager)
        monkeypatch.setattr("os.rename", full_disk)
        monkeypatch.setattr("os.replace", full_disk)
        checkpoints.save(manager, 2, state_of(2), {})
        with pytest.raises(OSError, match=r"cannot be written in .*No space left"):
            checkpoints.wait(manager)
    monkeypatch.undo()
    assert_same_bits(restore(tmp_path, state_of(0))[0], state_of(1))
