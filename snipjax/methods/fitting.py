"""What the baselines have in common: their shape, and training in phases.

A baseline is a function ``(parts, target, *, pretrained=None, ...) -> Outcome``; what
follows are its own hyperparameters, with their defaults. ``parts`` are those of
:func:`snipjax.experiment.assemble`, the target is the sparsity to reach.
"""

import inspect
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, optim, training
from snipjax.experiment import Parts
from snipjax.training import console

Step = Callable[[Any, training.Batch, chex.PRNGKey], tuple[Any, training.Metrics]]
Deployed = Callable[[Any], tuple[chex.ArrayTree, chex.ArrayTree]]
Measure = Callable[[Any], dict[str, Any]]


class History(NamedTuple):
    """What it took: see :func:`joined`."""

    rows: tuple[dict[str, Any], ...] = ()  # one for each evaluation
    prunes: int = 0  # how often connections were removed
    steps: int = 0  # of training, of pretraining too
    seconds: float = 0.0  # of training and pruning, without compiling and evaluating


class Outcome(NamedTuple):
    """Trained parameters, zero where the mask is; and how they came to be."""

    params: chex.ArrayTree
    mask: chex.ArrayTree
    history: History


class Fitted(NamedTuple):
    """The end of a phase, and the sparse network that did best on validation in it."""

    carry: Any
    params: chex.ArrayTree
    mask: chex.ArrayTree
    history: History
    measured: Mapping[str, Any] = MappingProxyType({})  # of that network


def fit(
    parts: Parts,
    step: Step,
    carry: Any,
    *,
    num_steps: int,
    deployed: Deployed,
    key: chex.PRNGKey,
    phase: str,
    measure: Measure = lambda carry: {},
) -> Fitted:
    """Returns where ``num_steps`` of any training step lead, evaluated on the way.

    Every ``config.train.eval_every`` steps, and at the end, the network that the
    carry stands for is evaluated as it would be used: pruned.

    Args:
      parts: of the experiment.
      step: ``(carry, preprocessed batch, key) -> (carry, metrics)``, a pure function.
      carry: what the first step starts from; it is donated, do not use it again.
      num_steps: how many; with 0 the start is evaluated.
      deployed: ``carry -> (params, mask)``, a pure function.
      key: PRNG key of this phase: order of the examples, and what ``step`` draws.
      phase: a word for it, in the rows of the history.
      measure: ``carry -> {name: value}``, a pure function: what else is to be known
        at each evaluation. Scalars go into the rows; others may be any pytree.

    Returns:
      The last carry; parameters (masked), mask and measurements of the evaluation
      with the least error on validation, the later of equals; and the history of
      this phase.
    """
    train_steps, evaluate = _compiled(parts, step, deployed, key)
    measure = jax.jit(measure)
    every = parts.config.train.eval_every
    rows, best, chosen, seconds, done = [], None, None, 0.0, 0
    # The caller's arrays are not ours to donate.
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), carry)
    with console.training_progress(num_steps, 0) as bar:
        while not rows or done < num_steps:
            count = min(every, num_steps - done)
            train_metrics = training.Metrics(jnp.nan, jnp.nan)
            if count:
                program = train_steps(carry, jnp.asarray(done, jnp.int32), count)
                started = time.monotonic()
                carry, train_metrics = jax.block_until_ready(
                    program(carry, parts.train, jnp.asarray(done, jnp.int32))
                )
                seconds += time.monotonic() - started
                done += count
            params, mask, validation, test = evaluate(carry)
            row = {"phase": phase, "step": done, "sparsity": masks.sparsity(mask)}
            row |= _in_percent("train", train_metrics)
            row |= _in_percent("val", validation) | _in_percent("test", test)
            measured = measure(carry)
            row |= {
                name: value.item()
                for name, value in measured.items()
                if isinstance(value, jax.Array) and value.ndim == 0
            }
            rows.append(row)
            bar.update(done, row["train_loss"], row["train_error"])
            if best is None or row["val_error"] <= best["val_error"]:
                best, chosen = row, (params, mask, measured)
    params, mask, measured = chosen
    history = History(tuple(rows), 0, done, seconds)
    return Fitted(carry, params, mask, history, measured)


