"""Runs with a moving mask: files, resuming, seeds side by side and a mesh."""

import functools
import inspect
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, build, combinations, masks, optim
from snipjax import config as configs
from snipjax._src import imports
from snipjax.training import rundir
from tests.runs import Finished, finished_run, interrupted, named, quick
from tests.training import eight_devices

pytestmark = pytest.mark.usefixtures("compile_once")


def moving(name: str = "rigl", **fields: Any) -> ConfigDict:
    """Forty steps with a move after every four, until step 28."""
    config = quick(**{"every": 4, "stop": 0.7, "steps_per_dispatch": 10, **fields})
    config.optimizer.sparse.name = name
    return config


@pytest.fixture(scope="module")
def rigl(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(moving(), tmp_path_factory.mktemp("runs") / "rigl")


class TestRigl:
    def test_the_mask_that_is_written_is_the_last(self, rigl: Finished) -> None:
        first, last = rigl.arrays(rundir.FIRST_MASK), rigl.mask()
        moved = sum(int((first[name] != last[name]).sum()) for name in first)
        assert moved > 500
        for name, keep in first.items():
            assert keep.sum() == last[name].sum()
        state = rigl.last_state().opt_state
        assert int(state.step[0]) == 40
        for name, keep in named(state.mask).items():
            np.testing.assert_array_equal(keep[0], last[name])
        assert rigl.network["kept"] == 5061
        for name, param in rigl.params().items():
            assert not param[~last[name]].any()

    def test_the_best_is_after_the_last_move(self, rigl: Finished) -> None:
        rows = [row for row in rigl.metrics if row["step"] > 28]
        best = min(reversed(rows), key=lambda row: row["val_error"][0])
        assert rigl.network["best_step"] == best["step"]

    def test_it_goes_on_across_a_move_bit_for_bit(
        self, rigl: Finished, tmp_path: Path
    ) -> None:
        workdir = interrupted(rigl.workdir, tmp_path / "run", step=20)
        (workdir / "seed-0" / rundir.MASK).unlink()
        again = finished_run(rigl.config, workdir)
        assert again.digests == rigl.digests
        assert again.metrics == rigl.metrics
        for name, keep in again.mask().items():
            np.testing.assert_array_equal(keep, rigl.mask()[name])

    @pytest.mark.slow
    def test_seeds_side_by_side_are_those_of_single_runs(
        self, rigl: Finished, tmp_path: Path
    ) -> None:
        both = finished_run(moving(seeds=2), tmp_path)
        for name, keep in both.mask(0).items():
            assert (keep != rigl.mask()[name]).mean() < 0.01  # rounding
        assert both.network["kept"] == 5061
        masks = [both.mask(seed)["Dense_0/kernel"] for seed in (0, 1)]
        assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param("set", 5061, marks=pytest.mark.slow),
        pytest.param("sparse_momentum", 5061, marks=pytest.mark.slow),
        pytest.param("gradual_magnitude", 2530, marks=pytest.mark.slow),
        pytest.param("straight_through", 2530, marks=pytest.mark.slow),
    ],
)
def test_the_others_keep_as_many_as_they_should(
    name: str, kept: int, tmp_path: Path
) -> None:
    config = moving(name)
    if kept == 2530:
        config.optimizer.sparse.sparsity = 0.95
    if "layerwise" in combinations.MOVES[name]:
        config.optimizer.sparse.layerwise = False
    run = finished_run(config, tmp_path)
    assert run.network["kept"] == pytest.approx(kept, abs=1)
    assert run.network["kept"] == sum(int(x.sum()) for x in run.mask().values())
    first = run.arrays(rundir.FIRST_MASK)
    assert sum(int(x.sum()) for x in first.values()) == 5061
    for param_name, param in run.params().items():
        assert not param[~run.mask()[param_name]].any()
    assert run.metrics[-1]["train_loss"][0] < run.metrics[0]["train_loss"][0]


@pytest.mark.slow
def test_on_eight_devices() -> None:
    eight_devices.check("eight_devices_moving.py")


