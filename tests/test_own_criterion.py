"""Every criterion, one's own too, runs by its name wherever the networks are."""

from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, build, experiment, pruning
from snipjax.training import rundir
from tests import conftest, runs

pytestmark = pytest.mark.usefixtures("compile_once")


def gradient_norm(
    loss_fn: Any, params: chex.ArrayTree, batch: Any, *, key: Any = None
) -> chex.ArrayTree:
    """Scores a connection by the size of its loss's gradient."""
    del key
    return jax.tree.map(jnp.abs, jax.grad(loss_fn)(params, batch))


def own(**fields: Any) -> ConfigDict:
    """Three rounds of scores of two batches, and no step."""
    config = runs.quick(steps=0, num_batches=2, rounds=3, **fields)
    config.prune.method = f"{__name__}:gradient_norm"
    config.prune.batch_size = config.train.batch_size = 104
    return config


def expected_mask(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
    """The mask by the core's functions alone, all batches at once in each round."""
    setup = assembly.assemble(config)
    key = assembly.make_keys(seed).scored_init
    params = setup.init(key, "fan_in")["params"]
    images, labels = assembly.saliency_batch(setup, seed)
    images, labels = images.reshape(-1, *images.shape[2:]), labels.ravel()
    if setup.stream is not None:
        images = setup.task.preprocess(images)

    def loss_fn(params: chex.ArrayTree, images: chex.Array) -> chex.Array:
        logits = setup.task.model.apply({"params": params}, images)
        losses = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -jnp.mean(losses)

    _, mask = pruning.score_and_mask(
        loss_fn,
        params,
        images,
        config.prune.sparsity,
        criterion=gradient_norm,
        prunable=lambda path, leaf: True,
        rounds=build.rounds(config),
    )
    return runs.named(mask)


def check(config: ConfigDict, workdir: Path) -> None:
    result = experiment.run(config, workdir)
    assert result["method"] == "tests.test_own_criterion:gradient_norm"
    for network in result["networks"]:
        assert network["kept"] == round(0.1 * result["prunable"])
    seed = config.seeds - 1
    with np.load(workdir / f"seed-{seed}" / rundir.MASK) as mask:
        for name, keep in expected_mask(config, seed).items():
            # Sums may be rounded otherwise, and swap those at the threshold.
            assert (mask[name] != keep).sum() <= 4, name


def test_runs_by_name_with_seeds_at_once(tmp_path: Path) -> None:
    check(own(seeds=4), tmp_path)


class Small(nn.Module):
    """A network with batch norm, of 618 parameters on the digits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Dense(8, use_bias=False)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x)


def by_outputs(
    loss_fn: Any,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: Any = None,
    apply_fn: Any,
    inputs: Any,
    init_fn: Any,
) -> chex.ArrayTree:
    """Scores a weight by itself and what it does to the outputs of other samples."""
    fresh = init_fn(key)
    gradient = jax.grad(lambda params: jnp.sum(apply_fn(params, inputs) ** 2))(fresh)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradient)


EVERY = [*build.CRITERIA, f"{__name__}:by_outputs"]


def small(method: str, **fields: Any) -> assembly.Setup:
    """The parts of an experiment on the small network."""
    rounds = 2 if method in build.ROUNDS else 0
    config = runs.quick(steps=0, rounds=rounds, **fields)
    config.prune.method, config.model.name = method, f"{__name__}:Small"
    config.prune.batch_size = config.train.batch_size = 104
    return assembly.assemble(config)


def mask_of(setup: assembly.Setup, seeds: range) -> dict[str, np.ndarray]:
    """The masks of networks at once; in memory, along the leading axis of a leaf."""
    score, _, batch = assembly.algorithm(setup)
    _, mask = setup.placement(seeds).score(score, batch)
    return runs.named(mask)


def check_count(masks: list[np.ndarray]) -> None:
    prunable = [keep for keep in masks if keep.ndim]
    total = sum(keep.size for keep in prunable)
    assert sum(keep.sum() for keep in prunable) == round(0.1 * total) > 0


@pytest.mark.parametrize("method", EVERY)
def test_every_criterion_has_the_mask_of_a_seed_side_by_side(method: str) -> None:
    setup = small(method)
    together, alone = mask_of(setup, range(2)), mask_of(setup, range(1, 2))
    check_count([keep[0] for keep in alone.values()])
    for name, keep in alone.items():
        assert (keep[0] != together[name][1]).sum() <= 2, name


def check_on_a_mesh(*methods: str) -> None:
    for method in methods:
        one, eight = (
            mask_of(small(method, mesh=mesh), range(1))
            for mesh in ("data=1", "data=4,model=2")
        )
        check_count([*eight.values()])
        for name, keep in one.items():
            assert (keep != eight[name]).sum() <= 2, (method, name)


def test_every_criterion_has_the_mask_of_one_device_on_a_mesh_of_eight() -> None:
    conftest.on_eight_devices(
        "from tests.test_own_criterion import EVERY, check_on_a_mesh\n"
        "check_on_a_mesh(*EVERY)"
    )
