"""Networks side by side: one or many seeds, each network whole on one device."""

import contextlib
import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snipjax.ops.support import SIDE_BY_SIDE
from snipjax.training import loop
from snipjax.training.placement import Placement, Task, snapshot
from snipjax.training.state import Batch, Metrics, TrainState
from snipjax.training.step import evaluate, over_batches, preparation

# The axes of networks in a training state; all networks have the step in common.
AXES = TrainState(None, 0, 0, 0, 0)
_WHOLE, _NETWORKS = PartitionSpec(), PartitionSpec("networks")
_SPECS = TrainState(_WHOLE, _NETWORKS, _NETWORKS, _NETWORKS, _NETWORKS)
# A state may take this share of the memory: training holds a second one, and gradients.
_SHARE_OF_MEMORY = 0.1


class Arrays(NamedTuple):
    """The examples of an experiment as arrays."""

    train: Batch
    validation: Batch
    test: Batch


def side_by_side(
    task: Task,
    arrays: Arrays,
    like: TrainState,
    seeds: range,
    *,
    has_rounds: bool = False,
) -> Placement:
    """Returns the placement of networks that each fit a device, with all of the data.

    All devices have as many networks. A CPU's device takes its own one after the other
    inside one program: there batched products of matrices are slower than as many
    single ones. Elsewhere they go under `jax.vmap`. A state has a network for each seed
    along the leading axis of every leaf but the step.
    """
    mesh = network_mesh(len(seeds))
    prepare = preparation(task.preprocess, task.augment)
    if mesh.size > 1:
        arrays = jax.device_put(arrays, NamedSharding(mesh, _WHOLE))

    def on_devices(function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
        if mesh.size == 1:
            return function
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(_SPECS, _WHOLE),
            out_specs=out_specs,
            check_vma=False,  # networks have nothing to do with each other
        )

    @functools.partial(jax.jit, static_argnames="num_steps", donate_argnums=0)
    def train_steps(
        state: TrainState, examples: Batch, *, num_steps: int
    ) -> tuple[TrainState, Metrics]:
        def network(state: TrainState, examples: Batch) -> tuple[TrainState, Metrics]:
            return over_batches(
                lambda state, batch, key: task.step(state, batch),
                state,
                examples,
                start=state.step,
                key=state.key,
                num_steps=num_steps,
                batch_size=task.batch_size,
                prepare=prepare,
            )

        def steps(state: TrainState, examples: Batch) -> tuple[TrainState, Metrics]:
            after, metrics = over_networks(network, state, examples)
            return after._replace(step=state.step + num_steps), metrics

        return on_devices(steps, (_SPECS, _NETWORKS))(state, examples)

    @jax.jit
    def evaluation(state: TrainState, examples: Batch) -> Metrics:
        def network(state: TrainState, examples: Batch) -> Metrics:
            return evaluate(
                state.params,
                state.batch_stats,
                examples,
                model=task.model,
                preprocess=task.preprocess,
                loss=task.loss,
            )

        networks = functools.partial(over_networks, network)
        return on_devices(networks, _NETWORKS)(state, examples)

    programs = loop.Programs(
        train_steps=lambda state, step, num_steps: train_steps(
            state, arrays.train, num_steps=num_steps
        ),
        evaluate=lambda state: {
            "val": evaluation(state, arrays.validation),
            "test": evaluation(state, arrays.test),
        },
        snapshot=jax.jit(snapshot),
        choose=choose,
    )

    @jax.jit
    def one(tree: Any, index: chex.Array) -> Any:
        # The step is a scalar, which all have in common.
        return jax.tree.map(lambda x: x[index] if x.ndim else x, tree)

    def start(function: Callable[..., TrainState], mask: chex.ArrayTree) -> TrainState:
        on_device = jnp.asarray(seeds, jnp.uint32)
        if len(seeds) > 1:
            return jax.vmap(function, out_axes=AXES)(on_device, mask)
        # By the program that the sample for saliency was drawn with.
        state = function(on_device[0], one(mask, 0))
        return TrainState(state.step, *expanded(state[1:]))

    def stacked(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(seeds), *leaf.shape), leaf.dtype)

    return Placement(
        seeds=seeds,
        like=TrainState(like.step, *jax.tree.map(stacked, like[1:])),
        score=functools.partial(for_each_seed, seeds, has_rounds=has_rounds),
        start=start,
        training=lambda step: contextlib.nullcontext(programs),
        networks=lambda tree: (one(tree, index) for index in range(len(seeds))),
        put=functools.partial(spread, mesh),
        # A run may go on with other devices.
        portable=lambda tree: jax.device_put(tree, jax.local_devices()[0]),
    )


