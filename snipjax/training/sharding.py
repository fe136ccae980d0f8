"""Many devices: how parameters and data lie on a mesh, and what is exchanged.

A mesh has the axes ``data`` and ``model``. A batch is split over both, a parameter,
and whatever has its shape, over ``model``; XLA's partitioner (GSPMD) does the rest.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snipjax import config as configs

_SMALL = 1024  # entries; to exchange fewer takes as long as to exchange one
_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# By default XLA for the CPU starts what it can as early as it can: it gathers all
# parameters before the first layer needs one, and keeps every whole gradient until it
# reduces them all at once.
_LITTLE_MEMORY = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cpu-all-reduce-combiner",
}


def mesh_of(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that a text such as ``data=4,model=2`` describes.

    Args:
      text: sizes of the axes, as :func:`snipjax.config.mesh_axes` reads them; empty,
        all devices are along ``data``.
      devices: what to choose from, the first ones; by default all there are.

    Returns:
      A mesh of the axes ``data`` and ``model``, of GSPMD's automatic kind.

    Raises:
      ValueError: if the text is malformed or asks for more devices than there are,
        or leaves some out where there are several processes.

    Example:
      >>> dict(mesh_of("data=1").shape)
      {'data': 1, 'model': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    axes = configs.mesh_axes(text) if text else {"data": len(devices), "model": 1}
    wanted = math.prod(axes.values())
    if wanted > len(devices):
        remedy = "make it smaller"
        if devices[0].platform == "cpu":
            remedy += (
                ", or let a CPU pass for several devices with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
            )
        raise ValueError(
            f"config.mesh '{text}' asks for {wanted} devices, but there are "
            f"{len(devices)}; {remedy}"
        )
    processes = {device.process_index for device in devices}
    if wanted < len(devices) and len(processes) > 1:
        raise ValueError(
            f"config.mesh '{text}' is of {wanted} devices, but the {len(processes)} "
            f"processes have {len(devices)}; a mesh has to take them all"
        )
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=devices[:wanted],
    )


def of(mesh: Mesh, tree: chex.ArrayTree, *, small: int = _SMALL) -> Any:
    """Returns where the leaves of a pytree lie: the one rule for all of a state.

    A leaf is split over ``model`` along its largest dimension that the axis divides
    (of equal ones the last), and replicated along ``data``. So a parameter, its score,
    its mask and its momentum, which have one shape, lie alike. Small leaves, and those
    that no dimension of is divided, are replicated.

    Args:
      mesh: of :func:`mesh_of`.
      tree: pytree of arrays or ``jax.ShapeDtypeStruct``, e.g. a training state.
      small: leaves of fewer entries are replicated.

    Returns:
      A pytree like ``tree`` of ``NamedSharding``.

    Example:
      >>> mesh = mesh_of("model=1")
      >>> tuple(of(mesh, {"w": jnp.ones((64, 32)), "b": jnp.ones(32)})["w"].spec)
      ('model',)

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models", SC 2020, stage 3.
    """

    def sharding(leaf: chex.Array) -> NamedSharding:
        shape = np.shape(leaf)
        dimensions = [
            (size, axis)
            for axis, size in enumerate(shape)
            if size % mesh.shape["model"] == 0
        ]
        if math.prod(shape) < small or not dimensions:
            return replicated(mesh)
        _, axis = max(dimensions)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))

    return jax.tree.map(sharding, tree)


def of_batch(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Returns where a batch lies: split over all devices along its examples.

    Args:
      mesh: of :func:`mesh_of`.
      leading: how many axes come before the one of the examples, e.g. 1 for a stack.

    Example:
      >>> tuple(of_batch(mesh_of("data=1")).spec)
      (('data', 'model'),)
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns where a value lies that every device has.

    Example:
      >>> tuple(replicated(mesh_of("data=1")).spec)
      ()
    """
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises a ``ValueError`` unless the devices get equally many examples of a batch.

    Args:
      mesh: of :func:`mesh_of`.
      batch_size: examples in a batch.
      field: the name of the configuration's field, for the message.

    Raises:
      ValueError: if the number of devices does not divide the batch.

    Example:
      >>> check_divides(mesh_of("data=1"), 100, "train.batch_size")
    """
    if batch_size % mesh.size:
        least = batch_size + -batch_size % mesh.size
        raise ValueError(
            f"config.{field} is {batch_size}, which the {mesh.size} devices of the "
            f"mesh do not divide; make it a multiple, e.g. {least}"
        )


def gathered(mesh: Mesh, tree: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the parameters as every device needs them to compute; for use under jit.

    The gradient with respect to ``tree`` is split as ``tree`` is (:func:`of`), so that
    what is a gather forward is a reduce-scatter backward.

    Args:
      mesh: of :func:`mesh_of`.
      tree: pytree of arrays.

    Returns:
      The same values, replicated.

    Example:
      >>> jax.jit(lambda w: gathered(mesh_of("data=1"), w))(jnp.ones(2))
      Array([1., 1.], dtype=float32)
    """
    return jax.tree.map(functools.partial(_gathered, mesh), tree)


