"""Criteria of the loss's curvature: optimal brain damage and optimal brain surgeon.

Both ask by how much the loss grows where a connection is removed at a minimum, to
second order. They are the criteria ``obd`` and ``obs`` of :mod:`snipjax.saliency`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import losses, trees
from snipjax._src.losses import Criterion, LossFn

# (setting, loss_fn, params in float32, batch, key) -> a pytree of arrays.
_Statistic = Callable[..., chex.ArrayTree]


def obd(key: chex.PRNGKey, *, num_samples: int | None = 16) -> Criterion:
    r"""Returns optimal brain damage's criterion: the diagonal of the curvature.

    .. math:: s_j = \tfrac{1}{2} h_{jj} w_j^2, \quad
              h_{jj} = \partial^2 L / \partial w_j^2

    with :func:`hessian_diagonal`'s ``h``. A score is negative where the curvature is:
    of a network of piecewise linear units under a convex loss (ReLU or max-pooling,
    cross entropy) that is rounding or the estimate's noise. Exact
    where the Hessian is diagonal, whatever ``num_samples`` is.

    Args:
      key: PRNG key of the estimate; the same key gives the same scores.
      num_samples: products with the Hessian, for each batch, that the estimate is the
        mean of; None for the exact diagonal, which takes one for each parameter and
        is for small networks.

    Returns:
      A criterion, ``(loss_fn, params, batch) -> scores``; ``params`` are those of a
      trained network, and ``batch`` may be an iterator of batches, over which the
      Hessian is averaged. It raises a ``ValueError`` where
      :func:`snipjax.saliency.snip` does.

    Raises:
      ValueError: if ``num_samples`` is not a positive integer.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> criterion = obd(jax.random.key(0), num_samples=1)
      >>> criterion(loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.array([2.0, 1.0]))
      {'w': Array([2., 9.], dtype=float32)}

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, equation 5; the estimate
    is that of Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix",
    2007.
    """
    _check_num_samples(num_samples)

    def criterion(
        loss_fn: LossFn, params: chex.ArrayTree, batch: Any
    ) -> chex.ArrayTree:
        diagonal = hessian_diagonal(
            loss_fn, params, batch, key=key, num_samples=num_samples
        )
        return _half_of_square(diagonal, _in_float32(params))

    return criterion


def obs(
    *, damping: float = 1e-4, per_leaf: bool = False, max_size: int = 2048
) -> Criterion:
    r"""Returns optimal brain surgeon's criterion: the inverse of the curvature.

    .. math:: s_j = \frac{w_j^2}{2 [(H_+ + \alpha I)^{-1}]_{jj}}

    is by how much the loss grows where connection ``j`` is removed and all others
    make up for it as well as they can. :math:`H_+` is the Hessian of the loss
    without its negative eigenvalues, which Gauss and Newton's has not either.

    Args:
      damping: :math:`\alpha`, in units of curvature.
      per_leaf: whether only connections of the same leaf make up for each other: the
        Hessian is then one block for each leaf, instead of one of all parameters.
      max_size: the number of parameters that one block may have; its memory grows
        with their square, and its time with their cube.

    Returns:
      A criterion, as :func:`obd` does. It raises a ``ValueError`` too if a block has
      more than ``max_size`` parameters.

    Raises:
      ValueError: if ``damping`` is not positive, or ``max_size`` not a positive
        integer.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> scores = obs()(
      ...     loss_fn, {"w": jnp.array([1.0, -3.0])}, jnp.array([2.0, 1.0]))
      >>> [round(s, 2) for s in scores["w"].tolist()]
      [2.0, 9.0]

    Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain
    Surgeon", NIPS 1992, equation 5.
    """
    if isinstance(damping, bool) or not damping > 0.0 or not np.isfinite(damping):
        raise ValueError(
            f"damping is {damping!r}; it must be a positive number, e.g. 1e-4: without "
            "it a Hessian that is singular has no inverse"
        )
    _check_positive_integer(max_size, "max_size")

    def criterion(
        loss_fn: LossFn, params: chex.ArrayTree, batch: Any
    ) -> chex.ArrayTree:
        trees.check_floating(params, "params")
        _check_sizes(params, per_leaf, max_size)
        blocks = _mean(_hessian_blocks, per_leaf, loss_fn, params, batch, key=None)
        return _surgeon(blocks, _in_float32(params), jnp.float32(damping))

    return criterion


def hessian_diagonal(
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey,
    num_samples: int | None = 16,
) -> chex.ArrayTree:
    r"""Returns the second derivative of the loss in each parameter by itself.

    .. math:: h_{jj} = E[v_j (H v)_j], \quad v_j = \pm 1 \text{ at random}

    The estimate has no bias, and variance :math:`\sum_{k \ne j} h_{jk}^2` divided by
    the number of samples. Products are computed in the parameters' dtype, and added
    up in float32.

    Args:
      loss_fn: ``(params, batch) -> scalar``, as :func:`snipjax.saliency.snip` takes
        it.
      params: pytree of floating-point arrays.
      batch: as :func:`snipjax.saliency.snip` takes it; every batch has its own
        samples.
      key: as :func:`obd` takes it.
      num_samples: as :func:`obd` takes it.

    Returns:
      A pytree like ``params`` of float32 arrays.

    Raises:
      ValueError: as :func:`obd` and its criterion do.

    Example:
      >>> loss_fn = lambda params, x: jnp.sum(x * params["w"] ** 2)
      >>> hessian_diagonal(
      ...     loss_fn, {"w": jnp.ones(2)}, jnp.array([2.0, 1.0]), key=jax.random.key(0))
      {'w': Array([4., 2.], dtype=float32)}
    """
    _check_num_samples(num_samples)
    statistic = _exact_diagonal if num_samples is None else _diagonal
    return _mean(statistic, num_samples, loss_fn, params, batch, key=key)


def _diagonal(
    num_samples: int,
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    key: chex.PRNGKey,
) -> chex.ArrayTree:
    product = _hessian_product(loss_fn, params, batch)

    def add(total: chex.ArrayTree, key: chex.PRNGKey) -> tuple[chex.ArrayTree, None]:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, max(len(leaves), 1))
        signs = jax.tree.unflatten(
            treedef,
            [jax.random.rademacher(k, w.shape, w.dtype) for k, w in zip(keys, leaves)],
        )
        return jax.tree.map(_add_product, total, signs, product(signs)), None

    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params)
    total, _ = jax.lax.scan(add, zeros, jax.random.split(key, num_samples))
    return jax.tree.map(lambda h: h / num_samples, total)


def _add_product(
    total: chex.Array, signs: chex.Array, product: chex.Array
) -> chex.Array:
    return total + (signs * product).astype(jnp.float32)


def _exact_diagonal(
    setting: None,
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    key: chex.PRNGKey,
) -> chex.ArrayTree:
    del setting, key
    product = _hessian_product(loss_fn, params, batch)
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
        treedef,
        [
            _rows(product, params, i, lambda rows, j, i=i: rows[i].ravel()[j], ())
            .reshape(leaf.shape)
            .astype(jnp.float32)
            for i, leaf in enumerate(leaves)
        ],
    )


def _hessian_blocks(
    per_leaf: bool,
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    key: None,
) -> list[chex.Array]:
    """Blocks ``[n, n]``: one for each leaf, or one of all."""
    del key
    product = _hessian_product(loss_fn, params, batch)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    if per_leaf:
        blocks = [
            _rows(product, params, i, lambda rows, j, i=i: rows[i].ravel(), (size,))
            for i, size in enumerate(sizes)
        ]
    else:
        rows = [
            _rows(
                product, params, i, lambda rows, j: _concatenated(rows), (sum(sizes),)
            )
            for i in range(len(sizes))
        ]
        blocks = [jnp.concatenate(rows)] if rows else []
    return [block.astype(jnp.float32) for block in blocks]


def _rows(
    product: Callable[[chex.ArrayTree], chex.ArrayTree],
    params: chex.ArrayTree,
    number: int,
    entries: Callable[[list[chex.Array], chex.Array], chex.Array],
    shape: chex.Shape,
) -> chex.Array:
    """``[leaf.size, *shape]``: entries of the Hessian's rows of a leaf."""
    leaves, treedef = jax.tree.flatten(params)

    def row(j: chex.Array) -> chex.Array:
        basis = [jnp.zeros_like(leaf) for leaf in leaves]
        leaf = leaves[number]
        basis[number] = jnp.zeros_like(leaf.ravel()).at[j].set(1).reshape(leaf.shape)
        return entries(jax.tree.leaves(product(jax.tree.unflatten(treedef, basis))), j)

    if not leaves[number].size:
        return jnp.zeros((0, *shape))
    return jax.lax.map(row, jnp.arange(leaves[number].size))


