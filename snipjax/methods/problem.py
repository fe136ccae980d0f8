"""A training problem of the user's own, and the outcome of pruning it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax._src import checks
from snipjax.training import Metrics


class Aux(NamedTuple):
    """Holds facts about a batch that a loss may return beside its value.

    Attributes:
      error: share of the batch that is misclassified, for the rows of the history.
      logits: ``[n, classes]``, if the loss is their mean cross entropy. Optimal brain
        damage then takes the Gauss-Newton matrix instead of the Hessian.

    Example:
      >>> def loss_fn(params, batch):
      ...     logits = batch["x"] @ params["w"]
      ...     labels = batch["y"]
      ...     error = jnp.mean(jnp.argmax(logits, -1) != labels)
      ...     return snipjax.training.cross_entropy(logits, labels), Aux(error, logits)
      >>> batch = {"x": jnp.ones((4, 2)), "y": jnp.array([0, 1, 1, 1])}
      >>> loss, aux = jax.eval_shape(loss_fn, {"w": jnp.zeros((2, 3))}, batch)
      >>> loss.shape, aux.error.shape, aux.logits.shape
      ((), (), (4, 3))
    """

    error: chex.Numeric = jnp.nan
    logits: chex.Array | None = None


class Problem(NamedTuple):
    r"""Holds a network to train and prune: its loss, parameters, data and optimizer.

    .. math:: \min_w L(c \odot w), \quad \sum_j c_j \le \mathrm{round}(m (1 - sparsity))

    for the mask :math:`c` of its :math:`m` prunable connections.

    Attributes:
      loss_fn: ``(params, batch) -> loss``, or ``-> (loss, Aux)``; the mean over the
        batch of the training loss, without weight decay.
      params: the parameters that dense training starts from.
      train: training examples, a pytree of arrays with a leading axis of examples.
      evaluate: ``params -> {"val": Metrics, "test": Metrics}``, scalars, traceable;
        the network with the least error on ``"val"`` is chosen.
      optimizer: from a learning rate (or a schedule) to an optax optimizer.
      learning_rate: learning rate of the first steps of dense training.
      steps: number of steps of dense training.
      decay_every: steps of dense training between two decays of the learning rate.
      decay_factor: factor of each decay.
      eval_every: steps between two evaluations.
      batch_size: number of examples in a batch.
      prunable: predicate ``(key_path, leaf) -> bool``, or a pytree of bools.
      key: PRNG key of all training.
      prepare: ``(key, batch) -> batch``; preprocesses and augments a batch.
      momentum: the optimizer's, by which LC measures its pull.

    Example:
      >>> params = {"w": jnp.zeros((2, 1))}
      >>> x = jnp.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 1.0]])
      >>> def loss_fn(params, x):
      ...     return jnp.mean((x @ params["w"] - 3 * x[:, :1]) ** 2)
      >>> def evaluate(params):
      ...     loss = loss_fn(params, x)
      ...     return {"val": snipjax.training.Metrics(loss, loss)}
      >>> problem = Problem(
      ...     loss_fn, params, train=x, evaluate=evaluate, optimizer=optax.sgd,
      ...     learning_rate=0.05, steps=100, decay_every=80, decay_factor=0.1,
      ...     eval_every=50, batch_size=4, prunable=masks.kernels,
      ...     key=jax.random.key(0))
      >>> outcome = snipjax.methods.lwc(problem, sparsity=0.5)
      >>> outcome.mask["w"].tolist()
      [[True], [False]]
    """

    loss_fn: Callable[[Any, Any], Any]
    params: chex.ArrayTree
    train: chex.ArrayTree
    evaluate: Callable[[Any], Mapping[str, Metrics]]
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    learning_rate: float
    steps: int
    decay_every: int
    decay_factor: float
    eval_every: int
    batch_size: int
    prunable: masks.Prunable
    key: chex.PRNGKey
    prepare: Callable[[chex.PRNGKey, Any], Any] = lambda key, batch: batch
    momentum: float = 0.0

    def check(self) -> None:
        """Raises a ``ValueError`` for attributes that would fail inside of training."""
        for name in ("eval_every", "batch_size", "decay_every"):
            checks.check_positive_integer(getattr(self, name), f"problem.{name}")
        if isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "problem.optimizer is an optimizer; pass the function that makes one "
                "from a learning rate, e.g. optax.sgd"
            )
        metrics = jax.eval_shape(self.evaluate, self.params)
        if not isinstance(metrics.get("val"), Metrics):
            raise ValueError(
                f"problem.evaluate returns {', '.join(metrics) or 'nothing'}; return "
                '{"val": Metrics(loss, error)}, by which the best network is chosen'
            )

    @property
    def num_examples(self) -> int:
        return jax.tree.leaves(self.train)[0].shape[0]

    def share(self, share: float) -> int:
        """Returns a number of steps, at least 1, as a share of dense training's."""
        return max(1, round(share * self.steps))

    def phase_key(self, number: int) -> chex.PRNGKey:
        """Returns the PRNG key of a phase of training; 0 is dense training."""
        return jax.random.fold_in(self.key, number)

    def loss(self, params: chex.ArrayTree, batch: Any) -> tuple[chex.Array, Aux]:
        """Returns the loss of a prepared batch, and the facts that come with it."""
        result = self.loss_fn(params, batch)
        return result if isinstance(result, tuple) else (result, Aux())

    def gradient(
        self, params: chex.ArrayTree, batch: Any
    ) -> tuple[chex.ArrayTree, Metrics]:
        """Returns the gradient of the loss, and the batch's loss and error."""
        (loss, aux), grads = jax.value_and_grad(self.loss, has_aux=True)(params, batch)
        return grads, Metrics(loss, jnp.asarray(aux.error, jnp.float32))

    def example_batch(self) -> Any:
        """Returns the shapes and dtypes of a prepared batch."""
        return jax.eval_shape(
            lambda train, key: self.prepare(
                key, jax.tree.map(lambda x: x[: self.batch_size], train)
            ),
            self.train,
            self.key,
        )