def fully_sharded(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of parameters that lie on a mesh, to be differentiated.

    Each parameter is gathered where it is used, and again in the backward pass: what
    the forward pass leaves for it are the outputs of products and convolutions, never
    a gathered parameter, so that a device need not hold them all at any time.

    Args:
      mesh: of :func:`mesh_of`.
      function: ``(params, *args) -> anything``, e.g. a loss function.

    Returns:
      A function of the same arguments and values; the very ``function`` where the
      mesh splits no parameter.

    Example:
      >>> loss = lambda params, x: jnp.sum(params["w"] * x)
      >>> loss = fully_sharded(mesh_of("data=1"), loss)
      >>> float(loss({"w": jnp.ones(2)}, jnp.ones(2)))
      2.0

    Rajbhandari et al., "ZeRO", SC 2020, stage 3.
    """
    if mesh.shape["model"] == 1:
        return function

    def of_sharded(params: chex.ArrayTree, *args: Any) -> Any:
        return function(gathered(mesh, params), *args)

    return jax.checkpoint(of_sharded, policy=jax.checkpoint_policies.dots_saveable)


def compiled(mesh: Mesh, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a program whose devices hold few gathered parameters at a time.

    Args:
      mesh: of :func:`mesh_of`, which the program runs on.
      lowered: of ``jax.jit(f).lower(...)``.

    Returns:
      :func:`compiled_for_memory` where the mesh splits parameters, and what XLA makes
      of its own where it does not.

    Example:
      >>> program = compiled(mesh_of("data=1"), jax.jit(jnp.square).lower(3.0))
      >>> float(program(3.0))
      9.0
    """
    if mesh.shape["model"] == 1:
        return lowered.compile()
    return compiled_for_memory(mesh, lowered)


def compiled_for_memory(mesh: Mesh, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a program that takes little memory, if more time.

    Args:
      mesh: of :func:`mesh_of`, which the program runs on.
      lowered: of ``jax.jit(f).lower(...)``.

    Returns:
      What ``lowered.compile()`` returns, on CPUs with a schedule for memory and
      without joining all-reduces. The schedules of other platforms are left to XLA.

    Example:
      >>> lowered = jax.jit(jnp.square).lower(3.0)
      >>> float(compiled_for_memory(mesh_of("data=1"), lowered)(3.0))
      9.0
    """
    if {device.platform for device in mesh.devices.flat} != {"cpu"}:
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=_LITTLE_MEMORY)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # an XLA older than its schedulers' names


class Collective(NamedTuple):
    """An instruction of a compiled program by which devices exchange an array."""

    kind: str  # e.g. all-reduce
    dtype: str  # as XLA writes it, e.g. f32
    shape: tuple[int, ...]  # of the result, on one device
    bytes: int  # of the whole array: of a reduce-scatter, what is reduced
    group_size: int  # devices that exchange it among themselves


def collectives(program: Any) -> list[Collective]:
    """Returns what a compiled program has its devices exchange, array by array.

    An instruction in a loop is there once, however often the loop runs it.

    Args:
      program: of ``jax.jit(f).lower(...).compile()``, or its text.

    Returns:
      The collectives in the order of the program's text.

    Raises:
      ValueError: if the group of an instruction cannot be read.

    Example:
      >>> text = "%r = f32[4,8]{1,0} all-reduce(%x), replica_groups=[1,2]<=[2]"
      >>> collectives(text)[0]
      Collective(kind='all-reduce', dtype='f32', shape=(4, 8), bytes=128, group_size=2)
    """
    text = program if isinstance(program, str) else program.as_text()
    header = text.partition("\n")[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        result, kind, is_start = match.groups()
        arrays = _ARRAY.findall(result)
        if is_start and kind == "all-gather":  # of operands, then results
            arrays = arrays[len(arrays) // 2 :]
        elif is_start and kind == "collective-permute":
            arrays = arrays[1:2]
        group_size = _group_size(kind, line, math.prod(map(int, counts)))
        for dtype, dimensions in arrays:
            shape = tuple(int(size) for size in dimensions.split(",") if size)
            whole = math.prod(shape) * (group_size if kind == "reduce-scatter" else 1)
            size = -(-whole * _bits(dtype) // 8)
            found.append(Collective(kind, dtype, shape, size, group_size))
    return found


def bytes_per_device(exchanged: Iterable[Collective]) -> float:
    r"""Returns the bytes that each device sends, by the algorithms on a ring.

    Of an array of :math:`S` bytes and a group of :math:`n` devices, an all-reduce
    sends :math:`2 \frac{n-1}{n} S`; an all-gather, a reduce-scatter and an all-to-all
    :math:`\frac{n-1}{n} S`; a permutation or broadcast :math:`S`.

    Args:
      exchanged: of :func:`collectives`.

    Returns:
      The sum over them.

    Example:
      >>> bytes_per_device([Collective("all-reduce", "f32", (4, 8), 128, 4)])
      192.0

    Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", JPDC 2009.
    """
    return float(sum(_sent(one) for one in exchanged))


def _sent(one: Collective) -> float:
    share = (one.group_size - 1) / one.group_size
    if one.kind == "all-reduce":
        return 2 * share * one.bytes
    if one.kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return share * one.bytes
    return one.bytes


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def _group_size(kind: str, line: str, all_devices: int) -> int:
    """Devices in a group, in any of the forms that XLA writes groups in."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        return len(set(re.findall(r"\d+", pairs[1]))) if pairs else all_devices
    groups = line.partition("replica_groups=")[2]
    # {{0,1},{2,3}}
    if match := re.match(r"\{\{([\d,]*)\}", groups):
        return len(match[1].split(","))
    # [2,4]<=[8], two groups of four
    if match := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(match[1])
    # mesh['a'=2,'b'=4] {'b'}, or a part of an axis, {'b':(1)2}
    if match := re.match(r"mesh\[(.*?)\].*?\{('.*?)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if groups.startswith("{}") and all_devices:
        return all_devices
    raise ValueError(
        f"the group of devices of this {kind} cannot be read: {line.strip()}"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(mesh: Mesh, param: chex.Array) -> chex.Array:
    return jax.lax.with_sharding_constraint(param, replicated(mesh))


def _gathered_forward(mesh: Mesh, param: chex.Array) -> tuple[chex.Array, None]:
    return _gathered(mesh, param), None


def _gathered_backward(mesh: Mesh, _: None, grad: chex.Array) -> tuple[chex.Array]:
    return (jax.lax.with_sharding_constraint(grad, of(mesh, grad)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
