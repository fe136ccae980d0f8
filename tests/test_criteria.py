"""Fields of a configuration that say how connections are scored."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, build, masks, pruning, saliency, training
from snipjax import config as configs
from snipjax.training import side_by_side
from tests import runs

pytestmark = pytest.mark.usefixtures("compile_once")


def config_with(**fields: Any) -> ConfigDict:
    """A configuration of the digits; ``__`` stands for a dot."""
    config = runs.quick(steps=0)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


@functools.cache
def scored(**fields: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The scores and the mask of one network."""
    setup = assembly.assemble(config_with(**fields))
    scores, mask = assembly.score(setup, 0, assembly.saliency_batch(setup, 0))
    return runs.named(scores), runs.named(mask)


def test_a_method_has_its_own_number_of_rounds() -> None:
    numbers = {"snip": 1, "synflow": 100, "synflow_l2": 100, "force": 60, "ntk_sap": 20}
    for method, number in numbers.items():
        assert build.rounds(config_with(prune__method=method)) == number
        assert build.rounds(config_with(prune__method=method, prune__rounds=3)) == 3


def test_grasp_has_the_temperature_of_its_paper() -> None:
    assert build.temperature(config_with(prune__method="grasp")) == 200
    assert build.temperature(config_with(prune__temperature=2.0)) == 2
    assert build.temperature(config_with()) == 1


class Normalized(nn.Module):
    """Four layers with batch norm."""

    num_classes: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        x = x.reshape(len(x), -1)
        for _ in range(4):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x)


def distance(
    loss_fn: Any,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey,
    apply_fn: Any,
    inputs: chex.Array,
    normalized_by: Any,
) -> chex.ArrayTree:
    """Scores that are outputs' distances from those in training, in each leaf."""
    like = Normalized(10).init(jax.random.key(0), inputs, train=False)
    expected, _ = Normalized(10).apply(
        {**like, "params": params}, inputs, train=True, mutable=["batch_stats"]
    )
    far, near = (
        jnp.max(jnp.abs(network(params, inputs) - expected))
        for network in (apply_fn, normalized_by(params, inputs))
    )
    return jax.tree.map(lambda w: jnp.where(w.ndim == 2, near, far) + 0 * w, params)


def test_a_criterion_is_offered_the_network_with_given_statistics() -> None:
    scores, _ = scored(
        model__name="tests.test_criteria:Normalized",
        prune__method="tests.test_criteria:distance",
    )
    assert np.max(scores["Dense_0/kernel"]) < 1e-4
    assert np.min(scores["Dense_0/bias"]) > 1e-2


