"""Small networks of every kind of pytree, and how hypothesis searches."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import HealthCheck, settings
from jax.experimental.compilation_cache import compilation_cache

from snipjax.models import layers
from tests import devices

# The first call of a shape compiles, so that examples differ widely in time.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")


class Network(NamedTuple):
    """A regression problem small enough for brute force."""

    loss_fn: Callable[[chex.ArrayTree, Any], chex.Array]
    params: chex.ArrayTree
    batch: dict[str, np.ndarray]


def batch_of(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(size, 3)).astype(np.float32),
        "y": rng.normal(size=(size, 2)).astype(np.float32),
    }


def stacked(batches: list[Any]) -> Any:
    """The batches along a new leading axis of every leaf."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def flatten(tree: chex.ArrayTree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def largest_by_sorting(leaves: list[np.ndarray], k: int) -> list[np.ndarray]:
    """Masks of the k largest entries of all leaves, of equal ones the first."""
    flat = np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    parts = np.split(mask, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]


def on_eight_devices(script: str) -> None:
    """Runs a script in a process of its own that has eight devices."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parents[1],
        env=devices(8),
        check=True,
    )


def squared_error(prediction: chex.Array, target: chex.Array) -> chex.Array:
    return jnp.mean((prediction - target) ** 2)


def nested_dict() -> Network:
    rng = np.random.default_rng(1)
    params = {
        "hidden": {
            "kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
        },
        "out": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)},
    }

    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        hidden = batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"]
        return squared_error(jnp.tanh(hidden) @ params["out"]["kernel"], batch["y"])

    return Network(loss_fn, params, batch_of(5))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        return nn.Dense(2)(nn.tanh(nn.LayerNorm()(nn.Dense(4)(x))))


class ConvNet(nn.Module):
    """Convolutions that are products on the CPU, batch norm and max-pooling."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        for _ in range(2):
            x = layers.Conv(16, (3, 3), dtype=self.dtype)(x)
            x = layers.max_pool(layers.normalized(x, train, self.dtype))
        return layers.Dense(10, dtype=self.dtype)(layers.flatten(x))


def linen() -> Network:
    model, batch = LinenNet(), batch_of(5)
    params = model.init(jax.random.key(2), batch["x"])["params"]

    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return squared_error(model.apply({"params": params}, batch["x"]), batch["y"])

    return Network(loss_fn, params, batch)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x: chex.Array) -> chex.Array:
        return self.layers[0](jnp.tanh(self.norm(self.hidden(x))))


def nnx_state() -> Network:
    graph, params = nnx.split(NnxNet(nnx.Rngs(3)), nnx.Param)

    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return squared_error(nnx.merge(graph, params)(batch["x"]), batch["y"])

    return Network(loss_fn, params, batch_of(5))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Mlp:
    """What ``equinox.filter`` leaves of a module: None where there was no array."""

    layers: tuple[Linear, ...]
    activation: Any = None


def equinox_style() -> Network:
    rng = np.random.default_rng(4)
    params = Mlp(
        (
            Linear(
                jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
                jnp.asarray(rng.normal(size=4), jnp.float32),
            ),
            Linear(jnp.asarray(rng.normal(size=(2, 4)), jnp.float32), None),
        )
    )

    def loss_fn(params: Mlp, batch: Any) -> chex.Array:
        first, second = params.layers
        hidden = jnp.tanh(batch["x"] @ first.weight.T + first.bias)
        return squared_error(hidden @ second.weight.T, batch["y"])

    return Network(loss_fn, params, batch_of(5))


NETWORKS = {
    "nested dict": nested_dict,
    "Flax Linen": linen,
    "Flax NNX": nnx_state,
    "Equinox style": equinox_style,
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> Network:
    return request.param()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compile_once(compiled: Path) -> Iterator[None]:
    """Runs of the same network share what is compiled, of other modules too."""
    options = {
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
