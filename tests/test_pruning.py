"""Pruning in one call, against algorithm 1 written out in NumPy."""

import functools
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, pruning, saliency
from tests.conftest import (
    Network,
    batch_of,
    largest_by_sorting,
    nested_dict,
    stacked,
)

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")


def linear_regression(params: chex.ArrayTree, batch: Any) -> chex.Array:
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def regression_weights() -> dict[str, chex.Array]:
    w = np.random.default_rng(3).normal(size=(3, 2))
    return {"w": jnp.asarray(w, jnp.float32)}


def linear(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
    """A loss whose derivative in connection c_j is w_j * x_j."""
    return sum(
        jnp.sum(w * v) for w, v in zip(jax.tree.leaves(params), jax.tree.leaves(x))
    )


# The algorithm.


def masks_by_equations(
    w: np.ndarray,
    batches: list[Any],
    sparsity: float,
    rounds: int,
    allowed: np.ndarray,
    may_return: bool,
) -> list[np.ndarray]:
    """The masks of all rounds, by the derivative of linear_regression."""
    found = [allowed]
    for number in range(1, rounds + 1):
        gradients = [
            2 / b["y"].size * b["x"].T @ (b["x"] @ (w * found[-1]) - b["y"])
            for b in batches
        ]
        candidates = allowed if may_return else found[-1]
        scores = np.where(candidates, np.abs(w * np.mean(gradients, axis=0)), -np.inf)
        kept = round(w.size * (1 - sparsity) ** (number / rounds))
        found.append(largest_by_sorting([scores], kept)[0] & candidates)
    return found[1:]


@pytest.mark.parametrize(
    ("rounds", "may_return", "with_mask", "batch"),
    [
        (1, False, False, "one"),
        (1, False, True, "stacked"),
        (7, False, False, "one"),
        (3, False, True, "iterator"),
        (6, True, False, "one"),
        (6, True, True, "one"),
    ],
)
def test_masks_are_those_of_the_equations(
    rounds: int, may_return: bool, with_mask: bool, batch: str
) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 5)).astype(np.float32)
    batches = [
        {"x": rng.normal(size=(40, 12)), "y": rng.normal(size=(40, 5))}
        for _ in range(1 if batch == "one" else 2)
    ]
    batches = jax.tree.map(np.float32, batches)
    allowed = rng.random((12, 5)) < 0.7 if with_mask else np.ones((12, 5), bool)
    found = masks_by_equations(w, batches, 0.9, rounds, allowed, may_return)
    seen: list[Any] = []

    def remember(scores: Any, sparsity: float, prunable: Any) -> chex.ArrayTree:
        seen.append(masks.global_topk(scores, sparsity, prunable))
        return seen[-1]

    of_kind = {
        "one": batches[0],
        "stacked": stacked(batches),
        "iterator": iter(batches),
    }
    pruned, mask = pruning.prune(
        linear_regression,
        {"w": jnp.asarray(w)},
        of_kind[batch],
        0.9,
        rounds=rounds,
        select=remember,
        mask={"w": jnp.asarray(allowed)} if with_mask else None,
        may_return=may_return,
        num_batches=2 if batch == "stacked" else None,
    )
    for actual, expected in zip(seen, found, strict=True):
        np.testing.assert_array_equal(actual["w"] & allowed, expected)
    np.testing.assert_array_equal(mask["w"], found[-1])
    np.testing.assert_array_equal(pruned["w"], np.where(found[-1], w, 0))
    returned = [later & ~earlier for earlier, later in itertools.pairwise(found)]
    assert np.any(returned) == may_return


def test_every_kind_of_pytree(network: Network) -> None:
    loss_fn, params, batch = network
    prunable = masks.weights_and_biases
    scores, mask = pruning.score_and_mask(
        loss_fn, params, batch, 0.7, prunable=prunable
    )
    chex.assert_trees_all_equal_structs(params, scores, mask)
    expected = jax.jit(functools.partial(saliency.snip, loss_fn))(params, batch)
    chex.assert_trees_all_close(scores, expected, rtol=1e-5)
    chex.assert_trees_all_equal(mask, masks.global_topk(expected, 0.7, prunable))


