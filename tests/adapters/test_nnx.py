"""NNX modules are pruned as their parameters are, and train sparse as they are."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from snipjax import masks, optim, pruning, saliency
from snipjax.adapters import nnx as adapter
from tests.ops.agreement import normal

BATCH = normal(0, (32, 6)), np.arange(32) % 3
KERNELS = 6 * 20 + 20 * 3


class Net(nnx.Module):
    """A layer, a batch norm, dropout with a stream of keys, and a layer."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(6, 20, rngs=rngs)
        self.norm = nnx.BatchNorm(20, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(20, 3, rngs=rngs)

    def __call__(self, x: chex.Array) -> chex.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def loss_fn(model: Net, batch: Any) -> chex.Array:
    logits = model(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def arrays(model: nnx.Module, *filters: Any) -> Any:
    """Copies of a module's arrays, its keys as numbers."""
    state = nnx.to_pure_dict(nnx.state(model, *filters))
    return jax.tree.map(
        lambda x: (
            np.array(jax.random.key_data(x))
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else np.array(x)
        ),
        state,
    )


def nonzero(model: Net) -> int:
    kernels = model.hidden.kernel[...], model.out.kernel[...]
    return sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)


def test_the_mask_is_of_the_scores_of_its_parameters() -> None:
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    plain = {"bias": model.bias[...], "kernel": model.kernel[...]}

    def plain_loss(params: Any, x: chex.Array) -> chex.Array:
        return jnp.sum((x @ params["kernel"] + params["bias"]) ** 2)

    pruned, mask = adapter.prune(
        lambda model, x: jnp.sum(model(x) ** 2), model, BATCH[0], 0.5
    )
    params, plain_mask = pruning.prune(plain_loss, plain, BATCH[0], 0.5)
    chex.assert_trees_all_equal(nnx.to_pure_dict(mask), plain_mask)
    chex.assert_trees_all_equal(arrays(pruned), params)


@pytest.fixture(scope="module")
def networks() -> tuple[Net, Net, Any]:
    """A module, its pruned copy and the mask."""
    model = Net()
    before = arrays(model)
    pruned, mask = adapter.prune(loss_fn, model, BATCH, 0.9, rounds=2)
    chex.assert_trees_all_equal(arrays(model), before)
    return model, pruned, mask


def test_states_stay_in_the_module_and_its_pruned_copy(networks: Any) -> None:
    model, pruned, _ = networks
    others = nnx.Not(nnx.Param)
    chex.assert_trees_all_equal(arrays(pruned, others), arrays(model, others))
    assert nonzero(pruned) == round(0.1 * KERNELS)
    model.norm.scale[...] += 1  # the copy shares nothing with it
    assert jnp.all(pruned.norm.scale[...] == 1)


@pytest.mark.parametrize(
    "sparse",
    [optim.sparse, lambda inner, mask: optim.rigl(inner, mask, every=2, stop=5)],
    ids=["static", "rigl"],
)
def test_the_optimizer_of_nnx_keeps_the_number_of_connections(
    networks: Any, sparse: Any
) -> None:
    _, pruned, mask = networks
    model = nnx.clone(pruned)
    inner = optax.adamw(3e-2, weight_decay=0.1)
    optimizer = nnx.Optimizer(model, sparse(inner, mask), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer) -> chex.Array:
        loss, gradient = nnx.value_and_grad(loss_fn)(model, BATCH)
        optimizer.update(model, gradient)
        return loss

    first, *_, last = (step(model, optimizer) for _ in range(30))
    assert last < first
    assert nonzero(model) == round(0.1 * KERNELS)
    assert int(model.dropout.rngs.count[...]) == 30


def test_variables_that_are_not_trained_are_not_pruned() -> None:
    class Adapter(nnx.Variable):
        """A variable of a kind of its own."""

    model = Net()
    model.hidden.kernel = Adapter(model.hidden.kernel[...])
    pruned, mask = adapter.prune(loss_fn, model, BATCH, 0.5, wrt=Adapter)
    assert [row.path for row in masks.summary(mask)] == ["hidden/kernel"]
    assert jnp.all(pruned.out.kernel[...] == model.out.kernel[...])


def test_a_loss_split_from_its_module_is_pure() -> None:
    model = Net()
    pure, params, merge = adapter.split(loss_fn, model)
    scores, first, second = jax.jit(
        lambda p: (saliency.snip(pure, p, BATCH), pure(p, BATCH), pure(p, BATCH))
    )(params)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    assert first == second
    expected = nnx.jit(loss_fn)(merge(params), BATCH)
    np.testing.assert_allclose(first, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((loss_fn, Net), "model, a .*, has no variables .*not its class"),
        ((Net(), loss_fn), "model, a function, .*pass loss_fn, then an nnx"),
        ((loss_fn, Net(), {"wrt": nnx.LoRAParam}), "model, a Net, .*wrt=LoRAParam"),
    ],
    ids=["class", "swapped", "kind"],
)
def test_what_is_no_module_with_parameters(arguments: Any, problem: str) -> None:
    *arguments, options = (*arguments, {}) if len(arguments) == 2 else arguments
    with pytest.raises(ValueError, match=problem):
        adapter.prune(*arguments, BATCH, 0.9, **options)


def test_a_parameter_of_integers_is_told_what_to_be() -> None:
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    model.places = nnx.Param(jnp.arange(3))
    with pytest.raises(
        ValueError, match=r"'places' has dtype int.* nnx.Variable.*wrt="
    ):
        adapter.prune(lambda model, x: jnp.sum(model(x)), model, BATCH[0], 0.9)


def test_a_mask_applied_to_the_module_itself_is_told_to_take_its_state() -> None:
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    mask = masks.ones(nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match=r"a State against a Linear; .*nnx\.state\(m"):
        masks.apply(mask, model)


def test_a_warning_points_at_the_call() -> None:
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    with pytest.warns(UserWarning, match="no connection of") as warned:
        adapter.prune(lambda model, x: jnp.sum(model(x)), model, BATCH[0], 0.99)
    assert {warning.filename for warning in warned} == {__file__}