def fit_sparse(
    parts: Parts,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation,
    key: chex.PRNGKey,
    phase: str,
) -> Fitted:
    """Trains the connections that a mask keeps; the carry is a training state.

    Arguments and result are those of :func:`fit`; ``optimizer`` is the inner one, of
    the dense network.
    """
    optimizer = optim.sparse(optimizer, mask)
    variables = {"params": masks.apply(mask, params)}
    state = training.init_state(variables, optimizer, key)

    def step(
        state: training.TrainState, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[training.TrainState, training.Metrics]:
        del key
        return training.train_step(state, batch, model=parts.model, optimizer=optimizer)

    def deployed(
        state: training.TrainState,
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        return state.params, state.opt_state.mask

    return fit(
        parts,
        step,
        state,
        num_steps=num_steps,
        deployed=deployed,
        key=key,
        phase=phase,
    )


def joined(*histories: History) -> History:
    """Returns one history of several, in their order.

    Example:
      >>> joined(History(steps=10, prunes=1), History(steps=5)).steps
      15
    """
    return History(
        rows=sum((history.rows for history in histories), ()),
        prunes=sum(history.prunes for history in histories),
        steps=sum(history.steps for history in histories),
        seconds=sum(history.seconds for history in histories),
    )


def pruning_history(seconds: float = 0.0, prunes: int = 1) -> History:
    """Returns the history of removing connections ``prunes`` times."""
    return History(prunes=prunes, seconds=seconds)


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Returns ``function(*args)``, compiled, and the seconds it took without that."""
    compiled = jax.jit(function).lower(*args).compile()
    started = time.monotonic()
    result = jax.block_until_ready(compiled(*args))
    return result, time.monotonic() - started


def share_of(parts: Parts, share: float) -> int:
    """Returns a number of steps, as a share of those of training the dense network."""
    return max(1, round(share * parts.config.train.steps))


def round_sparsity(target: float, done: int, rounds: int) -> float:
    """Returns the sparsity after some rounds: the density shrinks geometrically.

    Example:
      >>> [round(round_sparsity(0.99, done, 2), 3) for done in (1, 2)]
      [0.9, 0.99]
    """
    # The last is the target to the bit, which decides how many are kept.
    return target if done == rounds else 1 - (1 - target) ** (done / rounds)


def phase_optimizer(
    parts: Parts, num_steps: int, *, learning_rate: float, decays: int
) -> optax.GradientTransformation:
    """Returns the dense network's optimizer, with a schedule of a phase's own length.

    Args:
      parts: of the experiment.
      num_steps: of the phase.
      learning_rate: of its first steps, as a share of that of dense training.
      decays: how often the learning rate is multiplied by the configuration's
        ``decay_factor``, at equal distances.

    Returns:
      Stochastic gradient descent as :func:`snipjax.training.paper_optimizer` has it.
    """
    config = parts.config.train
    return training.paper_optimizer(
        learning_rate * config.learning_rate,
        decay_factor=config.decay_factor,
        decay_every=-(-num_steps // (decays + 1)),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def gradient(
    parts: Parts, params: chex.ArrayTree, batch: training.Batch
) -> tuple[chex.ArrayTree, training.Metrics]:
    """Returns the gradient of the mean cross entropy, and loss and error themselves.

    Args:
      parts: of the experiment.
      params: where to take it; those of a network without batch norm.
      batch: preprocessed.

    Returns:
      ``(gradient, metrics)``.
    """

    def loss_fn(params: chex.ArrayTree) -> tuple[chex.Array, chex.Array]:
        logits = parts.model.apply({"params": params}, batch.images, train=True)
        return training.cross_entropy(logits, batch.labels), logits

    (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    error = jnp.mean(jnp.argmax(logits, axis=-1) != batch.labels)
    return grads, training.Metrics(loss, error)


def phase_key(parts: Parts, number: int) -> chex.PRNGKey:
    """Returns the key of a method's phase; 0 is pretraining."""
    return jax.random.fold_in(parts.keys.training, number)


def hyperparameters(method: Callable[..., Outcome]) -> dict[str, Any]:
    """Returns the names and defaults of a method's own hyperparameters.

    Example:
      >>> def method(parts, target, *, pretrained=None, rounds=3): ...
      >>> hyperparameters(method)
      {'rounds': 3}
    """
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "pretrained"
    }


def params_of(variables: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the parameters of a network's variables.

    Raises:
      ValueError: if it has batch norm, whose statistics the baselines do not follow.
    """
    if variables.get("batch_stats"):
        raise ValueError(
            "the network has batch norm, whose statistics the methods of table 1 do "
            "not follow; choose a network without, e.g. lenet_5_caffe"
        )
    return variables["params"]


def abstract_params(parts: Parts) -> chex.ArrayTree:
    """Returns structure and shapes of a network's parameters.

    Raises:
      ValueError: as :func:`params_of`, or if the network does not take the images.
    """
    images = jax.eval_shape(parts.preprocess, parts.train.images[:1])
    return params_of(jax.eval_shape(parts.model.init, jax.random.key(0), images))


def check_target(target: float) -> None:
    """Raises a ``ValueError`` for a sparsity outside [0, 1)."""
    if not 0.0 <= target < 1.0:
        raise ValueError(
            f"target is {target}, outside [0, 1); it is the share of connections to "
            "prune, e.g. 0.95"
        )


def require(is_right: bool, name: str, value: Any, what: str) -> None:
    """Raises a ``ValueError`` that names a hyperparameter, unless it is right.

    Example:
      >>> require(0 > 1, "rounds", 0, "an integer of at least 1, e.g. 3")
      Traceback (most recent call last):
      ValueError: rounds is 0; it must be an integer of at least 1, e.g. 3
    """
    if not is_right:
        raise ValueError(f"{name} is {value}; it must be {what}")


def check_count(name: str, count: int) -> None:
    """Raises a ``ValueError`` for a number of rounds or the like that is none."""
    is_count = isinstance(count, int) and count >= 1
    require(is_count, name, count, "an integer of at least 1, e.g. 4")


def check_share(name: str, share: float) -> None:
    """Raises a ``ValueError`` for a share of dense training's steps that is none."""
    is_right = 0 < share < float("inf")
    require(is_right, name, share, "a share of dense training's steps, e.g. 0.5")


def check_schedule(learning_rate: float, decays: int) -> None:
    """Raises a ``ValueError`` for what :func:`phase_optimizer` cannot work with."""
    require(
        0 < learning_rate < float("inf"),
        "learning_rate",
        learning_rate,
        "a share of dense training's, above 0, e.g. 0.1",
    )
    is_count = isinstance(decays, int) and decays >= 0
    require(is_count, "decays", decays, "an integer of at least 0, e.g. 1")


def _compiled(
    parts: Parts, step: Step, deployed: Deployed, key: chex.PRNGKey
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Programs of some steps, by their number, and of an evaluation."""

    def train_steps(
        carry: Any, examples: training.Batch, start: chex.Array, num_steps: int
    ) -> tuple[Any, training.Metrics]:
        return training.over_batches(
            step,
            carry,
            examples,
            start=start,
            key=key,
            num_steps=num_steps,
            batch_size=parts.config.train.batch_size,
            preprocess=parts.preprocess,
            augment=parts.augment,
        )

    programs = {}

    def program(carry: Any, start: chex.Array, num_steps: int) -> Callable[..., Any]:
        if num_steps not in programs:
            jitted = jax.jit(train_steps, static_argnums=3, donate_argnums=0)
            lowered = jitted.lower(carry, parts.train, start, num_steps)
            programs[num_steps] = lowered.compile()
        return programs[num_steps]

    @jax.jit
    def evaluate(carry: Any) -> tuple[Any, ...]:
        params, mask = deployed(carry)
        params = masks.apply(mask, params)
        validation, test = (
            training.evaluate(
                params, {}, examples, model=parts.model, preprocess=parts.preprocess
            )
            for examples in (parts.validation, parts.test)
        )
        return params, mask, validation, test

    return program, evaluate


def _in_percent(split: str, metrics: training.Metrics) -> dict[str, float]:
    loss, error = jax.device_get(metrics)
    return {f"{split}_loss": float(loss), f"{split}_error": 100 * float(error)}