def over_networks(function: Callable[..., Any], state: TrainState, *args: Any) -> Any:
    """Returns ``function(network, *args)`` for every network of a state, stacked."""

    def network(*rest: Any) -> Any:
        return function(TrainState(state.step, *rest), *args)

    if len(state.key) == 1:
        only = network(*jax.tree.map(lambda x: x[0], state[1:]))
        return jax.tree.map(lambda x: x[None], only)
    if jax.default_backend() != "cpu":
        return jax.vmap(network, axis_name=SIDE_BY_SIDE)(*state[1:])
    return jax.lax.map(lambda rest: network(*rest), state[1:])


def for_each_seed(
    seeds: range,
    function: Callable[..., Any],
    batch: Callable[[chex.Array], Any],
    *,
    has_rounds: bool = False,
) -> Any:
    """Returns ``function(seed, batch(seed))`` for every seed, stacked.

    One seed runs as it is. On a CPU several run one after the other, so that the memory
    holds one mini-batch at a time, which may be most of the data set. Elsewhere they
    run under `jax.vmap`.

    All is one program, but of a function that has rounds: each program in it then runs
    by itself, as it would outside of any, and is compiled once for all rounds and
    seeds.
    """
    compile_all = programs_apart if has_rounds else jax.jit
    on_device = jnp.asarray(seeds, jnp.uint32)
    if len(seeds) == 1:
        return expanded(function(on_device[0], batch(on_device[0])))
    if jax.default_backend() != "cpu":
        mapped = jax.vmap(function, axis_name=SIDE_BY_SIDE)
        return compile_all(mapped)(on_device, jax.vmap(batch)(on_device))
    compiled = compile_all(function)
    # Blocking, or the host could run ahead and make the mini-batches of all.
    results = [jax.block_until_ready(compiled(seed, batch(seed))) for seed in on_device]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@functools.partial(jax.jit, donate_argnums=0)
def expanded(tree: Any) -> Any:
    """Returns the state, or another tree, of one network with a leading axis."""
    return jax.tree.map(lambda x: x[None], tree)


def programs_apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function traced once, whose programs run one after the other.

    It is for arguments of one structure, with leaves of one shape and dtype each.
    """
    traced: list[Any] = []

    def call(*args: Any) -> Any:
        if not traced:
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            traced.extend((jaxpr_as_fun(closed), jax.tree.structure(shape)))
        run, structure = traced
        return jax.tree.unflatten(structure, run(*jax.tree.leaves(args)))

    return call


def network_mesh(networks: int) -> Mesh:
    """Returns the devices for some networks, of which each has equally many.

    All devices have some if the number of networks is a multiple of theirs.
    """
    devices = jax.local_devices()[:networks]
    used = max(n for n in range(1, len(devices) + 1) if networks % n == 0)
    return Mesh(np.array(devices[:used]), ("networks",))


def groups(seeds: range, at_once: int) -> list[tuple[int, int]]:
    """Returns the first and last seeds of groups of networks side by side.

    Example:
      >>> groups(range(3), at_once=2)
      [(0, 1), (2, 2)]
    """
    devices = jax.local_device_count()
    size = min(at_once, len(seeds))
    if size > devices:  # all devices have as many
        size -= size % devices
    starts = range(seeds.start, seeds.stop, size)
    return [(first, min(first + size, seeds.stop) - 1) for first in starts]


def spread(mesh: Mesh, state: TrainState) -> TrainState:
    """Returns a state of networks side by side, with as many on each device."""
    if mesh.size == 1:
        return state
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), _SPECS)
    return TrainState(*map(jax.device_put, state, shardings))


def choose(is_better: np.ndarray, new: Any, old: Any) -> Any:
    """Returns the new leaves of networks that are better, and the old of the others.

    All arrays have a leading axis of networks.
    """
    if is_better.all():
        return new
    return jax.tree.map(
        lambda x, y: jnp.where(is_better.reshape(-1, *[1] * (x.ndim - 1)), x, y),
        new,
        old,
    )


def number_that_fits(state: Any, batch: Any) -> int:
    """Returns the number of networks that the memory holds side by side, at least 1."""
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    # On a CPU there is one mini-batch at a time.
    trees = state if jax.default_backend() == "cpu" else (state, batch)
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(trees))
    return max(1, int(_SHARE_OF_MEMORY * memory / size))
