"""The parts of training that every placement of networks on devices shares.

Networks of several seeds lie side by side, each whole on one device
(`side_by_side.py`). One network may also be split over a mesh, with a stream of batches
(`on_mesh.py`). The training loop sees no difference.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snipjax.training import loop
from snipjax.training.state import Batch, Metrics, TrainState
from snipjax.training.step import Augment, Loss, Preprocess, Transform, train_step

# (optimizer of the dense network, mask, key) -> optimizer of the sparse network.
Sparse = Callable[
    [optax.GradientTransformation, chex.ArrayTree, chex.PRNGKey],
    optax.GradientTransformationExtraArgs,
]


class Task(NamedTuple):
    """A network and its training, whatever the seed and the devices.

    ``optimizer`` is for the dense network, and ``sparse`` makes it one for a mask.
    ``transform`` wraps the loss before differentiation, e.g. ``jax.checkpoint``.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    batch_size: int
    preprocess: Preprocess
    augment: Augment | None
    loss: Loss
    transform: Transform
    sparse: Sparse

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(
            state,
            batch,
            model=self.model,
            optimizer=self.sparse(self.optimizer, state.opt_state.mask, state.key),
            loss=self.loss,
            transform=self.transform,
        )


class Placement(NamedTuple):
    """The place of some networks.

    Attributes:
      seeds: the seed of each network.
      like: shapes and dtypes of the state of all networks, and shardings on a mesh.
      score: ``(score, batch) -> (scores, mask)`` of all networks, from the functions
        ``(seed, batch, jit) -> (scores, mask)`` and ``seed -> batch`` for one.
      start: ``(start, mask) -> state`` of all networks, from ``(seed, mask) -> state``
        for one.
      training: ``first step -> context of loop.Programs``.
      networks: ``state -> the state of each network``, one after the other; it takes
        any tree of variables too.
      put: ``state -> state`` on the devices of the placement.
      portable: ``state -> state`` as a checkpoint holds it.
    """

    seeds: range
    like: TrainState
    score: Callable[[Callable[..., Any], Callable[..., Any]], Any]
    start: Callable[[Callable[..., TrainState], chex.ArrayTree], TrainState]
    training: Callable[[int], AbstractContextManager[loop.Programs]]
    networks: Callable[[Any], Iterator[Any]]
    put: Callable[[TrainState], TrainState]
    portable: Callable[[Any], Any]


def variables(state: Any) -> dict[str, chex.ArrayTree]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def snapshot(state: TrainState) -> dict[str, chex.ArrayTree]:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), variables(state))
