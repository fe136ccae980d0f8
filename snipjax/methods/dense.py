"""The dense network, from which every method starts."""

import optax

from snipjax import masks
from snipjax.methods import phases
from snipjax.methods.problem import Outcome, Problem, check_pretrained


def dense(problem: Problem) -> Outcome:
    """Trains the network without pruning it.

    Args:
      problem: the network, its data and its training.

    Returns:
      The parameters of the evaluation with the least error on validation, a mask of
      ones, and the history.
    """
    schedule = optax.exponential_decay(
        problem.learning_rate,
        problem.decay_every,
        problem.decay_factor,
        staircase=True,
    )
    phase = phases.SparsePhase(problem, problem.optimizer(schedule))
    mask = masks.ones(problem.params, problem.prunable)
    fitted = phase(
        phase.start(problem.params, mask),
        num_steps=problem.steps,
        key=problem.phase_key(0),
        name="dense",
    )
    return Outcome(fitted.params, fitted.mask, fitted.history)


def trained(problem: Problem, pretrained: Outcome | None) -> Outcome:
    """Returns the given outcome of dense training, or trains the network.

    Raises:
      ValueError: if it is of another network.
    """
    if pretrained is None:
        return dense(problem)
    check_pretrained(problem, pretrained)
    return pretrained
