"""Learning to prune deep neural networks via layer-wise optimal brain surgeon.

A layer's output is linear in its weights, so that the error which pruning makes in
it, over examples, is a quadratic in them. Its Hessian is the second moment of the
layer's inputs, the same for all units, and small enough for an inverse: of all
weights of a unit, the one is removed that the output needs least once the others
have made up for it.

The paper chooses the sparsity of each layer by hand. Here sensitivities are
multiplied by how much an error in their layer's output grows up to the network's
output (:func:`output_gains`), and the least of all layers are removed together, so
that any network reaches any target. The paper retrains briefly. Here the rounds of
retraining are by default as long as the dense training, together.

Dong, Chen, Pan, "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain
Surgeon", NeurIPS 2017.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snipjax import masks
from snipjax.methods import phases
from snipjax.methods.linear_sites import Layer, Network, Site, check_covered, trace
from snipjax.methods.problem import Outcome, Problem
from snipjax.methods.rounds import Removal, Round, Rounds, prune_and_retrain
from snipjax.methods.settings import bounded

_UNITS_AT_ONCE = 16
_FACTORED_AT_ONCE = 128
_SIZES = 128  # units' numbers of weights are rounded up to it, to compile less

Arrays = list[chex.Array]  # one for each layer of the network


@dataclasses.dataclass(frozen=True)
class LOBS(Rounds):
    """Holds the hyperparameters of :func:`lobs`: the rounds, and the Hessians of each.

    Attributes:
      rounds: number of rounds.
      retraining: steps of a round, as a share of dense training's.
      learning_rate: learning rate of retraining, as a share of dense training's.
      decays: number of decays of the learning rate in each round.
      block: share of the remaining connections that is removed at a time.
      damping: number added to a Hessian's diagonal, as a share of its mean; inputs
        that are always 0 leave it singular.
      num_batches: number of training batches that the Hessians are the mean over.

    Example:
      >>> settings = LOBS(rounds=2)
      >>> settings.rounds, settings.block
      (2, 0.3)
    """

    learning_rate: float = 1.0
    block: float = bounded(0.3, above=0, below=1)
    damping: float = 1e-3
    num_batches: int = 50


class Surgery(NamedTuple):
    """Units' weights after an operation, and the costs of removing another one.

    Both are ``[inputs, units]``, and 0 where pruned.
    """

    weights: chex.Array
    sensitivities: chex.Array


def lobs(
    problem: Problem,
    sparsity: float,
    settings: LOBS = LOBS(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes by layer-wise optimal brain surgeon and retrains, in rounds.

    With inputs :math:`x` of a layer, a constant 1 for the bias among them, and the
    weights :math:`w` of a unit before a round's pruning,

    .. math:: H = E[x x^T], \quad
              L_q = \frac{w_q^2}{2 [H_K^{-1}]_{qq}}, \quad
              H_K \delta_K = H_{KP} w_P

    are the Hessian of half the squared error of the unit's output; the cost of
    removing weight ``q`` of the remaining ones, ``K``; and the change of these when
    others, ``P``, are gone. The density of the rounds shrinks geometrically to the
    target, and so does the density of the blocks within a round, after each of which
    inverses and changes are computed anew, without approximation.

    The history has a row for each round, before its retraining, with root mean squares
    over the examples of the Hessians: ``layer_error/NAME``,
    :math:`\sqrt{\delta^T H \delta}` of all changes of the round, is the error in the
    layer's output for the input as it was; ``layer_bound/NAME`` is the same with the
    damped Hessian; ``output_error`` is the error in the network's output, and
    ``output_bound`` follows from the bounds of the layers (``output_bound``).

    Every prunable parameter must be the kernel of a matrix product or of a convolution
    without groups, or the bias added to it; another one is a ``ValueError``.

    Args:
      problem: the network, its data and its training.
      sparsity: share of all prunable connections to remove, in [0, 1).
      settings: the hyperparameters.
      pretrained: the outcome of :func:`dense` to start from; trained first if it is
        None.

    Returns:
      The parameters of the evaluation with the least error on validation, a mask of
      bool arrays like them, and the history.

    Raises:
      ValueError: if the sparsity or a field of the problem is out of range, or
        ``pretrained`` is of another network.

    Example:
      ``problem`` is a :class:`Problem`, as its example makes one:

      .. code-block:: python

        from snipjax import methods

        settings = methods.LOBS(rounds=2, num_batches=10)
        params, mask, history = methods.lobs(problem, 0.95, settings)

    Dong, Chen, Pan, NeurIPS 2017, algorithm 1 and theorems 3.1 and 3.2.
    """
    network = trace(problem)
    check_covered(
        network, masks.ones(problem.params, problem.prunable), "it has no Hessian"
    )
    for layer in network.layers:
        if layer.groups != 1:
            raise ValueError(
                f"the convolution '{layer.name}' has {layer.groups} groups, but the "
                "units of a layer are to share its inputs; choose a network without "
                "groups"
            )

    mean_over_batches = functools.partial(
        phases.mean_over_batches, problem, num_batches=settings.num_batches
    )

    def measured(
        examples: chex.ArrayTree, params: chex.ArrayTree, key: chex.PRNGKey
    ) -> tuple[Arrays, Arrays]:
        def one(batch: Any, key: chex.PRNGKey) -> tuple[Arrays, Arrays]:
            hessians = layer_hessians(network, params, batch)
            return hessians, output_gains(network, params, batch, key)

        return mean_over_batches(one, examples, key=key)

    @jax.jit
    def output_error(
        examples: chex.ArrayTree,
        before: chex.ArrayTree,
        after: chex.ArrayTree,
        key: chex.PRNGKey,
    ) -> chex.Array:
        def squared(batch: Any, key: chex.PRNGKey) -> chex.Array:
            del key
            pairs = zip(*(outputs(network, p, batch) for p in (before, after)))
            changes = [jnp.sum(jnp.square(b - a), dtype=jnp.float32) for a, b in pairs]
            return sum(changes, jnp.float32(0)) / _num_examples(batch)

        return jnp.sqrt(mean_over_batches(squared, examples, key=key))

    def remove(params: chex.ArrayTree, mask: chex.ArrayTree, this: Round) -> Removal:
        watch, key = this.watch, this.key
        hessians, gains = watch(measured, problem.train, params, key)
        sparsities = _sparsities(sparsity, this, settings)
        damped = watch(_damped, hessians, settings.damping)
        cut, mask, prunes = _cut(
            network, params, mask, damped, gains, sparsities, problem.prunable, watch
        )
        row = phases.evaluated(problem, cut, mask, f"prune {this.number}")
        bounds = []
        for layer, hessian, wide in zip(network.layers, hessians, damped):
            change = layer.matrix(cut) - layer.matrix(params)
            bounds.append(jnp.sqrt(2 * _energy(wide, change)))
            row[f"layer_bound/{layer.name}"] = bounds[-1].item()
            error = jnp.sqrt(2 * _energy(hessian, change))
            row[f"layer_error/{layer.name}"] = error.item()
        row["output_bound"] = output_bound(network.layers, cut, bounds).item()
        row["output_error"] = output_error(problem.train, params, cut, key).item()
        return Removal(cut, mask, prunes, (row,))

    return prune_and_retrain(problem, sparsity, settings, remove, pretrained=pretrained)


