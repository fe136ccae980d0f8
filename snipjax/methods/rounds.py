"""Pruning and retraining in rounds, whatever decides on the connections to remove."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex

from snipjax import masks
from snipjax.methods import phases
from snipjax.methods.dense import start
from snipjax.methods.problem import History, Outcome, Problem, joined
from snipjax.methods.settings import Settings, bounded


@dataclasses.dataclass(frozen=True)
class Rounds(Settings):
    """The hyperparameters of pruning and retraining, as :class:`LWC` tells them."""

    rounds: int = 4
    retraining: float = 0.25
    learning_rate: float = 0.1
    decays: int = bounded(2, least=0)


class Round(NamedTuple):
    number: int
    sparsity: float
    key: chex.PRNGKey
    watch: phases.Stopwatch


class Removal(NamedTuple):
    """The network after the pruning of a round.

    The parameters are perhaps changed to make up for the pruned ones. The mask keeps
    nothing that was pruned before. By default ``prunes`` is 1 if it removes any.
    """

    params: chex.ArrayTree
    mask: chex.ArrayTree
    prunes: int | None = None
    rows: tuple[dict[str, Any], ...] = ()


def prune_and_retrain(
    problem: Problem,
    sparsity: float,
    settings: Rounds,
    remove: Callable[[chex.ArrayTree, chex.ArrayTree, Round], Removal],
    *,
    pretrained: Outcome | None,
    keys_per_round: int = 2,
) -> Outcome:
    """Removes connections and trains the others, round after round.

    The density of the rounds shrinks geometrically to its target. Every round starts
    from the best network by validation of the round before. ``keys_per_round`` is 1 if
    ``remove`` draws nothing, so that only retraining has keys.
    """
    pretrained = start(problem, sparsity, pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, problem.prunable)
    num_steps = problem.share(settings.retraining)
    optimizer = phases.optimizer(
        problem, num_steps, settings.learning_rate, settings.decays
    )
    retrain = phases.SparsePhase(problem, optimizer)
    history, watch = pretrained.history, phases.Stopwatch()
    for number in range(1, settings.rounds + 1):
        seconds, before = watch.seconds, masks.sparsity(mask)
        target = round_sparsity(sparsity, number, settings.rounds)
        key = problem.phase_key(keys_per_round * number - 1)
        params, mask, prunes, rows = remove(
            params, mask, Round(number, target, key, watch)
        )
        masks.warn_if_disconnected(mask)
        if prunes is None:
            prunes = int(masks.sparsity(mask) > before)
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