def test_other_criteria() -> None:
    params = {"w": jnp.array([[1.0, -4.0], [3.0, 2.0]])}
    prune = functools.partial(pruning.prune, None, params, None, 0.5)
    _, mask = prune(criterion=saliency.magnitude)
    np.testing.assert_array_equal(mask["w"], [[False, True], [True, False]])
    _, mask = prune(criterion=saliency.random, key=jax.random.key(0))
    scores = saliency.random(None, params, None, key=jax.random.key(0))
    chex.assert_trees_all_equal(mask, masks.global_topk(scores, 0.5))


def test_a_selection_with_a_density_of_its_own_needs_no_sparsity() -> None:
    def above_the_mean(scores: Any, sparsity: Any, prunable: Any) -> chex.ArrayTree:
        assert sparsity is None
        return jax.tree.map(lambda s: s > s.mean(), scores)

    params, batch = regression_weights(), batch_of(7)
    scores, mask = pruning.score_and_mask(
        linear_regression, params, batch, select=above_the_mean
    )
    np.testing.assert_array_equal(mask["w"], scores["w"] > scores["w"].mean())


def test_predicates_see_the_parameters() -> None:
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "v": jnp.ones((2, 2))}
    is_half = lambda path, leaf: leaf.dtype == jnp.bfloat16  # noqa: E731
    _, mask = pruning.prune(linear, params, {"w": 1.0, "v": 1.0}, 0.5, prunable=is_half)
    assert [jnp.ndim(keep) for keep in (mask["v"], mask["w"])] == [0, 2]


def test_the_original_params_are_untouched_and_not_donated() -> None:
    params = jax.tree.map(jnp.bfloat16, regression_weights())
    before = np.array(params["w"])
    pruned, _ = pruning.prune(linear_regression, params, batch_of(7), 0.5, rounds=2)
    assert pruned["w"].dtype == jnp.bfloat16
    jax.jit(jnp.negative, donate_argnums=0)(pruned["w"])
    np.testing.assert_array_equal(params["w"], before)


# A criterion of one's own.


def gradient_magnitude(
    loss_fn: saliency.LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None = None,
    noise: float = 0.0,
) -> chex.ArrayTree:
    """|dL/dw|, with the noise of a key that must not matter if there is none."""
    gradient = jax.grad(loss_fn)(params, batch)
    if key is not None:
        gradient = jax.tree.map(
            lambda g: g + noise * jax.random.normal(key, g.shape), gradient
        )
    return jax.tree.map(jnp.abs, gradient)


def test_own_criterion_under_vmap_over_keys_and_networks() -> None:
    def mask_of(w: chex.Array, key: chex.PRNGKey) -> chex.Array:
        criterion = functools.partial(gradient_magnitude, noise=10.0)
        options = {"criterion": criterion, "num_batches": 2, "rounds": 3}
        batches = stacked([batch_of(7, s) for s in range(2)])
        return pruning.prune(
            linear_regression, {"w": w}, batches, 0.5, key=key, **options
        )[1]["w"]

    w = jnp.stack([regression_weights()["w"]] * 3)
    keys = jax.random.split(jax.random.key(0), 3)
    found = np.asarray(jax.jit(jax.vmap(mask_of))(w, keys))
    for mask, one, key in zip(found, w, keys):
        np.testing.assert_array_equal(mask, mask_of(one, key))
    assert len(np.unique(found, axis=0)) > 1


# Several batches.


@pytest.mark.parametrize(
    "criterion", [functools.partial(saliency.obd, num_samples=None), saliency.obs]
)
def test_batches_one_by_one_are_one_large_batch(criterion: Any) -> None:
    loss_fn, params, _ = nested_dict()
    batches = [batch_of(5, seed) for seed in range(3)]
    large = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    expected = criterion(loss_fn, params, large)
    scores = criterion(pruning.mean_loss(loss_fn), params, stacked(batches))
    chex.assert_trees_all_close(scores, expected, rtol=1e-3, atol=1e-5)


