"""Optimizers of sparse networks.

:func:`sparse` keeps a mask while it trains; the others move it. Each is an
``optax.GradientTransformationExtraArgs`` around any inner optimizer, and ``state.mask``
is the mask now.

The lottery ticket with rewinding takes several runs, and no optimizer of its own:
train, prune the smallest weights of the end, go back to the weights of an early step,
and train again. With a function ``train(params, mask, steps)`` that returns the params
after some steps of :func:`sparse`:

>>> import optax
>>> from snipjax import masks, saliency
>>> def train(params, mask, steps):
...     optimizer = sparse(optax.sgd(0.1), mask)
...     state = optimizer.init(params)
...     for _ in range(steps):
...         gradient = jax.tree.map(lambda w: w - jnp.arange(4.0), params)
...         updates, state = optimizer.update(gradient, state, params)
...         params = optax.apply_updates(params, updates)
...     return params
>>> params = {"w": jnp.ones((2, 4))}
>>> mask = masks.ones(params)
>>> early = train(params, mask, 2)  # the weights to go back to
>>> for sparsity in (0.25, 0.5):  # a round for each
...     end = train(masks.apply(mask, early), mask, 20)
...     scores = saliency.magnitude(None, masks.apply(mask, end), None)
...     mask = masks.layerwise_topk(scores, sparsity)
>>> ticket = masks.apply(mask, early)
>>> [round(w, 2) for w in ticket["w"][0].tolist()]
[0.0, 0.0, 1.19, 1.38]

Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis", ICML 2020.
"""

from snipjax.optim.gradual_magnitude import GradualState, gradual_magnitude
from snipjax.optim.moves import Info, MovingState
from snipjax.optim.rigl import rigl
from snipjax.optim.set import set
from snipjax.optim.sparse import SparseState, sparse
from snipjax.optim.sparse_momentum import SparseMomentumState, sparse_momentum
from snipjax.optim.straight_through import StraightThroughState, straight_through

__all__ = [
    "GradualState",
    "Info",
    "MovingState",
    "SparseMomentumState",
    "SparseState",
    "StraightThroughState",
    "gradual_magnitude",
    "rigl",
    "set",
    "sparse",
    "sparse_momentum",
    "straight_through",
]
