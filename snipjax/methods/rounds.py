"""Pruning and retraining in rounds, whatever decides on the connections to remove."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex

from snipjax import masks
from snipjax.methods import phases, settings
from snipjax.methods.dense import start
from snipjax.methods.problem import (
    History,
    Outcome,
    Problem,
    joined,
)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Hyperparameters of pruning and retraining.

    Attributes:
      rounds: number of rounds.
      retraining: steps of a round, as a share of those of dense training.
      learning_rate: learning rate of retraining, as a share of dense training's.
      decays: number of decays of the learning rate in each round.

    Raises:
      ValueError: if a field is out of range.
    """

    rounds: int = 4
    retraining: float = 0.25
    learning_rate: float = 0.1
    decays: int = 2

    def __post_init__(self) -> None:
        settings.check_integers(self, "rounds")
        settings.check_positive(self, "retraining learning_rate")
        settings.check_integers(self, "decays", least=0)


class Removal(NamedTuple):
    """The network after the pruning of a round.

    The parameters are perhaps changed to make up for the pruned ones. The mask keeps
    nothing that was pruned before.
    """

    params: chex.ArrayTree
    mask: chex.ArrayTree
    prunes: int
    rows: tuple[dict[str, Any], ...] = ()


# (params, mask, number of the round, PRNG key, stopwatch) -> Removal
Remove = Callable[
    [chex.ArrayTree, chex.ArrayTree, int, chex.PRNGKey, phases.Stopwatch], Removal
]


def prune_and_retrain(
    problem: Problem,
    sparsity: float,
    hyperparameters: Rounds,
    remove: Remove,
    *,
    pretrained: Outcome | None,
    keys_per_round: int = 2,
) -> Outcome:
    """Removes connections and trains the others, round after round.

    Every round starts from the best network by validation of the round before. The
    pruning of a round is ``remove(params, mask, number, key, watch)``; the stopwatch
    measures its seconds. ``keys_per_round`` is 1 if ``remove`` draws nothing, so that
    only retraining has keys.
    """
    pretrained = start(problem, sparsity, pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, problem.prunable)
    num_steps = problem.share(hyperparameters.retraining)
    retrain = phases.SparsePhase(
        problem,
        phases.optimizer(
            problem, num_steps, hyperparameters.learning_rate, hyperparameters.decays
        ),
    )
    history, watch = pretrained.history, phases.Stopwatch()
    for number in range(1, hyperparameters.rounds + 1):
        seconds = watch.seconds
        key = problem.phase_key(keys_per_round * number - 1)
        params, mask, prunes, rows = remove(params, mask, number, key, watch)
        masks.warn_if_disconnected(mask)
        removed = History(rows, prunes, seconds=watch.seconds - seconds)
        fitted = retrain(
            retrain.start(params, mask),
            num_steps=num_steps,
            key=problem.phase_key(keys_per_round * number),
            name=f"retrain {number}",
        )
        params = fitted.params
        history = joined(history, removed, fitted.history)
    return Outcome(params, mask, history)


def round_sparsity(sparsity: float, number: float, rounds: int) -> float:
    """Returns the sparsity after some rounds: the density shrinks geometrically."""
    # The last is the target to the bit, which decides how many are kept.
    return sparsity if number == rounds else 1 - (1 - sparsity) ** (number / rounds)
