"""Functions as files for other runtimes: StableHLO and ONNX.

A network without the units that a mask prunes, of :func:`snipjax.shrink.shrink`, is
exported like any other, and is as small as a file.
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.export
from jax.extend import core

from snipjax._src import jaxprs
from snipjax.io import files


def stablehlo(
    apply_fn: Callable[..., Any],
    params: chex.ArrayTree,
    path: str | os.PathLike,
    *inputs: Any,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Writes a network with its parameters as StableHLO, which JAX reads back.

    :mod:`jax.export` defines the file; ``jax.export.deserialize`` reads it. A batch
    of any size is an input of symbolic shape.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function.
      params: pytree of arrays, which are constants in the file.
      path: path of the file; an earlier one is replaced at once.
      *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``.
      platforms: platforms that the file is for.

    Raises:
      OSError: if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "net.jax")
      >>> (batch,) = jax.export.symbolic_shape("batch")
      >>> x = jax.ShapeDtypeStruct((batch, 2), "float32")
      >>> stablehlo(lambda params, x: x @ params, jnp.ones((2, 1)), path, x)
      >>> jax.export.deserialize(path.read_bytes()).call(jnp.ones((3, 2))).shape
      (3, 1)
    """
    function = jax.jit(lambda *inputs: apply_fn(params, *inputs))
    exported = jax.export.export(function, platforms=platforms)(*inputs)
    with files.replacing(Path(path)) as partial:
        partial.write_bytes(exported.serialize())


def onnx(
    apply_fn: Callable[..., Any],
    params: chex.ArrayTree,
    path: str | os.PathLike,
    *inputs: Any,
) -> None:
    """Writes a network with its parameters as ONNX, for ONNX Runtime and others.

    It is converted by jax2onnx, of the extra ``onnx``. If a network has functions of
    its own for some platforms, the file has the one for all others.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function.
      params: pytree of arrays, which are constants in the file.
      path: path of the file; an earlier one is replaced at once.
      *inputs: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ModuleNotFoundError: without jax2onnx.
      NotImplementedError: for an operation that jax2onnx does not know.
      OSError: if the file cannot be written.

    Example:
      .. code-block:: python

        from snipjax import shrink
        from snipjax.io import export

        small_apply, small_params = shrink.shrink(apply_fn, params, mask, images)
        export.onnx(small_apply, small_params, "network.onnx", images)
    """
    try:
        jax2onnx = importlib.import_module("jax2onnx")
    except ModuleNotFoundError as error:
        message = f"export to ONNX needs {error.name}: pip install 'snipjax[onnx]'"
        raise ModuleNotFoundError(message, name=error.name) from None

    function = portable(lambda *inputs: apply_fn(params, *inputs))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    # Traced first: while jax2onnx traces, functions of jax.numpy are others.
    closed = jax.make_jaxpr(function)(*shapes)
    model = jax2onnx.to_onnx(core.jaxpr_as_fun(closed), shapes)
    with files.replacing(Path(path)) as partial:
        partial.write_bytes(model.SerializeToString())


def portable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the same values, of operations that every runtime has.

    It has no branches for single platforms, and pools over as few axes as it can.

    Args:
      function: a traceable function of pytrees of arrays.

    Returns:
      A function of the same arguments and results.

    Example:
      >>> function = lambda x: jax.lax.platform_dependent(
      ...     x, cpu=jnp.sin, default=lambda x: 2 * jnp.sin(x) / 2)
      >>> print(jax.make_jaxpr(portable(function))(1.0).jaxpr.eqns[-1].primitive)
      div
    """

    def call(*inputs: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs)
        results = _run(closed, jax.tree.leaves(inputs))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _run(jaxpr: Any, operands: list[Any]) -> list[Any]:
    return jaxprs.outputs(jaxpr, operands, _step, lambda x: x)


def _step(equation: Any, operands: list[Any]) -> list[Any]:
    if equation.primitive.name == "platform_index":
        return [0]  # of no use to the only branch
    if equation.params.get("branches_platforms"):
        (branch,) = jaxprs.branches(equation)
        return _run(branch, operands[1:])
    if equation.primitive.name in jaxprs.CALLS:
        return _run(jaxprs.inner(equation), operands)
    if equation.primitive.name in ("reduce_window_max", "reduce_window_sum"):
        return [_pooled(equation, *operands)]
    return jaxprs.bind(equation, operands)


def _pooled(equation: Any, images: chex.Array) -> chex.Array:
    """Returns the result of a pooling, by one of images whose other axes are one."""
    params = equation.params
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    settings = list(zip(*(params[name] for name in names), params["padding"]))
    is_pooled = [(*s[:4], *s[4]) != (1, 1, 1, 1, 0, 0) for s in settings]
    pooled = [i for i, moves in enumerate(is_pooled) if moves]
    rest = [i for i, moves in enumerate(is_pooled) if not moves]
    flat = images.transpose(*rest, *pooled)
    shape = flat.shape[: len(rest)]
    flat = flat.reshape(-1, *flat.shape[len(rest) :])
    changes = {name: (1, *(params[name][i] for i in pooled)) for name in names}
    padding = ((0, 0), *(params["padding"][i] for i in pooled))
    (flat,) = jaxprs.bind(equation, [flat], padding=padding, **changes)
    order = [*rest, *pooled]
    places = [order.index(i) for i in range(len(order))]
    return flat.reshape(*shape, *flat.shape[1:]).transpose(*places)