def test_the_mean_loss_has_every_derivative() -> None:
    loss_fn, params, _ = nested_dict()
    batches = stacked([batch_of(5, seed) for seed in range(3)])
    ours, tangent = pruning.mean_loss(loss_fn), jax.tree.map(jnp.ones_like, params)

    def theirs(params: chex.ArrayTree, batches: Any) -> chex.Array:
        return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batches))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(
        loss_fn: saliency.LossFn, params: chex.ArrayTree, batches: Any
    ) -> tuple:
        grad = jax.grad(loss_fn)
        product = jax.jvp(lambda p: grad(p, batches), (params,), (tangent,))[1]
        return (
            loss_fn(params, batches),
            grad(params, batches),
            jax.jvp(lambda p: loss_fn(p, batches), (params,), (tangent,)),
            product,
            jax.grad(lambda p: jnp.sum(flatten_traced(grad(p, batches)) ** 2))(params),
            jax.grad(loss_fn, argnums=(0, 1))(params, batches),
        )

    def flatten_traced(tree: chex.ArrayTree) -> chex.Array:
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])

    found, expected = (derivatives(f, params, batches) for f in (ours, theirs))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_batches_add_up_in_float32() -> None:
    params = {"w": np.ones(4, jnp.bfloat16)}
    x = np.random.default_rng(0).normal(1, 1, size=(256, 4)).astype(jnp.bfloat16)
    expected = x.astype(np.float64).mean(axis=0)
    with jax.numpy_dtype_promotion("strict"):
        gradient, _ = jax.jit(jax.grad(pruning.mean_loss(linear), (0, 1)))(params, x)
    gradient, eps = gradient["w"], float(jnp.finfo(jnp.bfloat16).eps)
    np.testing.assert_allclose(np.float64(gradient), expected, rtol=eps)


def test_leaves_the_loss_ignores_do_not_disturb() -> None:
    params = {"a": jnp.ones(2), "w": jnp.ones(2)}
    loss_fn = pruning.mean_loss(lambda p, x: linear(p["w"], x))
    score = functools.partial(saliency.sensitivity, loss_fn)
    signed = jax.jit(score)(params, np.float32([1.0, 2.0]))
    chex.assert_trees_all_equal(signed, {"a": np.zeros(2), "w": np.full(2, 1.5)})


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    params = {"w": jnp.ones((64, 256)), "v": jnp.ones((256, 1))}

    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]))

    def temporary_bytes(criterion: Any, num_batches: int, batch_size: int) -> int:
        prune = functools.partial(
            pruning.prune,
            loss_fn,
            sparsity=0.9,
            num_batches=num_batches,
            criterion=criterion,
            key=jax.random.key(0),
        )
        batches = jnp.ones((num_batches, batch_size, 64))
        compiled = jax.jit(lambda p, x: prune(p, x)).lower(params, batches).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for criterion in (saliency.snip, saliency.obd):
        few, many = (temporary_bytes(criterion, n, 128) for n in (2, 64))
        assert many <= 1.05 * few
    assert temporary_bytes(saliency.snip, 1, 64 * 128) > 3 * few


def test_a_loss_that_closes_over_a_traced_value() -> None:
    params = {"w": jnp.array([[1.0, 2.0, 3.0]])}

    def mask_of(scale: chex.Array) -> chex.Array:
        def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
            return jnp.sum(scale * params["w"]) * x

        return pruning.prune(loss_fn, params, jnp.ones(2), 0.6, num_batches=2)[1]["w"]

    scales = jnp.array([[1.0, 1, 1], [9, 1, 1]])
    expected = [[[False, False, True]], [[True, False, False]]]
    np.testing.assert_array_equal(jax.jit(jax.vmap(mask_of))(scales), expected)


# Several rounds.


def test_no_round_revives_a_connection() -> None:
    found: list[chex.ArrayTree] = []

    def remember(scores: Any, sparsity: float, prunable: Any) -> chex.ArrayTree:
        found.append(masks.global_topk(scores, sparsity, prunable))
        return found[-1]

    def all_alike_and_negative(
        loss_fn: Any, params: Any, batch: Any, key: Any
    ) -> chex.ArrayTree:
        return jax.tree.map(jnp.negative, params)

    params = {"w": jnp.ones((5, 7)), "v": jnp.ones((3, 3)), "b": jnp.ones(3)}
    criterion = all_alike_and_negative
    options = {"criterion": criterion, "select": remember, "rounds": 4}
    pruning.prune(None, params, None, 0.8, **options)
    for earlier, later in itertools.pairwise(found):
        for name in ("w", "v"):
            assert not np.any(np.asarray(later[name]) & ~np.asarray(earlier[name]))
    assert masks.sparsity(found[-1]) > masks.sparsity(found[0])


