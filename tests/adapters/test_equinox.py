"""Equinox modules are pruned as their arrays are, and train sparse as they are."""

import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, optim, pruning
from tests.ops.agreement import normal

eqx = pytest.importorskip("equinox")
from snipjax.adapters import equinox as adapter  # noqa: E402

BATCH = normal(0, (32, 6)), np.arange(32) % 3


class Net(eqx.Module):
    """A layer, a batch norm, dropout and a layer, with fields of every other kind."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear
    steps: chex.Array
    activation: Any = jax.nn.relu
    name: str = eqx.field(default="net", static=True)

    def __init__(self, key: chex.PRNGKey) -> None:
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(6, 20, key=keys[0])
        self.norm = eqx.nn.BatchNorm(20, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(20, 3, key=keys[1])
        self.steps = jnp.array(3)

    def __call__(self, x: Any, state: Any, key: chex.PRNGKey) -> Any:
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.dropout(self.activation(x), key=key)), state


def loss_fn(model: Net, state: Any, batch: Any, key: chex.PRNGKey) -> Any:
    keys = jax.random.split(key, len(batch[1]))
    over_batch = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
    logits, state = over_batch(batch[0], state, keys)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), state


@pytest.fixture(scope="module")
def made() -> Any:
    """A module, its state, and what of them is pruned by."""
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    key = jax.random.key(1)
    return model, state, lambda model, batch: loss_fn(model, state, batch, key)[0]


def test_the_mask_is_of_the_scores_of_its_arrays() -> None:
    model = eqx.nn.MLP(6, 3, 20, 1, key=jax.random.key(0))
    plain = [{"weight": layer.weight, "bias": layer.bias} for layer in model.layers]

    def plain_loss(params: Any, x: chex.Array) -> chex.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["weight"].T + layer["bias"])
        return jnp.sum((x @ params[-1]["weight"].T + params[-1]["bias"]) ** 2)

    pruned, mask = adapter.prune(
        lambda model, x: jnp.sum(jax.vmap(model)(x) ** 2), model, BATCH[0], 0.9
    )
    params, plain_mask = pruning.prune(plain_loss, plain, BATCH[0], 0.9)
    for layer, keep, values, wanted in zip(
        pruned.layers, mask.layers, params, plain_mask
    ):
        chex.assert_trees_all_equal(keep.weight, wanted["weight"])
        chex.assert_trees_all_equal(layer.weight, values["weight"])
        assert keep.bias.shape == ()
    assert pruned.activation is model.activation
    assert mask.activation is None


def test_all_but_the_arrays_stays(made: Any) -> None:
    model, _, scalar = made
    pruned, _ = adapter.prune(scalar, model, BATCH, 0.9, rounds=2)
    assert jax.tree.structure(pruned) == jax.tree.structure(model)
    assert (pruned.name, int(pruned.steps)) == ("net", 3)
    weights = pruned.hidden.weight, pruned.out.weight
    assert sum(map(jnp.count_nonzero, weights)) == round(0.1 * (6 * 20 + 20 * 3))
    eqx.filter_jit(scalar)(pruned, BATCH)  # the state can be used again


def test_training_keeps_pruned_weights_zero(made: Any) -> None:
    model, state, scalar = made
    model, mask = adapter.prune(scalar, model, BATCH, 0.9)
    optimizer = optim.sparse(optax.adamw(1e-2, weight_decay=0.1), mask)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, key: Any) -> Any:
        gradient_fn = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        (loss, state), gradient = gradient_fn(model, state, BATCH, key)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return eqx.apply_updates(model, updates), state, opt_state, loss

    losses = []
    for key in jax.random.split(jax.random.key(2), 7):
        model, state, opt_state, loss = step(model, state, opt_state, key)
        losses.append(loss)
    assert losses[-1] < losses[0]
    for layer, keep in ((model.hidden, mask.hidden), (model.out, mask.out)):
        assert not np.any(np.asarray(layer.weight)[~np.asarray(keep.weight)])


def test_a_frozen_layer_is_not_pruned(made: Any) -> None:
    model, _, scalar = made
    trainable = jax.tree.map(eqx.is_inexact_array, model)
    trainable = eqx.tree_at(lambda tree: tree.hidden.weight, trainable, False)
    pruned, mask = adapter.prune(scalar, model, BATCH, 0.5, filter_spec=trainable)
    assert [row.path for row in masks.summary(mask)] == ["out/weight"]
    assert jnp.all(pruned.hidden.weight == model.hidden.weight)


@pytest.mark.parametrize("model", [eqx.nn.Linear, loss_fn], ids=["class", "swapped"])
def test_what_is_no_module_with_parameters(model: Any) -> None:
    with pytest.raises(ValueError, match=r"model, a .*, has no parameters"):
        adapter.prune(loss_fn, model, BATCH, 0.9)


def test_a_warning_points_at_the_call() -> None:
    model = eqx.nn.Linear(6, 3, key=jax.random.key(0))
    with pytest.warns(UserWarning, match="no connection of") as warned:
        adapter.prune(lambda m, x: jnp.sum(jax.vmap(m)(x)), model, BATCH[0], 0.99)
    assert {warning.filename for warning in warned} == {__file__}


def test_rows_of_a_weight_norm_that_lose_their_norm_are_told_of() -> None:
    layer = eqx.nn.WeightNorm(eqx.nn.Linear(8, 8, key=jax.random.key(0)))
    x = normal(1, (16, 8))

    @eqx.filter_jit
    def loss(model: Any, x: chex.Array) -> chex.Array:
        return jnp.mean(jax.vmap(model)(x) ** 2)

    with pytest.warns(UserWarning, match="rows of eqx.nn.WeightNorm keep no connect"):
        pruned, mask = adapter.prune(loss, layer, x, 0.9)
    assert mask.g.shape == ()
    assert not jnp.isfinite(loss(pruned, x))
    remedy = masks.n_of_m(1, 4, axis=-1)
    with warnings.catch_warnings(action="error"):
        pruned, _ = adapter.prune(loss, layer, x, select=remedy)
    assert jnp.isfinite(loss(pruned, x))