def layer_hessians(network: Network, params: chex.ArrayTree, batch: Any) -> Arrays:
    r"""Returns the second moments of the layers' inputs, each ``[inputs, inputs]``.

    :math:`E[x x^T]`, the mean over examples and the sum over a convolution's
    positions, is the Hessian of :math:`\tfrac{1}{2} E \lVert \hat z - z \rVert^2`
    with the layer's output :math:`z`, and :math:`\hat z` after a change of weights.
    """
    inputs: dict[str, Arrays] = {}

    def at(site: Site) -> chex.Array:
        rows = site.layer.rows(site.inputs)
        inputs.setdefault(site.layer.name, []).append(rows)
        return site.outputs

    network(params, batch, at)
    n = _num_examples(batch)
    rows = [jnp.concatenate(inputs[layer.name]) for layer in network.layers]
    return [_product(x.T, x) / n for x in rows]


def output_gains(
    network: Network, params: chex.ArrayTree, batch: Any, key: chex.PRNGKey
) -> Arrays:
    r"""Returns the growth of a small error from a layer's output to the network's.

    .. math:: g_l = \frac{1}{d_l} E \lVert J_l \rVert_F^2

    of the Jacobians of an example's network output in the layer's ``d_l`` outputs: an
    error of no particular direction, and mean square ``e``, becomes one of
    :math:`g_l e`. Estimated as the mean of :math:`\lVert J_l^T v \rVert^2` over random
    signs. The network's output is the output of the layers that no other one follows.
    """
    zeros = [jnp.zeros(x.shape, x.dtype) for x in network.shapes]
    n = _num_examples(batch)

    def shifted(shifts: Arrays) -> chex.Array:
        found = outputs(network, params, batch, shifts)
        return jnp.concatenate([x.reshape(n, -1) for x in found], axis=1)

    found, pull_back = jax.vjp(shifted, zeros)
    (gradients,) = pull_back(jax.random.rademacher(key, found.shape, found.dtype))
    layers: dict[str, Arrays] = {layer.name: [] for layer in network.layers}

    def at(site: Site) -> chex.Array:
        layers[site.layer.name].append(gradients[site.number])
        return site.outputs

    network(params, batch, at)
    return [
        sum(jnp.sum(jnp.square(g), dtype=jnp.float32) for g in found)
        / sum(g.size for g in found)
        for found in layers.values()
    ]