def test_each_round_has_a_key_of_its_own() -> None:
    params, key = {"w": jnp.ones((4, 25))}, jax.random.key(0)
    _, mask = pruning.prune(
        None, params, None, 0.75, criterion=saliency.random, rounds=2, key=key
    )
    first, second = (
        saliency.random(None, params, None, key=k)["w"]
        for k in (key, jax.random.fold_in(key, 2))
    )
    kept = largest_by_sorting([first], 50)[0]
    expected = largest_by_sorting([np.where(kept, second, -1)], 25)[0]
    np.testing.assert_array_equal(mask["w"], expected)


def test_rounds_have_one_program() -> None:
    programs = []

    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any) -> Any:
            programs.append(1)
            return function(*args)

        return jax.jit(traced)

    params, batch = regression_weights(), batch_of(7)
    for may_return in (False, True):
        pruning.score_and_mask(
            linear_regression,
            params,
            batch,
            0.5,
            rounds=5,
            key=jax.random.key(0),
            may_return=may_return,
            jit=jit,
        )
    assert len(programs) == 2


def test_a_mask_of_another_network() -> None:
    mask = {"w": jnp.ones((2, 2), bool)}
    with pytest.raises(ValueError, match=r"mask leaf 'w' has shape \(2, 2\)"):
        pruning.prune(
            linear_regression, regression_weights(), batch_of(7), 0, mask=mask
        )


# Transformations.


def test_an_iterator_of_traced_batches() -> None:
    @jax.jit
    def mask_of(x: chex.Array, y: chex.Array) -> chex.Array:
        params = {"w": jnp.ones((1, 2))}
        return pruning.prune(linear, params, iter([x, y]), 0.5)[1]["w"]

    mask = mask_of(np.float32([[1.0, 6.0]]), np.float32([[1.0, -6.0]]))
    np.testing.assert_array_equal(mask, [[True, False]])


# Nothing of the loss is kept.


def test_a_loss_that_changed_has_the_new_scores_and_is_let_go() -> None:
    class Task:
        __hash__ = None
        weights = np.float32([[1, 0]])

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Task)

        def loss(self, params: chex.ArrayTree, batch: chex.Array) -> chex.Array:
            return jnp.sum(self.weights * params["w"]) * jnp.sum(batch)

    task, params = Task(), {"w": jnp.ones((1, 2))}
    score = functools.partial(
        pruning.score_and_mask,
        params=params,
        batch=jnp.ones(2),
        sparsity=0.5,
        num_batches=2,
    )
    assert score(task.loss)[0]["w"].tolist() == [[1, 0]]
    task.weights = np.float32([[0, 1]])
    assert score(task.loss)[0]["w"].tolist() == [[0, 1]]
    reference = weakref.ref(task)
    del task
    gc.collect()
    assert reference() is None


# Bad input.


