"""The dense network, from which every method starts."""

import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import trees
from snipjax.methods import phases
from snipjax.methods.problem import Outcome, Problem


def dense(problem: Problem) -> Outcome:
    r"""Trains the network without pruning it.

    .. math:: w \leftarrow w - \eta_t \nabla L(w; B_t)

    with the problem's own optimizer in place of SGD, and its learning rate
    :math:`\eta_t`.

    Args:
      problem: the network, its data and its training.

    Returns:
      The parameters of the evaluation with the least error on validation, a mask of
      ones, and the history.

    Raises:
      ValueError: if a field of the problem is out of range.

    Example:
      ``problem`` is a :class:`Problem`, as its example makes one:

      .. code-block:: python

        from snipjax import methods

        trained = methods.dense(problem)
        print(trained.history.rows[-1]["val_error"])
        outcome = methods.lwc(problem, 0.95, pretrained=trained)
    """
    problem.check()
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


def start(problem: Problem, sparsity: float, pretrained: Outcome | None) -> Outcome:
    """Returns the dense network that a method starts from, trained if not given."""
    masks.kept_count(1, sparsity)  # checks it
    problem.check()
    if pretrained is None:
        return dense(problem)
    shapes = {name: jnp.shape(x) for name, x in trees.named_leaves(problem.params)}
    given = {name: jnp.shape(x) for name, x in trees.named_leaves(pretrained.params)}
    for name in sorted(shapes.keys() | given.keys()):
        if shapes.get(name) != given.get(name):
            raise ValueError(
                f"pretrained is of another network: '{name}' has shape "
                f"{given.get(name)}, and {shapes.get(name)} in the problem; give the "
                "outcome of dense(problem) for the same params"
            )
    return pretrained
