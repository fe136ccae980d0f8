"""What is restored is what was saved, bit by bit, whatever happened in between."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

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
    weights = np.random.default_rng(seed).normal(size=(64, 32)).astype(np.float32)
    weights[0, :3] = np.nan, np.inf, -0.0
    return State(
        step=jnp.int32(seed),
        params={"w": jnp.asarray(weights), "half": jnp.asarray(weights, jnp.bfloat16)},
        empty={},
        mask=jnp.asarray(weights > 0),
        key=jax.random.key(seed),
    )


def save(directory: Path, *steps: int, **progress: Any) -> None:
    with checkpoints.open_directory(directory) as manager:
        for step in steps:
            checkpoints.save(manager, step, state_of(step), progress)


def restore(directory: Path, like: Any = None) -> tuple[State, dict]:
    with checkpoints.open_directory(directory) as manager:
        return checkpoints.restore_latest(manager, like or state_of(0))


def check_restored(directory: Path, step: int) -> None:
    state, expected = restore(directory)[0], state_of(step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected)):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_the_last_is_restored_with_its_progress_and_two_are_kept(
    tmp_path: Path,
) -> None:
    assert restore(tmp_path) is None
    progress = {"best": {"step": 1, "loss": None}, "recent": [[2, 0.1, float("nan")]]}
    save(tmp_path, 10, 20, 30, **progress)
    check_restored(tmp_path, 30)
    like = jax.eval_shape(lambda: state_of(0))
    assert str(restore(tmp_path, like)[1]) == str(progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "30"]


def test_a_saved_state_may_be_donated_and_progress_changed_at_once(
    tmp_path: Path,
) -> None:
    double = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0
    )
    state, progress = {"w": jnp.arange(2.0**20)}, {"best": {"step": 1}}
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 0, state, progress)
        progress["best"]["step"] = 2
        for _ in range(20):
            state = double(state)
    restored, progress = restore(tmp_path, state)
    np.testing.assert_array_equal(restored["w"], np.arange(2.0**20))
    assert progress == {"best": {"step": 1}}


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with checkpoints.open_directory(tmp_path) as manager:
        checkpoints.save(manager, 1, state_of(2), {})
    check_restored(tmp_path, 1)


def test_remains_of_an_interrupted_write_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    left = tmp_path / "2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    (left / "state" / "half").write_bytes(b"\0" * 100)
    check_restored(tmp_path, 1)
    assert not left.exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_left(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1, 2)
    for path in (tmp_path / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint 2 in '.*' cannot be read"):
        restore(tmp_path)
    shutil.rmtree(tmp_path / "2")
    check_restored(tmp_path, 1)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("_CHECKPOINT_METADATA", "[1]"),
        ("progress/metadata", '{"loss": "x"}'),
        ("progress/metadata", "x"),
        ("state/_METADATA", "{}"),
    ],
)
def test_a_file_of_other_contents_is_told_in_a_line(
    file: str, text: str, tmp_path: Path
) -> None:
    save(tmp_path, 1, loss=0.5)
    (tmp_path / "1" / file).write_text(text)
    with (
        pytest.raises(ValueError, match=r"cannot be read \(.+\); remove it") as raised,
        checkpoints.open_directory(tmp_path) as manager,
    ):
        checkpoints.restore_latest(manager, state_of(0), {"loss": float})
    assert len(str(raised.value).splitlines()) == 1


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
    check_restored(tmp_path, 1)