def test_settings_are_fields_in_the_section_of_the_criterion() -> None:
    config = config_with(
        prune__method="prospr", prospr__steps=4, prospr__learning_rate=0.1
    )
    config.prune.batch_size = 50
    configs.validate(config)
    criterion = build.criterion(config)
    loss_fn, params = lambda params, x: jnp.sum(params * x) ** 2, jnp.ones(3)
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    expected = functools.partial(saliency.prospr, steps=4, learning_rate=0.1)
    np.testing.assert_array_equal(
        *(
            jax.jit(functools.partial(function, loss_fn, key=None))(params, batch)
            for function in (criterion, expected)
        )
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"prune__method": "prospr", "prune__batch_size": 102},
            r"prune.batch_size is 102, .*prospr.steps \+ 1 = 4 equal parts",
        ),
        (
            {"prune__method": "prospr_first_order", "prune__num_batches": 6},
            "prune.num_batches is 6, .*a multiple of 4",
        ),
        ({"prune__method": "lwc", "prune__shuffle": True}, "prune.shuffle is for"),
        ({"prune__method": "dns", "prune__invert": True}, "prune.invert is for"),
        ({"prune__temperature": -1.0}, "prune.temperature is -1.0"),
        (
            {"prune__method": "prospr", "prune__per_class": 6},
            "prune.per_class is 6, .*a multiple of 4",
        ),
        ({"ntk_sap__num_samples": 0}, "ntk_sap.num_samples is 0"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        configs.validate(config_with(**fields))


def test_a_temperature_divides_the_logits_that_are_scored() -> None:
    setup = assembly.assemble(config_with(prune__temperature=200.0))
    variables = setup.init(assembly.make_keys(0).scored_init, "fan_in")
    batch = assembly.saliency_batch(setup, 0)
    logits = setup.task.model.apply(variables, batch.images)
    expected = training.cross_entropy(logits / 200, batch.labels)
    loss = assembly.scored_loss(setup, variables)(variables["params"], batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert abs(float(loss) - np.log(10)) < 0.01


def test_a_batch_may_have_as_many_examples_of_each_class() -> None:
    config = config_with(prune__per_class=4, prune__num_batches=3)
    setup = assembly.assemble(config)
    batch = assembly.saliency_batch(setup, 0)
    labels = np.reshape(batch.labels, (3, 40))
    for part in np.split(labels, 2, axis=1):  # of a criterion that divides it
        counts = [np.bincount(row, minlength=10).tolist() for row in part]
        assert counts == [[2] * 10] * 3
    images = np.reshape(batch.images, (3 * 40, -1))
    assert len(np.unique(images, axis=0)) == len(images)
    other = assembly.saliency_batch(setup, 1)
    assert np.any(np.asarray(other.images) != np.asarray(batch.images))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, r"per_class \* num_batches is 140, but there are only 1\d\d .* class \d"),
        ({"prune__batch_class": 2}, "leave one of the two at its default"),
    ],
)
def test_a_class_without_so_many_examples(fields: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        assembly.assemble(config_with(prune__per_class=140, **fields))


def test_inverted_scores_keep_what_would_go_first() -> None:
    (scores, _), (inverted, mask) = scored(), scored(prune__invert=True)
    for name, values in scores.items():
        np.testing.assert_array_equal(inverted[name], -values)
    kept = np.concatenate([scores[name][keep] for name, keep in mask.items()])
    gone = np.concatenate([scores[name][~keep] for name, keep in mask.items()])
    assert kept.max() <= gone.min()


def test_shuffling_keeps_the_counts_of_leaves() -> None:
    (_, plain), (_, shuffled) = scored(), scored(prune__shuffle=True)
    for name, keep in plain.items():
        assert shuffled[name].sum() == keep.sum()
        if keep.any() and not keep.all():
            assert (shuffled[name] != keep).any()


def test_force_lets_pruned_connections_return() -> None:
    config = config_with(prune__method="force", prune__sparsity=0.98, prune__rounds=5)
    setup = assembly.assemble(config)
    _, mask = assembly.score(setup, 0, assembly.saliency_batch(setup, 0))
    variables = setup.init(assembly.make_keys(0).scored_init, "fan_in")
    _, expected = pruning.score_and_mask(
        assembly.scored_loss(setup, variables),
        variables["params"],
        assembly.saliency_batch(setup, 0),
        0.98,
        prunable=masks.weights_and_biases,
        rounds=5,
        may_return=True,
    )
    chex.assert_trees_all_equal(mask, expected)


@pytest.mark.parametrize("is_batched", [False, True])
def test_rounds_and_seeds_share_their_programs(
    is_batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_batched:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compiled: list[str] = []
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name == event else None
    )

    def programs(seeds: int, rounds: int) -> int:
        def score(seed: chex.Array, x: chex.Array) -> Any:
            params = {"w": jax.random.normal(jax.random.key(seed), (20, 10))}
            return pruning.score_and_mask(
                lambda params, x: jnp.mean(jnp.tanh(x @ params["w"]) ** 2),
                params,
                x,
                0.9,
                rounds=rounds,
            )

        before = len(compiled)
        side_by_side.for_each_seed(
            range(seeds),
            score,
            lambda seed: jnp.full((4, 20), seed + 1.0),
            has_rounds=True,
        )
        return len(compiled) - before

    programs(2, 3)  # compiles the operations between the programs
    few = programs(2, 3)
    assert 0 < few <= 3
    assert programs(2, 12) <= few + 1
    if not is_batched:
        programs(5, 3)
        assert programs(5, 12) <= few + 1


@pytest.mark.slow
def test_rounds_of_seeds_have_the_masks_of_each_alone() -> None:
    together = functools.partial(config_with, prune__method="synflow", prune__rounds=5)
    setup = assembly.assemble(together(seeds=2))
    score, _, batch = assembly.algorithm(setup)
    _, both = setup.placement(range(2)).score(score, batch)
    for seed in range(2):
        _, alone = setup.placement(range(seed, seed + 1)).score(score, batch)
        for name, keep in runs.named(alone).items():
            assert (keep[0] != runs.named(both)[name][seed]).sum() <= 2
