"""Effective connections against a search of the network's graph, pixel by pixel."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_leaves_with_path

from snipjax import masks, ops
from snipjax.models import layers, recurrent, transformer
from snipjax.models.resnet import Block

pytestmark = pytest.mark.filterwarnings("error")

Node = tuple[Any, ...]
# From a node to another, by a connection (leaf, index), or by none.
Edge = tuple[Node, Node, tuple[str, tuple[int, ...]] | None]


def search(
    edges: list[Edge], mask: dict[str, np.ndarray], sources: set[Node], ends: set[Node]
) -> dict[str, np.ndarray]:
    """The mask of connections with an edge on a path of kept ones."""
    there = [e for e in edges if e[2] is None or mask[e[2][0]][e[2][1]]]

    def reached(start: set[Node], pairs: Iterator[tuple[Node, Node]]) -> set[Node]:
        following = defaultdict(set)
        for a, b in pairs:
            following[a].add(b)
        found, new = set(start), list(start)
        while new:
            for node in following[new.pop()] - found:
                found.add(node)
                new.append(node)
        return found

    forward = reached(sources, ((a, b) for a, b, _ in there))
    backward = reached(ends, ((b, a) for a, b, _ in there))
    on_paths = {name: np.zeros_like(keep) for name, keep in mask.items()}
    for a, b, connection in there:
        if connection is not None and a in forward and b in backward:
            on_paths[connection[0]][connection[1]] = True
    return on_paths


def dense(name: str, a: str, b: str, shape: tuple[int, int]) -> list[Edge]:
    return [((a, i), (b, j), (name, (i, j))) for i, j in np.ndindex(*shape)]


def convolution(
    name: str, a: str, b: str, shape: tuple[int, ...], pixels: int, stride: int
) -> list[Edge]:
    """The edges for square images, padded by half of the kernel's size."""
    size = shape[0]
    edges = []
    for y, x in np.ndindex(-(-pixels // stride), -(-pixels // stride)):
        for index in np.ndindex(*shape):
            dy, dx, i, o = index
            v, u = y * stride + dy - size // 2, x * stride + dx - size // 2
            if 0 <= v < pixels and 0 <= u < pixels:
                edges.append(((a, v, u, i), (b, y, x, o), (name, index)))
    return edges


def name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check(
    apply_fn: Any, params: Any, inputs: Any, edges: list[Edge], ends: set[Node]
) -> None:
    """Compares with the search, at densities at which many paths are broken."""
    sources = {a for a, _, _ in edges if a[0] == "x"}
    shapes = {name_of(path): w.shape for path, w in tree_leaves_with_path(params)}
    effective = jax.jit(lambda mask: masks.effective(mask, apply_fn, params, inputs))
    rng = np.random.default_rng(0)
    found_any = 0
    for density in (0.15, 0.35, 0.6):
        kept = {
            name: rng.random(shape) < density
            for name, shape in shapes.items()
            if len(shape) > 1
        }
        mask = jax.tree_util.tree_map_with_path(
            lambda path, w, kept=kept: kept.get(name_of(path), True), params
        )
        expected = search(edges, kept, sources, ends)
        for path, keep in tree_leaves_with_path(effective(mask)):
            name = name_of(path)
            if name in kept:
                np.testing.assert_array_equal(keep, expected[name], err_msg=name)
                found_any += 0 < keep.sum() < kept[name].sum()
            else:
                assert keep.shape == ()
    assert found_any


def test_a_network_of_dense_layers() -> None:
    activations = [nn.relu, nn.tanh, nn.gelu, nn.sigmoid]
    widths = [6, 7, 5, 5, 6, 3]
    shapes = dict(zip("abcde", itertools.pairwise(widths)))
    params = {name: np.ones(shape) for name, shape in shapes.items()}
    params["bias"] = np.ones(5)

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        for name, activation in zip("abcd", activations):
            x = activation(x @ params[name] + (params["bias"] if name == "b" else 0.0))
        return nn.softmax(x @ params["e"])

    units = ["x", "h", "g", "f", "d", "y"]
    edges = [
        edge
        for (name, shape), ends in zip(shapes.items(), itertools.pairwise(units))
        for edge in dense(name, *ends, shape)
    ]
    check(apply_fn, params, np.zeros((2, 6)), edges, {("y", i) for i in range(3)})


class Net(nn.Module):
    """A convolution, a max-pool, a residual block that halves the image, a mean."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = layers.Conv(3, (3, 3), padding=1)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = ops.max_pool(x, (2, 2), (2, 2))
        x = Block((4, 4), 2, has_projection=True)(x)
        return nn.Dense(3)(x.mean((1, 2)))


def test_a_residual_network_of_convolutions() -> None:
    model, images = Net(), jnp.zeros((1, 8, 8, 2))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    stats = {
        "batch_stats": jax.tree.map(
            lambda x: np.ones(x.shape, x.dtype), variables["batch_stats"]
        )
    }

    def apply_fn(params: Any, images: chex.Array) -> chex.Array:
        return model.apply({"params": params, **stats}, images)

    edges = convolution("Conv_0/kernel", "x", "h", (3, 3, 2, 3), 8, 1)
    edges += [(("h", y, x, c), ("p", y // 2, x // 2, c), None)
              for y, x, c in np.ndindex(8, 8, 3)]  # fmt: skip
    block = "Block_0"
    edges += convolution(f"{block}/Conv_0/kernel", "p", "q", (3, 3, 3, 4), 4, 2)
    edges += convolution(f"{block}/Conv_1/kernel", "q", "r", (3, 3, 4, 4), 2, 1)
    edges += convolution(f"{block}/shortcut/kernel", "p", "r", (1, 1, 3, 4), 4, 2)
    edges += [(("r", y, x, c), ("m", c), None) for y, x, c in np.ndindex(2, 2, 4)]
    edges += dense("Dense_0/kernel", "m", "y", (4, 3))
    check(apply_fn, variables["params"], images, edges, {("y", i) for i in range(3)})


def test_a_recurrent_network_row_by_row() -> None:
    """Unrolled by hand: gates see the row and the state before."""
    params = {
        "first": np.ones((3, 4)), "row": np.ones((4, 5)),
        "state": np.ones((5, 5)), "out": np.ones((5, 2)),
    }  # fmt: skip

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        def step(h: chex.Array, row: chex.Array) -> tuple[chex.Array, None]:
            row = row @ params["first"]
            return jnp.tanh(row @ params["row"] + h @ params["state"]), None

        return jax.lax.scan(step, jnp.zeros(5), x)[0] @ params["out"]

    edges = [
        edge
        for t in range(3)
        for edge in itertools.chain(
            [
                ((f"x{t}", i), (f"f{t}", j), ("first", (i, j)))
                for i, j in np.ndindex(3, 4)
            ],
            dense("row", f"f{t}", f"h{t}", (4, 5)),
            dense("state", f"h{t - 1}", f"h{t}", (5, 5)),
        )
    ]
    edges += dense("out", "h2", "y", (5, 2))
    edges += [(("x", t, i), (f"x{t}", i), None) for t in range(3) for i in range(3)]
    check(apply_fn, params, np.ones((3, 3)), edges, {("y", 0), ("y", 1)})


# Biases and constants.


def test_a_bias_on_no_path_is_not_effective() -> None:
    params = {"v": jnp.ones((2, 3)), "bias": jnp.ones(3), "w": jnp.ones((3, 2))}
    mask = {
        "v": np.array([[True, False, True], [False, False, False]]),
        "bias": np.array([True, True, True]),
        "w": np.array([[True, False], [True, True], [False, False]]),
    }
    found = masks.effective(
        mask, lambda p, x: nn.relu(x @ p["v"] + p["bias"]) @ p["w"], params,
        jnp.ones((1, 2)),
    )  # fmt: skip
    # The second unit hears nothing of the inputs, and the third is not heard.
    np.testing.assert_array_equal(found["bias"], [True, False, False])
    np.testing.assert_array_equal(found["v"], [[True, False, False], [False] * 3])
    np.testing.assert_array_equal(found["w"], [[True, False], [False] * 2, [False] * 2])


def test_values_do_not_matter() -> None:
    """No weight, no statistic and no pixel is taken for zero."""
    params = {"v": jnp.zeros((2, 2)), "w": jnp.array([[1.0], [-1.0]])}
    mask = masks.ones(params)
    found = masks.effective(
        mask, lambda p, x: (x @ p["v"] - 3.0) @ p["w"], params, jnp.zeros((1, 2))
    )
    chex.assert_trees_all_equal(found, mask)


@pytest.mark.parametrize(("gate", "is_open"), [(nn.sigmoid, True), (nn.tanh, False)])
def test_a_gate_without_inputs_is_open_if_it_is_not_zero(
    gate: Any, is_open: bool
) -> None:
    params = {"gate": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    mask = {"gate": np.zeros((2, 3), bool), "v": np.ones((2, 3), bool)}
    found = masks.effective(
        mask, lambda p, x: (x @ p["v"]) * gate(x @ p["gate"]), params, jnp.ones((1, 2))
    )
    assert bool(found["v"].all()) == bool(found["v"].any()) == is_open
    assert not found["gate"].any()


def test_what_comes_from_a_parameter_alone_is_no_input() -> None:
    """A class token reads from the inputs by its query, which no input reaches."""
    params = {name: jnp.ones((2, 2)) for name in ("query", "key", "value", "out")}
    params["token"] = jnp.ones((1, 2))
    mask = masks.ones(params, lambda path, leaf: path[-1].key != "token")
    mask["value"] = np.array([[True, False], [False, False]])

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        x = jnp.concatenate([params["token"], x])
        scores = (x[:1] @ params["query"]) @ (x @ params["key"]).T
        return nn.softmax(scores) @ (x @ params["value"]) @ params["out"]

    found = masks.effective(mask, apply_fn, params, jnp.ones((3, 2)))
    assert masks.densities(found) == {
        "query": 0.0, "key": 1.0, "value": 0.25, "out": 0.5, "token": 1.0
    }  # fmt: skip


def test_a_deep_network_neither_overflows_nor_underflows() -> None:
    """Of the 200 ** 24 paths, those through one connection near each end are left."""
    params = {f"layer_{i:02}": np.zeros((200, 200), np.float32) for i in range(24)}
    mask = {name: np.ones((200, 200), bool) for name in params}
    for name in ("layer_01", "layer_22"):
        mask[name] = np.arange(40_000).reshape(200, 200) == 17

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        for name in sorted(params):
            x = nn.relu(x @ params[name])
        return x

    found = masks.densities(masks.effective(mask, apply_fn, params, np.ones((1, 200))))
    for name in ("layer_01", "layer_22"):
        assert found.pop(name) == 1 / 40_000
    for name in ("layer_00", "layer_02", "layer_21", "layer_23"):
        assert found.pop(name) == 1 / 200
    assert set(found.values()) == {1.0}


# The networks of this package.


SMALL = transformer.Config(vocab_size=11, length=3, width=8, depth=1, heads=2)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (
            recurrent.Recurrent(num_classes=3, units=4, cell=recurrent.GRUCell),
            jnp.zeros((1, 2, 5, 1)),
        ),
        (transformer.Transformer(SMALL), np.arange(3).reshape(1, 3)),
    ],
)
def test_gates_and_attention_are_followed(model: nn.Module, inputs: Any) -> None:
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    params = variables["params"]
    mask = masks.ones(params)
    found = masks.effective(
        mask, lambda p, x: model.apply({"params": p}, x), params, inputs
    )
    assert set(jax.tree.leaves(masks.densities(found))) == {1.0}


def test_effective_sparsity_counts_connections_on_no_path_as_pruned() -> None:
    params = {"v": jnp.ones((2, 4)), "w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    mask = masks.ones(params)
    for kept, on_paths in ((3, 4 + 3), (0, 0)):  # of two units, and half of one
        mask["w"] = np.arange(8).reshape(4, 2) < kept
        sparsity = masks.effective_sparsity(
            mask, lambda p, x: x @ p["v"] @ p["w"] + p["b"], params, jnp.ones((1, 2))
        )
        assert sparsity == 1 - on_paths / 16


def test_a_loop_that_cannot_be_followed_is_told() -> None:
    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return jax.lax.while_loop(
            lambda x: jnp.sum(x) < 9, lambda x: x @ params["w"], x
        )

    with pytest.raises(ValueError, match="operation 'while', through which paths"):
        masks.effective(
            {"w": np.ones((2, 2), bool)}, apply_fn, {"w": jnp.ones((2, 2))},
            jnp.ones((1, 2)),
        )  # fmt: skip