def outputs(
    network: Network,
    params: chex.ArrayTree,
    batch: Any,
    shifts: Arrays | None = None,
) -> Arrays:
    """Returns the outputs of the layers that no other one follows.

    If given, ``shifts`` are added to the outputs of all sites.
    """
    found: Arrays = []

    def at(site: Site) -> chex.Array:
        y = site.outputs if shifts is None else site.outputs + shifts[site.number]
        if site.number in network.outputs:
            found.append(y)
        return y

    network(params, batch, at)
    return found


def operate(
    hessian: chex.Array, weights: chex.Array, mask: chex.Array, *, size: int | None
) -> Surgery:
    r"""Returns the weights that do best without the pruned ones, and their costs.

    The weights :math:`w` of every unit minimize
    :math:`\tfrac{1}{2} (w - w_0)^T H (w - w_0)` among all that are 0 where pruned. The
    costs are :math:`w_q^2 / (2 [H_K^{-1}]_{qq})` of each that is kept. The Hessian is
    positive definite, ``[inputs, inputs]``; weights and mask are ``[inputs, units]``.
    The static ``size`` is at least as large as any unit keeps, or None if all keep all.
    """
    if size is None:
        inverse_diagonal = jnp.sum(_inverse_root(hessian) ** 2, axis=0)
        return Surgery(weights, weights**2 / (2 * inverse_diagonal[:, None]))
    lost = _product(hessian, jnp.where(mask, 0.0, weights))

    def unit(
        w: chex.Array, keep: chex.Array, lost: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        # The unit's own inputs first; the rest of the block is the identity.
        own = jnp.argsort(~keep, stable=True)[:size]
        is_own = keep[own]
        block = jnp.where(is_own[:, None] & is_own, hessian[own][:, own], jnp.eye(size))
        root = _inverse_root(block)
        change = _product(root.T, _product(root, jnp.where(is_own, lost[own], 0.0)))
        changed = jnp.where(is_own, w[own] + change, 0.0)
        sensitivity = changed**2 / (2 * jnp.sum(root**2, axis=0))
        zeros = jnp.zeros_like(w)
        return zeros.at[own].set(changed), zeros.at[own].set(sensitivity)

    # Whole groups of units only: a remainder would be compiled by itself.
    units = weights.shape[1]
    columns = [
        jnp.pad(x.T, ((0, -units % _UNITS_AT_ONCE), (0, 0)))
        for x in (weights, mask, lost)
    ]
    rows = jax.lax.map(lambda x: unit(*x), columns, batch_size=_UNITS_AT_ONCE)
    return Surgery(*(x[:units].T for x in rows))


def output_bound(
    layers: list[Layer], pruned: chex.ArrayTree, bounds: Arrays
) -> chex.Array:
    r"""Returns a bound of the root mean square error in the output of a network.

    .. math:: \epsilon_l = \lVert \hat W_l \rVert_F \sqrt{c_l} \, \epsilon_{l-1} + b_l

    over the layers, one after the other: the error of a layer's input goes through
    its pruned kernel, and its own pruning adds to it. :math:`c_l` is the number of
    patches that a pixel can be in, 1 for a dense layer. :math:`b_l` bounds the error of
    the layer's output when only this layer is pruned. The bound holds for a chain of
    layers, if the functions between them bring no two inputs further apart, such as
    ReLU, max-pooling and padding by zeros.

    Dong et al., 2017, theorem 3.2.
    """
    error = jnp.zeros(())
    for layer, bound in zip(layers, bounds):
        kernel = jax.tree.leaves(pruned)[layer.kernel]
        gain = jnp.linalg.norm(kernel.ravel()) * math.sqrt(layer.overlap)
        error = gain * error + bound
    return error


def _sparsities(sparsity: float, this: Round, settings: LOBS) -> list[float]:
    """Returns the sparsity after each block of a round."""
    share = (1 - sparsity) ** (1 / settings.rounds)  # of a round
    blocks = max(1, math.ceil(math.log(share) / math.log1p(-settings.block)))
    powers = [this.number - 1 + i / blocks for i in range(1, blocks + 1)]
    sparsities = [1 - share**power for power in powers]
    if this.number == settings.rounds:
        sparsities[-1] = this.sparsity
    return sparsities


def _cut(
    network: Network,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    damped: Arrays,
    gains: Arrays,
    sparsities: list[float],
    prunable: masks.Prunable,
    watch: phases.Stopwatch,
) -> tuple[chex.ArrayTree, chex.ArrayTree, int]:
    """Removes block after block, and counts the blocks with something removed."""
    layers = network.layers
    before = [layer.matrix(params) for layer in layers]

    def operated(mask: chex.ArrayTree) -> list[Surgery]:
        whole = jax.tree.map(lambda m, w: jnp.broadcast_to(m, w.shape), mask, params)
        keeps = [layer.matrix(whole) for layer in layers]
        return [
            watch(operate, hessian, weights, keep, size=_size(keep))
            for hessian, weights, keep in zip(damped, before, keeps)
        ]

    def scores(
        mask: chex.ArrayTree, surgeries: list[Surgery], gains: Arrays
    ) -> chex.ArrayTree:
        """Returns sensitivity times output gain, -1 where pruned."""
        scored = jax.tree.map(jnp.zeros_like, params)
        for layer, surgery, gain in zip(layers, surgeries, gains):
            scored = layer.with_matrix(scored, surgery.sensitivities * gain)
        return jax.tree.map(lambda keep, s: jnp.where(keep, s, -1.0), mask, scored)

    prunes = 0
    for sparsity in sparsities:
        scored = watch(scores, mask, operated(mask), gains)
        last = masks.sparsity(mask)
        mask = masks.global_topk(scored, sparsity, prunable)
        prunes += masks.sparsity(mask) > last
    for layer, surgery in zip(layers, operated(mask)):
        params = layer.with_matrix(params, surgery.weights)
    return masks.apply(mask, params), mask, prunes


def _damped(hessians: Arrays, damping: chex.Numeric) -> Arrays:
    def one(hessian: chex.Array) -> chex.Array:
        mean = jnp.trace(hessian) / len(hessian)
        # The bound holds for a layer whose inputs are all zero too.
        mean = jnp.maximum(mean, jnp.finfo(jnp.float32).tiny / damping)
        return hessian + damping * mean * jnp.eye(len(hessian))

    return [one(hessian) for hessian in hessians]


def _num_examples(batch: Any) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _energy(hessian: chex.Array, weights: chex.Array) -> chex.Array:
    return 0.5 * jnp.sum(weights * _product(hessian, weights))


def _inverse_root(matrix: chex.Array) -> chex.Array:
    """Returns ``R``, lower triangular, such that ``R^T R`` is the inverse.

    It is the inverse of Cholesky's factor, by halves: products of matrices are far
    faster on a CPU than a factorization of many matrices of hundreds of rows.
    """
    if len(matrix) <= _FACTORED_AT_ONCE:
        factor = jnp.linalg.cholesky(matrix)
        identity = jnp.eye(len(matrix))
        return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    half = len(matrix) // 2
    upper = _inverse_root(matrix[:half, :half])
    factor = _product(matrix[half:, :half], upper.T)
    lower = _inverse_root(matrix[half:, half:] - _product(factor, factor.T))
    corner = -_product(lower, _product(factor, upper))
    above = jnp.zeros((half, len(matrix) - half))
    return jnp.block([[upper, above], [corner, lower]])


_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _size(keep: chex.Array) -> int | None:
    """Returns a static bound of the connections that a unit keeps, None if all do."""
    if bool(jnp.all(keep)):
        return None
    most = int(jnp.max(jnp.sum(keep, axis=0)))
    return min(-(-most // _SIZES) * _SIZES, len(keep))
