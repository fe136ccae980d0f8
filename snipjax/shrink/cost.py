"""The cost of a network, dense, masked and smaller: size, operations, memory, time."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import sparse

from snipjax import masks
from snipjax._src import text, trees
from snipjax._src.types import Mask
from snipjax.shrink.layers import Units
from snipjax.shrink.removal import removed
from snipjax.shrink.units import units


class Variant(NamedTuple):
    r"""Holds the cost of one form of a network.

    The sizes of :math:`n` entries of :math:`b` bytes in :math:`r` rows, :math:`\kappa`
    of them kept, are

    .. math:: \mathrm{dense} = b n, \; \mathrm{bitmask} = b \kappa + \lceil n/8 \rceil,
              \; \mathrm{csr} = (b + 4) \kappa + 4 (r + 1).

    Attributes:
      name: dense, masked or smaller.
      parameters: number of entries that are stored in dense arrays.
      kept: number of entries that the mask keeps.
      dense_bytes: size of dense arrays.
      bitmask_bytes: size of the values kept and a bit for each entry.
      csr_bytes: size of the values kept in compressed sparse rows, with 32-bit indices.
      operations: floating-point operations of the products in a forward pass, two for
        each multiplication.
      peak_bytes: memory of a training step by XLA's account: arguments, results and
        temporary arrays.
      forward_seconds: median time of a forward pass.
      step_seconds: median time of a gradient and an update of all parameters.

    Example:
      >>> form = Variant("masked", 8, 2, 32, 9, 28, 16, 96, 1.0, step_seconds=3.0)
      >>> form.kept / form.parameters
      0.25
    """

    name: str
    parameters: int
    kept: int
    dense_bytes: int
    bitmask_bytes: int
    csr_bytes: int
    operations: int
    peak_bytes: int
    forward_seconds: float
    step_seconds: float


class Csr(NamedTuple):
    """Holds the time of one product with a kernel, as a dense and as a sparse matrix.

    Attributes:
      name: name of the kernel, such as ``Dense_0/kernel``.
      sparsity: share of its entries that are pruned.
      dense_seconds: median time of the product with the dense matrix.
      csr_seconds: median time of the product with compressed sparse rows.

    Example:
      >>> row = Csr("w", 0.9, dense_seconds=2.0, csr_seconds=1.0)
      >>> row.dense_seconds / row.csr_seconds
      2.0
    """

    name: str
    sparsity: float
    dense_seconds: float
    csr_seconds: float


class Cost(NamedTuple):
    """Holds the costs of a network's forms, and of its kernels as sparse matrices.

    ``str`` gives a table with a column for each form.

    Attributes:
      variants: the dense, the masked and the smaller network.
      csr: a row for each kernel that is a matrix with pruned entries; empty if the
        backend is no CPU.

    Example:
      >>> sizes = (1_000, 1_000, 4_000, 4_000, 4_000, 2_000, 9_000)
      >>> variant = Variant("dense", *sizes, forward_seconds=0.5, step_seconds=1.5)
      >>> print(Cost((variant,), ()))  # doctest: +ELLIPSIS
                       dense
      parameters       1,000
      ...
      forward_seconds    0.5
      step_seconds       1.5
    """

    variants: tuple[Variant, ...]
    csr: tuple[Csr, ...]

    def __str__(self) -> str:
        head = ["", *(variant.name for variant in self.variants)]
        rows = [head] + [
            [field, *(_written(getattr(v, field)) for v in self.variants)]
            for field in Variant._fields[1:]
        ]
        table = text.aligned(rows)
        if not self.csr:
            return table
        rows = [["kernel", *Csr._fields[1:]]]
        rows += [list(map(_written, row)) for row in self.csr]
        return f"{table}\n\n{text.aligned(rows)}"


def cost(
    apply_fn: Callable[..., Any],
    params: chex.ArrayTree,
    mask: Mask,
    *inputs: Any,
    repeats: int = 10,
) -> Cost:
    r"""Measures a network dense, masked, and without the units that the mask prunes.

    .. math:: f(w, x), \quad f(c \odot w, x), \; f_\mathrm{small}(w_\mathrm{small}, x)

    for the mask :math:`c` are the forms that are measured; the last two are equal.

    Times are medians of calls that take turns, after one that compiles. On a CPU the
    products with kernels that are matrices are measured as compressed sparse rows too,
    :class:`jax.experimental.sparse.BCSR`. A mask saves no time: a product with zeros
    takes as long as any other.

    Args:
      apply_fn: ``(params, *inputs) -> outputs``, a traceable function.
      params: pytree of floating-point arrays.
      mask: pytree of bools like ``params``.
      *inputs: pytrees of arrays, such as a batch of images.
      repeats: calls of each function that are measured.

    Returns:
      The costs; printed, they are a table.

    Raises:
      ValueError: if the mask does not fit, or prunes all units of a layer.

    Example:
      >>> params, mask = {"w": jnp.ones(8)}, {"w": jnp.arange(8) < 2}
      >>> apply_fn = lambda params, x: x * params["w"]
      >>> table = cost(apply_fn, params, mask, jnp.ones((1, 8)), repeats=1)
      >>> [(form.name, form.kept, form.bitmask_bytes) for form in table.variants[:2]]
      [('dense', 8, 32), ('masked', 2, 9)]
    """
    found = units(apply_fn, params, *inputs)
    gone = removed(found, mask)
    masked, everything = masks.apply(mask, params), masks.ones(params, lambda *_: False)
    small_apply, small_params = gone.function(apply_fn), gone.params(masked)
    small = units(small_apply, small_params, *inputs)
    forms = (
        _Form("dense", apply_fn, params, everything, found),
        _Form("masked", apply_fn, masked, mask, found),
        _Form("smaller", small_apply, small_params, gone.params(mask), small),
    )
    forward, steps = (
        [jax.jit(f).lower(form.params, *inputs).compile() for f, form in pairs]
        for pairs in (
            [(form.apply_fn, form) for form in forms],
            [(_step(form.apply_fn), form) for form in forms],
        )
    )
    forward_seconds, step_seconds = (
        seconds_in_turns(
            [
                functools.partial(f, form.params, *inputs)
                for f, form in zip(calls, forms)
            ],
            repeats,
        )
        for calls in (forward, steps)
    )
    measured = zip(forms, map(_peak, steps), forward_seconds, step_seconds)
    is_cpu = jax.default_backend() == "cpu"
    batch = next((len(x) for x in jax.tree.leaves(inputs) if jnp.ndim(x)), 1)
    return Cost(
        tuple(_variant(form, *rest) for form, *rest in measured),
        _csr(masked, mask, batch, repeats) if is_cpu else (),
    )


class _Form(NamedTuple):
    """A form of a network: a function, its parameters, the mask, and its units."""

    name: str
    apply_fn: Callable[..., Any]
    params: chex.ArrayTree
    mask: Mask
    units: Units


def _step(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    def step(params: chex.ArrayTree, *inputs: Any) -> chex.ArrayTree:
        def loss(params: chex.ArrayTree) -> chex.Array:
            outputs = jax.tree.leaves(apply_fn(params, *inputs))
            real = [x for x in outputs if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum((jnp.mean(jnp.square(x)) for x in real), start=jnp.zeros(()))

        return jax.tree.map(lambda w, g: w - 1e-3 * g, params, jax.grad(loss)(params))

    return step


def _peak(compiled: Any) -> int:
    found = compiled.memory_analysis()
    if found is None:
        return 0
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def seconds_in_turns(
    functions: Sequence[Callable[[], Any]], repeats: int = 10
) -> list[float]:
    r"""Returns the median time of each function, whose calls take turns.

    .. math:: \bar t_f = \mathrm{median}(t_{f1}, \dots, t_{fR})

    over :math:`R` calls. Each function is called once before, to be compiled, and waits
    for its results.

    Args:
      functions: functions without arguments that return pytrees of arrays.
      repeats: number of calls :math:`R` of each.

    Returns:
      Seconds, a float for each function.

    Example:
      >>> seconds = seconds_in_turns([lambda: jnp.ones(3), lambda: jnp.ones(9)])
      >>> len(seconds)
      2
    """
    return list(map(statistics.median, times_in_turns(functions, repeats)))


def times_in_turns(
    functions: Sequence[Callable[[], Any]], repeats: int
) -> list[list[float]]:
    """Returns seconds of each function's calls, which take turns after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        jax.block_until_ready(function())
    for _ in range(repeats):
        for function, found in zip(functions, times):
            began = time.perf_counter()
            jax.block_until_ready(function())
            found.append(time.perf_counter() - began)
    return times


