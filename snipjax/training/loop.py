"""The training loop: steps, evaluations, checkpoints, and the best network so far.

It knows nothing of devices or of data. A placement gives it compiled programs, and
whoever runs it gives it hooks for files and for requests to stop.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from snipjax.training import console
from snipjax.training.state import Metrics

# The columns of an evaluation, each with one value for each network.
Row = dict[str, list[Any]]


class Schedule(NamedTuple):
    """The steps at which the loop evaluates, saves and looks at the progress.

    The best network is of an evaluation after ``best_from`` steps or more.
    """

    steps: int
    eval_every: int
    checkpoint_every: int
    steps_per_dispatch: int
    best_from: int = 0


class Programs(NamedTuple):
    """The compiled programs of a placement.

    Attributes:
      train_steps: ``(state, step, num_steps) -> (state, metrics)``; it may donate the
        state. Metrics are means over the steps, arrays ``[networks]`` or scalars.
      evaluate: ``state -> {"val": metrics, "test": metrics}``.
      snapshot: ``state -> tree``, the part of a state to keep if it is the best so far;
        it shares no buffer with the state.
      choose: ``(is_better, new, old) -> tree``; takes a network's part of ``new``
        where ``is_better`` (bool ``[networks]``) is true, else of ``old``.
    """

    train_steps: Callable[[Any, int, int], tuple[Any, Metrics]]
    evaluate: Callable[[Any], Mapping[str, Metrics]]
    snapshot: Callable[[Any], Any]
    choose: Callable[[np.ndarray, Any, Any], Any] = lambda is_better, new, old: (
        new if is_better[0] else old
    )


class Progress(NamedTuple):
    """The knowledge of a loop beside its state; a checkpoint holds both.

    ``best`` is the row of the evaluation with the least validation error, network by
    network, the later of equals, and ``snapshot`` has the parts of the states there.
    ``recent`` is ``(number of steps, metrics)`` of the steps since the row ``last``.
    """

    step: int = 0
    best: Row | None = None
    last: Row | None = None
    recent: tuple[tuple[int, Metrics], ...] = ()
    seconds: float = 0.0
    snapshot: Any = None


class Hooks(NamedTuple):
    """Functions that the loop calls on its way.

    Attributes:
      evaluated: takes the row of each evaluation, with ``seconds`` since the start
        of the run and ``steps_per_second`` since the evaluation before.
      measure: ``state -> columns``, added to the row of each evaluation.
      checkpoint: takes the state and the progress at the start, every
        ``checkpoint_every`` steps and at the end.
      stop: takes the state and the progress after each call of ``train_steps``; it
        ends the loop by raising.
    """

    evaluated: Callable[[dict[str, Any]], None] = lambda row: None
    measure: Callable[[Any], Row] = lambda state: {}
    checkpoint: Callable[[Any, Progress], None] = lambda state, progress: None
    stop: Callable[[Any, Progress], None] = lambda state, progress: None


_BEFORE_ANY_STEP, _NO_HOOKS = Progress(), Hooks()


def train(
    state: Any,
    programs: Programs,
    schedule: Schedule,
    *,
    progress: Progress = _BEFORE_ANY_STEP,
    hooks: Hooks = _NO_HOOKS,
) -> tuple[Any, Progress]:
    """Runs training to its last step, with evaluations and checkpoints on the way.

    The state is any pytree, and may be donated. Without a step to take, it is only
    evaluated.
    """
    started = time.monotonic() - progress.seconds
    since, since_step = time.monotonic(), progress.step

    def now() -> Progress:
        return progress._replace(seconds=time.monotonic() - started)

    def evaluated() -> Progress:
        row = _row(progress, programs.evaluate(state)) | hooks.measure(state)
        speed = (progress.step - since_step) / (time.monotonic() - since)
        times = {
            "seconds": round(now().seconds, 2),
            "steps_per_second": round(speed, 2),
        }
        hooks.evaluated({**row, **times})
        return _with_row(progress, row, programs, state, schedule.best_from)

    if progress.step == 0:
        hooks.checkpoint(state, now())
    if schedule.steps == 0 and progress.last is None:
        progress = evaluated()
    with console.training_progress(schedule.steps, progress.step) as bar:
        while progress.step < schedule.steps:
            num_steps = steps_to_next_stop(progress.step, schedule)
            state, metrics = programs.train_steps(state, progress.step, num_steps)
            if progress.recent and _is_ready(progress.recent[-1][1]):
                bar.update(progress.step, *_means(progress.recent[-1][1]))
            step = progress.step + num_steps
            recent = (*progress.recent, (num_steps, metrics))
            progress = progress._replace(step=step, recent=recent)
            is_last = step == schedule.steps
            if step % schedule.eval_every == 0 or is_last:
                bar.update(step, *_means(metrics))
                progress = evaluated()
                since, since_step = time.monotonic(), step
            hooks.stop(state, now())
            if step % schedule.checkpoint_every == 0 or is_last:
                hooks.checkpoint(state, now())
    return state, now()


def steps_to_next_stop(step: int, schedule: Schedule) -> int:
    """Returns the number of steps to the next dispatch, evaluation, checkpoint or end.

    Example:
      >>> steps_to_next_stop(90, Schedule(1000, 100, 1000, 50))
      10
    """
    periods = schedule[1:4]
    return min(*(period - step % period for period in periods), schedule.steps - step)


def rounded(value: float) -> float | None:
    """Returns six digits of a number, or None if it is not finite.

    Example:
      >>> rounded(1 / 3), rounded(math.nan)
      (0.333333, None)
    """
    # JSON has no NaN. Six digits are what float32 means.
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _row(progress: Progress, splits: Mapping[str, Metrics]) -> Row:
    """Returns the columns of an evaluation; errors in percent."""
    if progress.recent:
        weights = [num_steps for num_steps, _ in progress.recent]
        fetched = [_fetched(metrics) for _, metrics in progress.recent]
        train = Metrics(
            *(np.average(x, axis=0, weights=weights) for x in zip(*fetched))
        )
    else:
        shape = np.shape(next(iter(splits.values())).error)
        train = Metrics(np.full(shape, np.nan), np.full(shape, np.nan))
    row: Row = {}
    for split, metrics in {"train": train, **splits}.items():
        loss, error = _fetched(metrics)
        row[f"{split}_loss"] = [rounded(x) for x in loss.tolist()]
        row[f"{split}_error"] = [rounded(100 * x) for x in error.tolist()]
    return {"step": [progress.step] * len(row["val_error"]), **row}


def _with_row(
    progress: Progress, row: Row, programs: Programs, state: Any, best_from: int
) -> Progress:
    """Returns the progress with a row that is the last, and perhaps the best."""
    new = programs.snapshot
    progress = progress._replace(last=row, recent=())
    if progress.best is None or progress.best["step"][0] < best_from <= progress.step:
        return progress._replace(best=row, snapshot=new(state))
    pairs = zip(row["val_error"], progress.best["val_error"])
    is_better = np.array([_error(value) <= _error(least) for value, least in pairs])
    if not is_better.any():
        return progress
    best = {
        name: [
            value if better else before
            for better, value, before in zip(is_better, values, progress.best[name])
        ]
        for name, values in row.items()
    }
    chosen = programs.choose(is_better, new(state), progress.snapshot)
    return progress._replace(best=best, snapshot=chosen)


def _error(value: float | None) -> float:
    return math.inf if value is None else value


def _fetched(metrics: Metrics) -> Metrics:
    return Metrics(*(np.atleast_1d(np.asarray(x)) for x in jax.device_get(metrics)))


def _means(metrics: Metrics) -> tuple[float, float]:
    loss, error = _fetched(metrics)
    return float(loss.mean()), 100 * float(error.mean())


def _is_ready(metrics: Metrics) -> bool:
    """Returns whether metrics can be read without waiting for the device."""
    return all(x.is_ready() for x in jax.tree.leaves(metrics) if hasattr(x, "is_ready"))