def _hessian_product(
    loss_fn: LossFn, params: chex.ArrayTree, batch: Any
) -> Callable[[chex.ArrayTree], chex.ArrayTree]:
    """The product of the Hessian with a pytree, both in float32 or wider.

    The gradient is gone through once, however many products are taken.
    """
    wide = jax.tree.map(lambda w: w.astype(losses.at_least_float32(w)), params)

    def loss_of(wide: chex.ArrayTree) -> chex.Array:
        narrow = jax.tree.map(lambda v, w: v.astype(w.dtype), wide, params)
        loss = loss_fn(narrow, batch)
        losses.check_scalar(loss)
        return loss

    _, product = jax.linearize(jax.grad(loss_of), wide)

    def of(tree: chex.ArrayTree) -> chex.ArrayTree:
        return product(jax.tree.map(lambda v, w: v.astype(w.dtype), tree, wide))

    return of


def _mean(
    statistic: _Statistic,
    setting: Any,
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    *,
    key: chex.PRNGKey | None,
) -> chex.ArrayTree:
    """The mean of a statistic over a batch, a stack, or an iterator of batches."""
    trees.check_floating(params, "params")
    losses.check_hashable(loss_fn)
    params = jax.tree.map(jnp.asarray, params)
    compiled = _compiled(statistic, setting, loss_fn)
    if not isinstance(batch, Iterator):
        trees.check_arrays(
            batch,
            "batch",
            "pass a pytree of arrays, or iter(loader) for several batches",
        )
        return compiled(params, batch, key, 0)
    total, count = None, 0
    for one in batch:
        more = compiled(params, one, key, count)
        total = more if total is None else _add(total, more)
        count += 1
    if not count:
        raise ValueError(
            "batch is an iterator that yields nothing; pass at least one batch (an "
            "iterator can be read only once)"
        )
    return jax.tree.map(lambda x: x / count, total)


