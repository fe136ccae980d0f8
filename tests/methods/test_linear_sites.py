"""The layers found in losses of several libraries, against what those compute."""

import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, ops
from snipjax.methods.linear_sites import Network, Site, check_covered

KEY = jax.random.key(0)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "strided and dilated": (
        nn.Conv(4, (2, 3), strides=2, padding=((1, 0), (2, 1)), kernel_dilation=(1, 2)),
        (2, 5, 6, 3),
    ),
    "the library's": (
        nn.Conv(4, (3, 3), conv_general_dilated=ops.conv_general_dilated),
        (2, 5, 6, 3),
    ),
    "dense of many axes": (nn.Dense(4, use_bias=False), (2, 5, 3)),
    "attention's": (nn.DenseGeneral((2, 3)), (5, 4)),
    "narrow in remat": (nn.remat(nn.Dense)(4, dtype=jnp.bfloat16), (5, 3)),
}


def randomized(params: chex.ArrayTree) -> chex.ArrayTree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    drawn = [jax.random.normal(k, w.shape) for k, w in zip(keys, leaves)]
    return treedef.unflatten(drawn)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_product_of_its_rows_and_its_matrix(name: str) -> None:
    layer, shape = LAYERS[name]
    x = jax.random.normal(KEY, shape)
    params = randomized(jax.eval_shape(layer.init, KEY, x)["params"])

    def function(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return layer.apply({"params": params}, x)

    network = Network(function, params, x)
    (found,) = network.layers

    @jax.jit
    def product_and_output(
        params: chex.ArrayTree, x: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        products = []

        def at(site: Site) -> chex.Array:
            products.append(site.layer.rows(site.inputs) @ site.layer.matrix(params))
            return site.outputs

        return network(params, x, at), products[0]

    output, product = product_and_output(params, x)
    np.testing.assert_array_equal(output, jax.jit(function)(params, x))
    tolerance = 0.1 if output.dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(
        product.reshape(output.shape), output.astype(jnp.float32), atol=tolerance
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    chex.assert_trees_all_equal(found.with_matrix(zeros, found.matrix(params)), params)
    assert not network.others
    assert found.overlap == math.prod(getattr(layer, "kernel_size", ()))


def with_vmap(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    """As Equinox has it, whose weights are ``[outputs, inputs]``."""
    return jax.vmap(lambda x: params["w"] @ x + params["b"])(x)


def with_einsum(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    return params["b"] + jnp.einsum("ni,oi->no", x, params["w"])


def with_reshaped(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    weights = params["w"].reshape(-1).reshape(4, 3).T.astype(jnp.float32)
    return jax.lax.dot(x, weights) + params["b"][None]


@jax.jit
def within_jit(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    return jax.checkpoint(jax.jit(with_vmap))(params, x)


within_custom_derivatives = jax.custom_vjp(with_einsum)
within_custom_derivatives.defvjp(
    lambda params, x: (with_einsum(params, x), None), lambda _, gradient: (None, None)
)


@pytest.mark.parametrize(
    "function",
    [with_reshaped, within_jit, within_custom_derivatives],
)
def test_a_layer_of_plain_jax(function: Callable[..., chex.Array]) -> None:
    x = jax.random.normal(KEY, (5, 3))
    params = randomized({"w": jnp.zeros((4, 3)), "b": jnp.zeros(4)})
    network = Network(function, params, x)
    (layer,) = network.layers
    assert layer.name == "w" and not network.others
    expected = jnp.concatenate([params["w"].T, params["b"][None]])
    np.testing.assert_array_equal(layer.matrix(params), expected)

    def doubled(site: Site) -> chex.Array:
        """By the layer itself, with other arrays."""
        return site.apply(2 * site.inputs, params["w"], 2 * params["b"])

    np.testing.assert_allclose(
        network(params, x, doubled), 2 * function(params, x), rtol=1e-5
    )


def test_calls_are_numbered_and_outputs_are_of_those_that_none_follows() -> None:
    def two_heads(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        x = jnp.tanh(x @ params["shared"])
        x = jnp.tanh(x @ params["shared"])
        return jnp.sum(x @ params["one"]) + jnp.sum(x @ params["two"])

    params = {name: jnp.ones((3, 3)) for name in ("shared", "one", "two")}
    x = jnp.ones((5, 3))
    network = Network(two_heads, params, x)
    calls = []

    def at(site: Site) -> chex.Array:
        calls.append((site.number, site.layer.name, site.repeat))
        return site.outputs

    network(params, x, at)
    assert calls == [(0, "shared", 0), (1, "shared", 1), (2, "one", 0), (3, "two", 0)]
    assert network.outputs == [2, 3]


def test_names_are_those_of_the_module_where_it_has_one_layer() -> None:
    def loss(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        x = x @ params["block"]["in"]["kernel"] + params["block"]["in"]["bias"]
        return jnp.sum(x @ params["others"][0] @ params["others"][1]["w"])

    params = {
        "block": {"in": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}},
        "others": [jnp.ones((3, 3)), {"w": jnp.ones((3, 3))}],
    }
    names = [layer.name for layer in Network(loss, params, jnp.ones((2, 3))).layers]
    assert names == ["block/in", "others/0", "others/1"]


@pytest.mark.parametrize(
    ("function", "name", "use"),
    [
        (lambda p, x: jnp.sum((p["w"] * x) @ p["v"]), "w", "'mul'"),
        (lambda p, x: jnp.sum(x @ (p["w"] @ p["v"])), "v", "'dot_general'"),
        (lambda p, x: jnp.sum(x @ p["w"] + jnp.sum(p["w"] ** 2)), "w", "'.*pow.*'"),
        (lambda p, x: jnp.sum(x @ p["w"] + p["v"]), "v", "'add'"),
        (lambda p, x: jnp.sum(x @ p["w"] @ p["w"].T), "w", "two different layers"),
        (lambda p, x: jnp.sum(x @ p["w"]), "v", "nothing"),
        (
            lambda p, x: jax.lax.scan(lambda x, _: (x @ p["w"], None), x, length=2)[0],
            "w",
            "'scan'",
        ),
    ],
)
def test_what_else_uses_a_parameter_is_said(
    function: Callable[..., Any], name: str, use: str
) -> None:
    params = {"v": jnp.ones((3, 3)), "w": jnp.ones((3, 3))}
    network = Network(function, params, jnp.ones((3, 3)))
    mask = masks.ones(params, lambda path, leaf: path[0].key == name)
    with pytest.raises(
        ValueError, match=f"'{name}' is prunable, but used by {use}, so"
    ):
        check_covered(network, mask, "it is not possible")
    check_covered(network, masks.ones(params, lambda path, leaf: False), "")
