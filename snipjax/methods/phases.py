"""Training in phases, all of them by the training loop."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, optim, training
from snipjax.methods.problem import History, Problem
from snipjax.training import loop

# (carry, prepared batch, key) -> (carry, metrics)
Step = Callable[[Any, Any, chex.PRNGKey], tuple[Any, Any]]


class Stopwatch:
    """Runs compiled functions, and adds up their seconds without compiling.

    A function is compiled once for each set of shapes and static arguments.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._programs: dict[Any, Any] = {}

    def __call__(
        self, function: Callable[..., Any], *args: Any, donate: Any = (), **static: Any
    ) -> Any:
        leaves, treedef = jax.tree.flatten(args)
        types = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        name = (function, tuple(static.items()), treedef, types)
        if name not in self._programs:
            bound = functools.partial(function, **static)
            lowered = jax.jit(bound, donate_argnums=donate).lower(*args)
            self._programs[name] = lowered.compile()
        started = time.monotonic()
        result = jax.block_until_ready(self._programs[name](*args))
        self.seconds += time.monotonic() - started
        return result


class Fitted(NamedTuple):
    """The end of a phase, and its best network by validation.

    ``carry`` is the carry after the last step. ``params`` are masked.
    """

    carry: Any
    params: chex.ArrayTree
    mask: chex.ArrayTree
    measured: Mapping[str, Any]
    history: History


class Phase:
    """A way of training, described by three pure functions.

    ``step`` is ``(carry, prepared batch, key) -> (carry, metrics)``; ``deployed`` is
    ``carry -> (params, mask)``, the network to evaluate; ``measure`` is ``carry ->
    {name: value}``. Measured scalars become columns of the rows; other values may be
    any pytree.
    """

    def __init__(
        self,
        problem: Problem,
        step: Step,
        deployed: Callable[[Any], tuple[chex.ArrayTree, chex.ArrayTree]],
        measure: Callable[[Any], dict[str, Any]] = lambda carry: {},
    ) -> None:
        self._problem = problem
        self._watch = Stopwatch()

        def train_steps(
            carry: Any,
            examples: Any,
            key: chex.PRNGKey,
            start: chex.Array,
            *,
            num_steps: int,
        ) -> tuple[Any, training.Metrics]:
            return training.over_batches(
                step,
                carry,
                examples,
                start=start,
                key=key,
                num_steps=num_steps,
                batch_size=problem.batch_size,
                prepare=problem.prepare,
            )

        @jax.jit
        def evaluate(carry: Any) -> tuple[Any, Any]:
            params, mask = deployed(carry)
            params = masks.apply(mask, params)
            return (params, mask, measure(carry)), problem.evaluate(params)

        self._train_steps, self._evaluate = train_steps, evaluate

    def __call__(
        self, carry: Any, *, num_steps: int, key: chex.PRNGKey, name: str
    ) -> Fitted:
        """Returns the end of ``num_steps`` steps, evaluated on the way.

        With 0 steps, the carry is evaluated. ``name`` is the phase in the rows.
        """
        seconds = self._watch.seconds
        rows: list[dict[str, Any]] = []
        latest: list[Any] = [None]

        def train_steps(carry: Any, start: int, num_steps: int) -> Any:
            return self._watch(
                self._train_steps,
                carry,
                self._problem.train,
                key,
                jnp.asarray(start, jnp.int32),
                donate=0,
                num_steps=num_steps,
            )

        def evaluate(carry: Any) -> Mapping[str, training.Metrics]:
            latest[0], metrics = self._evaluate(carry)
            return metrics

        def measure(carry: Any) -> dict[str, list[Any]]:
            _, mask, measured = latest[0]
            scalars = {k: [v.item()] for k, v in measured.items() if _is_scalar(v)}
            return {"sparsity": [masks.sparsity(mask)], **scalars}

        def evaluated(row: Mapping[str, list[Any]]) -> None:
            columns = {
                name: value[0] if isinstance(value, list) else value
                for name, value in row.items()
            }
            rows.append({"phase": name, **columns})

        # The caller's arrays are not ours to donate.
        carry = _copied(carry)
        every = self._problem.eval_every
        carry, progress = loop.train(
            carry,
            loop.Programs(train_steps, evaluate, lambda carry: latest[0]),
            loop.Schedule(num_steps, every, max(1, num_steps), every),
            hooks=loop.Hooks(evaluated=evaluated, measure=measure),
        )
        params, mask, measured = progress.snapshot
        seconds = self._watch.seconds - seconds
        history = History(tuple(rows), 0, num_steps, seconds)
        return Fitted(carry, params, mask, measured, history)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, jax.Array) and value.ndim == 0


class SparseState(NamedTuple):
    """Parameters with an optimizer's state, which has their mask."""

    params: chex.ArrayTree
    opt_state: optax.OptState


class SparsePhase(Phase):
    """Training of the connections that a mask keeps, by the dense optimizer."""

    def __init__(
        self, problem: Problem, optimizer: optax.GradientTransformation
    ) -> None:
        def step(
            state: SparseState, batch: Any, key: chex.PRNGKey
        ) -> tuple[SparseState, training.Metrics]:
            del key
            params, opt_state = state
            grads, metrics = problem.gradient(params, batch)
            sparse = optim.sparse(optimizer, opt_state.mask)
            updates, opt_state = sparse.update(grads, opt_state, params)
            return SparseState(optax.apply_updates(params, updates), opt_state), metrics

        @jax.jit
        def start(params: chex.ArrayTree, mask: chex.ArrayTree) -> SparseState:
            params = masks.apply(mask, params)
            return SparseState(params, optim.sparse(optimizer, mask).init(params))

        super().__init__(
            problem, step, lambda state: (state.params, state.opt_state.mask)
        )
        self.start = start


def evaluated(
    problem: Problem, params: chex.ArrayTree, mask: chex.ArrayTree, name: str
) -> dict[str, Any]:
    """Returns a row of the history for a network that is not trained."""
    phase = Phase(problem, lambda carry, batch, key: (carry, None), lambda carry: carry)
    fitted = phase((params, mask), num_steps=0, key=problem.key, name=name)
    return fitted.history.rows[0]


def optimizer(
    problem: Problem, num_steps: int, learning_rate: float, decays: int
) -> optax.GradientTransformation:
    """Returns the problem's optimizer, with a schedule of a phase's own length.

    The learning rate is a share of dense training's; decays come at equal distances.
    """
    return problem.optimizer(
        optax.exponential_decay(
            learning_rate * problem.learning_rate,
            -(-num_steps // (decays + 1)),
            problem.decay_factor,
            staircase=True,
        )
    )


def mean_over_batches(
    problem: Problem,
    function: Callable[[Any, chex.PRNGKey], chex.ArrayTree],
    examples: chex.ArrayTree,
    *,
    key: chex.PRNGKey,
    num_batches: int,
) -> chex.ArrayTree:
    """Returns the mean of ``(prepared batch, key) -> arrays`` over random batches."""

    def add(
        total: chex.ArrayTree, batch: Any, key: chex.PRNGKey
    ) -> tuple[chex.ArrayTree, None]:
        return jax.tree.map(jnp.add, total, function(batch, key)), None

    like = jax.eval_shape(function, problem.example_batch(), key)
    total, _ = training.over_batches(
        add,
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like),
        examples,
        start=0,
        key=key,
        num_steps=num_batches,
        batch_size=problem.batch_size,
        prepare=problem.prepare,
    )
    return jax.tree.map(lambda x: x / num_batches, total)