# Bounded, because a loss function holds on to all that it closes over.
@functools.lru_cache(maxsize=16)
def _compiled(
    statistic: _Statistic, setting: Any, loss_fn: LossFn
) -> Callable[..., chex.ArrayTree]:
    return jax.jit(functools.partial(_of_batch, statistic, setting, loss_fn))


def _of_batch(
    statistic: _Statistic,
    setting: Any,
    loss_fn: LossFn,
    params: chex.ArrayTree,
    batch: Any,
    key: chex.PRNGKey | None,
    number: chex.Numeric,
) -> chex.ArrayTree:
    def of(loss_fn: LossFn, batch: Any, number: chex.Numeric) -> chex.ArrayTree:
        batch_key = None if key is None else jax.random.fold_in(key, number)
        return statistic(setting, loss_fn, params, batch, batch_key)

    if not isinstance(loss_fn, losses.MeanLoss):
        return of(loss_fn, batch, number)

    # Each batch is gone through once, and adds up in float32.
    def add(
        total: chex.ArrayTree, numbered: tuple[chex.Array, Any]
    ) -> tuple[chex.ArrayTree, None]:
        number, batch = numbered
        more = of(loss_fn.loss_fn, batch, number)
        return jax.tree.map(jnp.add, total, more), None

    count = len(jax.tree.leaves(batch)[0])
    first = jax.tree.map(lambda x: x[0], batch)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda: of(loss_fn.loss_fn, first, 0)),
    )
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), batch))
    return jax.tree.map(lambda x: x / count, total)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: chex.ArrayTree, more: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(jnp.add, total, more)


@jax.jit
def _half_of_square(diagonal: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda h, w: 0.5 * h * w**2, diagonal, params)


@jax.jit
def _surgeon(
    blocks: list[chex.Array], params: chex.ArrayTree, damping: chex.Array
) -> chex.ArrayTree:
    diagonals = [_inverse_diagonal(block, damping) for block in blocks]
    leaves, treedef = jax.tree.flatten(params)
    if len(blocks) != len(leaves):
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        diagonals = jnp.split(diagonals[0], ends)
    scores = [
        0.5 * leaf**2 / diagonal.reshape(leaf.shape)
        for leaf, diagonal in zip(leaves, diagonals)
    ]
    return jax.tree.unflatten(treedef, scores)


def _inverse_diagonal(block: chex.Array, damping: chex.Array) -> chex.Array:
    if not block.size:
        return jnp.zeros(0, jnp.float32)
    values, vectors = jnp.linalg.eigh(block)
    inverse = 1.0 / (jnp.maximum(values, 0.0) + damping)
    return jnp.sum(vectors**2 * inverse, axis=1)


def _concatenated(leaves: list[chex.Array]) -> chex.Array:
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in leaves])


def _in_float32(params: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)


def _check_num_samples(num_samples: int | None) -> None:
    if num_samples is not None:
        _check_positive_integer(num_samples, "num_samples")


def _check_positive_integer(value: Any, what: str) -> None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise ValueError(f"{what} is {value!r}; it must be an integer of at least 1")


def _check_sizes(params: chex.ArrayTree, per_leaf: bool, max_size: int) -> None:
    sizes = {name: jnp.size(leaf) for name, leaf in trees.named_leaves(params)}
    if not sizes:
        return
    name = max(sizes, key=sizes.get)
    largest, total = sizes[name], sum(sizes.values())
    if largest > max_size:
        raise ValueError(
            f"params leaf '{name}' has {largest:,} parameters, and the Hessian of a "
            f"block can have {max_size:,} (max_size); score large networks with "
            "saliency.obd, which needs the diagonal alone, prune dense and "
            "convolutional layers with methods.lobs, or raise max_size if memory "
            "holds its square"
        )
    if not per_leaf and total > max_size:
        raise ValueError(
            f"params have {total:,} parameters, the leaf '{name}' the most "
            f"({largest:,}), and the Hessian of all can have {max_size:,} (max_size); "
            "pass per_leaf=True for a block of each leaf, or raise max_size if memory "
            "holds its square"
        )