class History(NamedTuple):
    """Holds the cost of an outcome and its evaluations.

    Attributes:
      rows: one dict for each evaluation: ``phase``, ``step``, ``sparsity``, the losses,
        the errors in percent, and figures of the method's own.
      prunes: number of times that connections were removed.
      steps: number of training steps, pretraining included.
      seconds: time of training and pruning, without compiling and evaluating.

    Example:
      >>> rows = ({"phase": "dense", "step": 10, "val_error": 4.0},)
      >>> history = History(rows, steps=10, seconds=2.5)
      >>> history.rows[-1]["val_error"], history.prunes
      (4.0, 0)
    """

    rows: tuple[dict[str, Any], ...] = ()
    prunes: int = 0
    steps: int = 0
    seconds: float = 0.0


class Outcome(NamedTuple):
    """Holds pruned parameters, their mask and the history of training.

    Attributes:
      params: pytree of arrays like the problem's; pruned entries are zero.
      mask: pytree like ``params``: bool arrays, and a scalar ``True`` where a leaf is
        not prunable.
      history: the cost and the evaluations.

    Example:
      >>> mask = {"w": jnp.array([[True, False]])}
      >>> outcome = Outcome({"w": jnp.array([[2.0, 0.0]])}, mask, History(steps=10))
      >>> params, mask, history = outcome
      >>> masks.sparsity(mask), history.steps
      (0.5, 10)
    """

    params: chex.ArrayTree
    mask: chex.ArrayTree
    history: History


def joined(*histories: History) -> History:
    return History(
        rows=sum((history.rows for history in histories), ()),
        prunes=sum(history.prunes for history in histories),
        steps=sum(history.steps for history in histories),
        seconds=sum(history.seconds for history in histories),
    )