def _variant(form: _Form, *measured: Any) -> Variant:
    total = kept = dense = bitmask = csr = 0
    for leaf, keep in zip(jax.tree.leaves(form.params), jax.tree.leaves(form.mask)):
        size, width = leaf.size, leaf.dtype.itemsize
        number = int(jnp.sum(keep)) if jnp.ndim(keep) else size
        total, kept, dense = total + size, kept + number, dense + size * width
        if number == size:  # stored as it is
            bitmask, csr = bitmask + size * width, csr + size * width
        else:
            bitmask += number * width + -(-size // 8)
            csr += number * (width + 4) + 4 * (size // leaf.shape[-1] + 1)
    operations = sum(count.whole for count in form.units.products)
    return Variant(form.name, total, kept, dense, bitmask, csr, operations, *measured)


def _csr(
    masked: chex.ArrayTree, mask: Mask, batch: int, repeats: int
) -> tuple[Csr, ...]:
    rows = []
    for (name, kernel), keep in zip(trees.named_leaves(masked), jax.tree.leaves(mask)):
        if kernel.ndim != 2 or not jnp.ndim(keep) or bool(jnp.all(keep)):
            continue
        # The only form with a kernel of its own on the CPU: a sparse left side.
        compressed = sparse.BCSR.fromdense(kernel.T)
        x = jnp.ones((batch, kernel.shape[0]), kernel.dtype)
        by_rows = jax.jit(lambda matrix, x: (matrix @ x.T).T)
        by_dense = jax.jit(lambda kernel, x: x @ kernel)
        seconds = seconds_in_turns(
            [
                functools.partial(by_dense, kernel, x),
                functools.partial(by_rows, compressed, x),
            ],
            repeats,
        )
        rows.append(Csr(name, 1 - float(jnp.mean(keep)), *seconds))
    return tuple(rows)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value
