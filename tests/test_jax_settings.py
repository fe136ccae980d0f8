"""Every criterion and selection under the settings of JAX that users turn on.

Most settings speak while a function is traced, so that nothing is compiled for them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from snipjax import masks, optim, pruning, saliency
from tests.conftest import on_eight_devices

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")


def init_fn(key: chex.PRNGKey) -> dict[str, chex.Array]:
    return {
        "hidden": jax.random.normal(key, (8, 16), jnp.bfloat16),
        "bias": jnp.zeros(16, jnp.float32),
        "out": jax.random.normal(key, (16, 8), jnp.float32),
    }


def apply_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    assert params["hidden"].dtype == jnp.bfloat16
    hidden = x @ params["hidden"].astype(jnp.float32) + params["bias"][None]
    return jnp.tanh(hidden) @ params["out"]


def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
    return jnp.mean((apply_fn(params, batch["x"]) - batch["y"]) ** 2)


def batch() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    return {"x": x, "y": x[::-1]}


NETWORK = {"apply_fn": apply_fn, "inputs": np.ones((8, 8), np.float32)}
CRITERIA = {
    **{
        name: getattr(saliency, name)
        for name in (
            *("snip", "magnitude", "random", "grasp", "grasp_magnitude", "fisher"),
            *("prospr", "prospr_first_order", "taylor", "taylor_fisher", "obd"),
        )
    },
    "synflow": functools.partial(saliency.synflow, **NETWORK),
    "synflow_l2": functools.partial(saliency.synflow_l2, **NETWORK),
    "ntk_sap": functools.partial(saliency.ntk_sap, init_fn=init_fn, **NETWORK),
}
# Of the whole Hessian, which no mesh is needed for.
OF_HESSIANS = {
    "exact obd": functools.partial(saliency.obd, num_samples=None),
    "obs": saliency.obs,
}
SELECTIONS = {
    "global": masks.global_topk,
    "layerwise": masks.layerwise_topk,
    "minimum density": masks.with_minimum_density(0.1),
    "erk": masks.by_allocation(masks.erk),
    "2:4": masks.n_of_m(2, 4),
    "blocks": masks.blocks((4, 4)),
    "units": masks.units(),
    "groups": masks.by_group({"hidden": "a", "out": "b"}.get, {"a": 0.25}),
}
# Each criterion once, and each selection once.
PARTS = {
    **{name: (c, masks.global_topk) for name, c in (CRITERIA | OF_HESSIANS).items()},
    **{name: (saliency.snip, select) for name, select in SELECTIONS.items()},
}
every_part = pytest.mark.parametrize(
    ("criterion", "select"), PARTS.values(), ids=PARTS.keys()
)


def prune(
    criterion: Callable, select: Callable, params: chex.ArrayTree, batch: Any
) -> Any:
    return pruning.prune(
        loss_fn,
        params,
        batch,
        0.5,
        criterion=criterion,
        select=select,
        key=jax.random.key(0),
    )


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """No promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@every_part
@pytest.mark.parametrize(
    "setting",
    [strictly, jax.checking_leaks, functools.partial(jax.enable_x64, True)],
    ids=["strictly", "checking leaks", "double precision"],
)
def test_settings_of_tracing(
    setting: Callable, criterion: Callable, select: Callable
) -> None:
    params = jax.eval_shape(init_fn, jax.random.key(0))
    with setting():
        params, mask = jax.eval_shape(
            functools.partial(prune, criterion, select), params, batch()
        )
    assert jax.tree.map(lambda w: w.dtype, params) == {
        "hidden": jnp.bfloat16,
        "bias": jnp.float32,
        "out": jnp.float32,
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(mask)} == {jnp.dtype(bool)}


@every_part
def test_inside_shard_map_with_its_checks(
    criterion: Callable, select: Callable
) -> None:
    mesh = AbstractMesh((4,), ("d",), axis_types=(AxisType.Auto,))
    on_all, split = PartitionSpec(), PartitionSpec("d")

    def of_device(params: chex.ArrayTree, batch: Any) -> chex.Array:
        params = jax.tree.map(lambda w: w[0], params)
        return prune(criterion, select, params, batch)[1]["hidden"][None]

    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(split, on_all), out_specs=split
    )
    params = jax.eval_shape(jax.vmap(init_fn), jax.random.split(jax.random.key(0), 4))
    assert jax.eval_shape(mapped, params, batch()).shape == (4, 8, 16)


def check_on_an_explicit_mesh() -> None:
    """Prunes by each part where the types of arrays say how they are divided."""
    params = init_fn(jax.random.key(0))
    specs = {"hidden": (None, None), "bias": (None,), "out": (None, "d")}
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))):
        sharded = {
            name: jax.device_put(params[name], PartitionSpec(*spec))
            for name, spec in specs.items()
        }
        for name, (criterion, select) in PARTS.items():
            if name in OF_HESSIANS or name == "blocks":  # which span devices
                continue
            _, mask = jax.eval_shape(
                functools.partial(prune, criterion, select), sharded, batch()
            )
            for leaf in ("hidden", "out"):
                assert mask[leaf].sharding.spec == PartitionSpec(*specs[leaf]), name


def test_on_an_explicit_mesh() -> None:
    on_eight_devices(
        f"from {__name__} import check_on_an_explicit_mesh as check; check()"
    )


# Settings that speak while a program runs.


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(jax.disable_jit, marks=pytest.mark.slow),
        functools.partial(jax.debug_nans, True),
    ],
)
def test_settings_of_running(setting: Callable) -> None:
    params = init_fn(jax.random.key(0))
    with setting():
        params, mask = prune(saliency.snip, masks.global_topk, params, batch())
        assert masks.sparsity(mask) == 0.5
        optimizer = optim.sparse(optax.sgd(0.5), mask)
        optimizer.update(params, optimizer.init(params), params)