def own(inner: Any, mask: Any, *, every: int, stop: int, key: Any) -> Any:
    """A choice that a user may name by its import path."""
    return optim.set(inner, mask, every=2 * every, stop=stop, key=key)


def test_straight_through_starts_from_dense_weights() -> None:
    setup = assembly.assemble(moving("straight_through"))
    init = setup.init(assembly.make_keys(0).fresh_init, "fan_in")["params"]
    mask = masks.global_topk(init, 0.9, masks.weights_and_biases)
    state = assembly.start(setup, 0, mask)
    chex.assert_trees_all_equal(state.opt_state.dense, init)
    chex.assert_trees_all_equal(state.params, masks.apply(mask, init))


class TestFields:
    def test_are_the_settings_of_the_functions(self) -> None:
        given = configs.default().optimizer.sparse
        assert list(combinations.MOVES) == list(build.SPARSE)
        for name, fields in combinations.MOVES.items():
            function = imports.load(build.SPARSE[name], "optimizer.sparse.name")
            settings = set(inspect.signature(function).parameters)
            assert set(fields) == settings & set(given)

    @pytest.mark.parametrize(
        ("name", "fields", "problem"),
        [
            ("static", {"every": 4, "stop": 0.75}, "every is 4.*does not take; leave"),
            ("rigl", {"sparsity": 0.5}, r"sparsity is 0\.5, which .*name=rigl does"),
            ("straight_through", {"fraction": 0.2}, "fraction is 0.2, which"),
            ("rigl", {"stop": 7.0}, "stop is 7; they are shares of the steps"),
            ("gradual_magnitude", {"start": 0.9}, r"start is 0\.9 and stop is 0\.7"),
            ("set", {"method": "none"}, "'none', but set needs pruned connections"),
            ("rigl", {"method": "lwc"}, "but 'lwc' trains by itself"),
            ("gradual_magnitude", {"sparsity": 0.5}, "sparsity is 0.5, but the mask"),
            ("rigl", {"every": 28}, "every is 28, but the mask stays from step 28"),
        ],
    )
    def test_that_do_not_go_together(
        self, name: str, fields: dict[str, Any], problem: str
    ) -> None:
        config = moving(name)
        for field, value in fields.items():
            is_method = field == "method"
            (config.prune if is_method else config.optimizer.sparse)[field] = value
        with pytest.raises(ValueError, match=problem):
            configs.validate(config)


def clipped(inner: Any, mask: Any, *, every: int, stop: int) -> Any:
    """A chain, whose state has no mask."""
    moves = optim.rigl(inner, mask, every=every, stop=stop)
    return optax.chain(optax.clip_by_global_norm(1.0), moves)


def test_an_optimizer_whose_state_has_no_mask() -> None:
    with pytest.raises(ValueError, match="clipped', whose state has no mask; let"):
        assembly.assemble(moving(f"{__name__}:clipped"))


def test_the_first_move_drops_the_share_of_the_method() -> None:
    for name, expected in (("rigl", 0.3), ("sparse_momentum", 0.5)):
        config = moving(name)
        make = functools.partial(build.sparse(config), build.optimizer(config))
        mask = {"w": np.arange(100) < 50}
        params = {"w": np.arange(100.0) * mask["w"]}
        optimizer = make(mask, jax.random.key(3))
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(config.optimizer.sparse.every + 1):
            _, state = update(params, state, params)
        share = optax.cosine_decay_schedule(expected, build.last_move(config))
        every = config.optimizer.sparse.every
        assert float(state.info.fraction) == pytest.approx(float(share(every)))


def test_an_optimizer_by_its_import_path() -> None:
    config = moving(f"{__name__}:own")
    configs.validate(config)
    assert build.last_move(config) == 28
    make = functools.partial(build.sparse(config), build.optimizer(config))
    state = make({"w": np.ones((2, 2), bool)}, jax.random.key(3)).init(
        {"w": np.ones((2, 2), np.float32)}
    )
    assert state.key == jax.random.key(3)
    with pytest.raises(ValueError, match=r"optimizer\.sparse\.name is 'math:pi'"):
        build.sparse(moving("math:pi"))