@pytest.mark.parametrize(
    ("sparsity", "rounds", "problem"),
    [
        (1.0, 1, r"sparsity is 1.0, outside \[0, 1\)"),
        (None, 1, r"sparsity is None, outside \[0, 1\)"),
        (None, 2, "sparsity is None, but rounds=2"),
        (0.5, 0, "rounds is 0; it must be an integer of at least 1"),
    ],
)
def test_a_sparsity_or_rounds_that_cannot_be(
    sparsity: Any, rounds: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        pruning.prune(
            linear_regression,
            regression_weights(),
            batch_of(7),
            sparsity,
            rounds=rounds,
        )


class Loader:
    def __iter__(self) -> Iterator[chex.Array]:
        return iter([np.ones((1, 2))])


@pytest.mark.parametrize(
    ("batch", "num_batches", "problem"),
    [
        (np.ones((3, 2)), 4, r"shape \(3, 2\), but num_batches=4.*stack the batches"),
        ({"x": np.ones((4, 2)), "t": 1.0}, 4, r"batch leaf 't' has shape \(\), but"),
        ({}, 4, "batch has no arrays, but num_batches=4"),
        (np.ones((0, 2)), 0, "num_batches is 0; it must be an integer of at least 1"),
        (np.ones((1, 2)), True, "num_batches is True; it must be an integer"),
        (iter([1.0]), 1, "num_batches is for a batch with a leading axis; leave it"),
        (iter([]), None, r"yields nothing.*at least one batch.*read only once"),
        (
            iter([np.ones(3), np.ones(3), np.ones(2)]),
            None,
            r"batch 2 .*shapes \[\(2,\)\].*\[\(3,\)\]; .*drop a last, smaller one",
        ),
        (iter([{"x": 1.0}, {"y": 1.0}]), None, "batch 1 does not have .* the first"),
        (Loader(), None, r"is a Loader, not an array.*as iter\(loader\)"),
        (iter([Loader()]), None, "is a Loader, not an array"),
    ],
)
def test_batches_that_cannot_be(batch: Any, num_batches: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pruning.prune(
            linear_regression, regression_weights(), batch, 0.5, num_batches=num_batches
        )


def test_a_loss_that_is_no_scalar() -> None:
    batch = stacked([batch_of(7), batch_of(7)])
    loss_fn = lambda params, batch: params["w"]  # noqa: E731
    with pytest.raises(ValueError, match=r"array of shape \(3, 2\), not a scalar"):
        pruning.prune(loss_fn, regression_weights(), batch, 0.5, num_batches=2)


def test_a_saliency_that_is_not_finite_names_its_leaf() -> None:
    params = {"fine": {"kernel": jnp.ones((2, 2))}, "bad": {"kernel": jnp.ones((2, 2))}}

    def loss_fn(params: chex.ArrayTree, scale: chex.Array) -> chex.Array:
        return jnp.sum(params["fine"]["kernel"]) + jnp.sum(
            jnp.exp(scale * params["bad"]["kernel"])
        )

    with pytest.raises(ValueError, match="saliency is not finite in bad/kernel; "):
        pruning.prune(loss_fn, params, np.float32(1e3), 0.5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda w: {"v": w}, "missing leaves: w"), (lambda w: {"w": w[0]}, "has shape")],
)
def test_a_criterion_whose_scores_are_not_like_params(
    change: Callable, problem: str
) -> None:
    with pytest.raises(ValueError, match=f"the criterion's scores.*{problem}"):
        pruning.prune(
            None,
            regression_weights(),
            None,
            0.5,
            criterion=lambda loss_fn, params, batch, key: change(params["w"]),
        )


# Warnings, at the line that pruned.


def warnings_of(function: Callable, *args: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function(*args, **options)
    assert {warning.filename for warning in said} <= {__file__}
    return [str(warning.message) for warning in said]


def test_a_layer_without_connections_is_reported_by_name() -> None:
    params = {"first": jnp.ones((2, 2)), "last": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    x = {"first": 1.0, "last": 1e-6, "bias": 1e-6}
    prunable = masks.weights_and_biases
    (said,) = warnings_of(pruning.prune, linear, params, x, 0.6, prunable=prunable)
    assert said.startswith("no connection of 'last' is kept")
    assert not warnings_of(
        pruning.score_and_mask, linear, params, x, 0.6, prunable=prunable
    )


@pytest.mark.parametrize(
    ("select", "zeros"), [(masks.global_topk, 2), (masks.layerwise_topk, 4)]
)
def test_kept_connections_of_score_zero_are_counted(select: Any, zeros: int) -> None:
    # As with LoRA, of which one matrix is zero and the other has no gradient.
    params = {"a": jnp.ones((2, 3)), "c": jnp.ones((2, 2)), "e": jnp.ones((1, 2))}
    x = {"a": 0.0, "c": 1.0, "e": 0.0}
    said = warnings_of(pruning.prune, linear, params, x, 0.5, select=select)
    (message,) = [text for text in said if "score" in text]
    assert message.startswith("6 connections are kept, but only 4 have a score above")
    assert f"{zeros} of score zero" in message


@pytest.mark.parametrize(
    ("scores", "sparsity"),
    [
        ([[0.0, 0.0, 1.0, 2.0]], 0.5),  # as many above zero as are kept
        ([[0.0, 0.0, 1.0, 2.0]], 0.0),  # everything is kept
        ([[-1.0, -2.0, -3.0, -4.0]], 0.5),  # a criterion below zero
    ],
)
def test_scores_that_suffice_are_not_warned_of(scores: Any, sparsity: float) -> None:
    pruning.prune(
        None,
        {"w": jnp.array(scores)},
        None,
        sparsity,
        criterion=lambda loss_fn, params, batch, key: params,
    )
