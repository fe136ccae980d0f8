"""Meshes of devices, and the place of parameters and data on them.

A mesh has the axes ``data`` and ``model``. A batch is split over both, a parameter,
and whatever has its shape, over ``model``; XLA's partitioner (GSPMD) does the rest.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SMALL = 1024  # entries; to exchange fewer takes as long as to exchange one
# By default XLA for the CPU starts what it can as early as it can: it gathers all
# parameters before the first layer needs one, and keeps every whole gradient until it
# reduces them all at once.
_LITTLE_MEMORY: dict[str, str | bool] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cpu-all-reduce-combiner",
}


def make_mesh(axes: Mapping[str, int] | None = None) -> Mesh:
    """Returns a mesh, of GSPMD's automatic kind, with the axes ``data`` and ``model``.

    By default all devices are along ``data``. Several processes must use all devices.
    """
    devices = jax.devices()
    axes = {"data": 1 if axes else len(devices), "model": 1, **(axes or {})}
    size = math.prod(axes.values())
    text = ",".join(f"{name}={length}" for name, length in axes.items())
    if size > len(devices):
        remedy = "make it smaller"
        if devices[0].platform == "cpu":
            remedy += (
                ", or let a CPU pass for several devices with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={size}"
            )
        raise ValueError(
            f"config.mesh '{text}' asks for {size} devices, but there are "
            f"{len(devices)}; {remedy}"
        )
    processes = {device.process_index for device in devices}
    if size < len(devices) and len(processes) > 1:
        raise ValueError(
            f"config.mesh '{text}' is of {size} devices, but the {len(processes)} "
            f"processes have {len(devices)}; a mesh has to take them all"
        )
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=devices[:size],
    )


def tree_shardings(mesh: Mesh, tree: chex.ArrayTree) -> Any:
    """Returns the shardings of a pytree's leaves, by one rule for all of a state.

    A leaf is split over ``model`` along its largest dimension that the axis divides,
    the last of equal ones, and replicated along ``data``. So a parameter, its score,
    its mask and its momentum, which have one shape, are split alike. Small leaves, and
    leaves with no divisible dimension, are replicated.

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models", SC 2020, stage 3.
    """

    def sharding(leaf: chex.Array) -> NamedSharding:
        sizes, parts = np.shape(leaf), mesh.shape["model"]
        dimensions = [(n, axis) for axis, n in enumerate(sizes) if n % parts == 0]
        if math.prod(sizes) < SMALL or not dimensions:
            return replicated(mesh)
        _, axis = max(dimensions)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))

    return jax.tree.map(sharding, tree)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Returns the sharding of a batch, which splits its examples over all devices.

    ``leading`` is the number of axes before the axis of examples, e.g. 1 for a stack.
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises a ``ValueError`` unless the devices divide the examples of a batch."""
    if batch_size % mesh.size:
        least = batch_size + -batch_size % mesh.size
        raise ValueError(
            f"config.{field} is {batch_size}, which the {mesh.size} devices of the "
            f"mesh do not divide; make it a multiple, e.g. {least}"
        )


def gathered(mesh: Mesh, tree: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the parameters as every device needs them to compute; for use under jit.

    The gradient with respect to ``tree`` is split as ``tree`` is, so that a gather
    forward becomes a reduce-scatter backward.
    """
    return jax.tree.map(functools.partial(_gathered, mesh), tree)


def fully_sharded(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of parameters that lie on a mesh, to be differentiated.

    Each parameter is gathered where it is used, and again in the backward pass. The
    forward pass leaves it the outputs of products and convolutions, never a gathered
    parameter, so that a device need not hold them all at any time. If the mesh
    splits no parameter, it is the very ``function``.

    Rajbhandari et al., "ZeRO", SC 2020, stage 3.
    """
    if mesh.shape["model"] == 1:
        return function

    def of_sharded(params: chex.ArrayTree, *args: Any) -> Any:
        return function(gathered(mesh, params), *args)

    policy = jax.checkpoint_policies.dots_saveable
    remembering = jax.checkpoint(of_sharded, policy=policy)
    # The backward pass gathers anew from these. Inside a loop XLA would choose to
    # remember them gathered.
    return lambda params, *args: remembering(constrained(mesh, params), *args)


def constrained(mesh: Mesh, tree: chex.ArrayTree) -> chex.ArrayTree:
    """Constrains the leaves of a pytree to their shardings; for use under jit."""
    return jax.lax.with_sharding_constraint(tree, tree_shardings(mesh, tree))


def abstract(mesh: Mesh, tree: chex.ArrayTree) -> Any:
    return jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        tree,
        tree_shardings(mesh, tree),
    )


def jit(
    mesh: Mesh, function: Callable[..., Any], *, donate_argnums: Any = ()
) -> Callable[..., Any]:
    """Returns a function compiled for little memory, with its results laid on a mesh.

    It compiles for each new shape of its arguments, and forgets with the function.
    """
    programs: dict[Any, jax.stages.Compiled] = {}

    def call(*args: Any) -> Any:
        kinds = tuple(map(jax.typeof, jax.tree.leaves(args)))
        signature = jax.tree.structure(args), kinds
        if signature not in programs:
            placed = tree_shardings(mesh, jax.eval_shape(function, *args))
            jitted = jax.jit(
                function, out_shardings=placed, donate_argnums=donate_argnums
            )
            programs[signature] = compiled_for_memory(mesh, jitted.lower(*args))
        return programs[signature](*args)

    return call


def compiled(mesh: Mesh, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a program whose devices hold few gathered parameters at a time.

    If the mesh splits no parameter, it is XLA's own program.
    """
    if mesh.shape["model"] == 1:
        return lowered.compile()
    return compiled_for_memory(mesh, lowered)


def compiled_for_memory(mesh: Mesh, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a program that takes little memory, if more time.

    On CPUs it has a schedule for memory, and does not join all-reduces. Other platforms
    keep XLA's own schedule.
    """
    if {device.platform for device in mesh.devices.flat} != {"cpu"}:
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=_LITTLE_MEMORY)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # an XLA older than its schedulers' names


def _gathered(mesh: Mesh, param: chex.Array) -> chex.Array:
    def gather(_: Any, param: chex.Array) -> chex.Array:
        return jax.lax.with_sharding_constraint(param, replicated(mesh))

    def scatter(_: Any, grad: chex.Array) -> chex.Array:
        return jax.lax.with_sharding_constraint(grad, tree_shardings(mesh, grad))

    # Linear, so that forward mode goes through it as well, for products with Hessians.
    return jax.custom_derivatives.linear_call(gather, scatter, (), param)
