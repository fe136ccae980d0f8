"""The training loop, by programs that count instead of training."""

import math
from typing import Any

import numpy as np
import pytest

from snipjax.training import console, loop
from snipjax.training.state import Metrics

# Dispatches end at steps 2, 4, 5, 6, 7, 8, 10, 12.
COPRIME = loop.Schedule(12, eval_every=7, checkpoint_every=5, steps_per_dispatch=2)
EVERY_STEP = loop.Schedule(4, eval_every=1, checkpoint_every=9, steps_per_dispatch=1)


def counting(errors: Any = ((0.5, 0.25),)) -> loop.Programs:
    """Returns programs whose state is the number of steps.

    Args:
      errors: the validation errors of two networks at step 0, 1, ... in turn.
    """

    def train_steps(state: int, step: int, num_steps: int) -> tuple[int, Metrics]:
        assert state == step
        losses = np.arange(step, step + num_steps)
        return state + num_steps, Metrics(np.full(2, losses.mean()), np.full(2, 0.5))

    def evaluate(state: int) -> dict[str, Metrics]:
        error = np.array(errors[state % len(errors)])
        return {"val": Metrics(error, error), "test": Metrics(error, error / 2)}

    return loop.Programs(
        train_steps, evaluate, snapshot=lambda state: np.full(2, state), choose=np.where
    )


class Log:
    """Hooks that note what happens, and may stop the loop at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.rows: list[dict[str, Any]] = []
        self.stopped: tuple[int, loop.Progress] | None = None
        self._stop_at = stop_at
        self.hooks = loop.Hooks(
            self._evaluated, checkpoint=self._checkpoint, stop=self._stop
        )

    def _evaluated(self, row: dict[str, Any]) -> None:
        self.events.append(("evaluation", row["step"][0]))
        times = row.pop("seconds"), row.pop("steps_per_second")
        assert all(time >= 0 for time in times)
        self.rows.append(row)

    def _checkpoint(self, state: int, progress: loop.Progress) -> None:
        assert state == progress.step
        self.events.append(("checkpoint", state))

    def _stop(self, state: int, progress: loop.Progress) -> None:
        self.events.append(("stop?", state))
        if state == self._stop_at:
            self.stopped = state, progress
            raise KeyboardInterrupt

    def steps(self, event: str) -> list[int]:
        return [step for name, step in self.events if name == event]


def test_evaluations_and_checkpoints_have_periods_of_their_own() -> None:
    log = Log()
    state, progress = loop.train(0, counting(), COPRIME, hooks=log.hooks)
    assert state == progress.step == 12
    assert log.steps("evaluation") == [7, 12]
    assert log.steps("checkpoint") == [0, 5, 10, 12]
    assert log.steps("stop?") == [2, 4, 5, 6, 7, 8, 10, 12]
    # An evaluation is part of what a request to stop saves.
    assert log.events.index(("evaluation", 7)) < log.events.index(("stop?", 7))


def test_a_row_has_a_value_for_each_network() -> None:
    log = Log()
    _, progress = loop.train(0, counting(), COPRIME, hooks=log.hooks)
    assert log.rows[0] == {
        "step": [7, 7],
        # The mean of 0 to 6, whatever the dispatches; errors are in percent.
        "train_loss": [3.0, 3.0],
        "train_error": [50.0, 50.0],
        "val_loss": [0.5, 0.25],
        "val_error": [50.0, 25.0],
        "test_loss": [0.5, 0.25],
        "test_error": [25.0, 12.5],
    }
    assert log.rows[1]["train_loss"] == [9.0, 9.0]  # of 7 to 11
    assert progress.last == log.rows[1]


def test_metrics_may_be_scalars() -> None:
    programs = loop.Programs(
        train_steps=lambda state, step, num_steps: (state, Metrics(2.0, 0.5)),
        evaluate=lambda state: {"val": Metrics(1.0, 0.25)},
        snapshot=lambda state: state,
    )
    state, progress = loop.train("weights", programs, COPRIME)
    assert progress.last is not None
    assert (progress.last["train_loss"], progress.last["val_error"]) == ([2.0], [25.0])
    assert progress.snapshot == state == "weights"


def test_the_best_is_chosen_for_each_network_the_later_of_equals() -> None:
    errors = [(1, 1), (0.5, 0.25), (0.25, 0.5), (0.5, 0.25), (0.75, 0.75)]
    _, progress = loop.train(0, counting(errors), EVERY_STEP)
    assert progress.best is not None
    assert progress.best["step"] == [2, 3]
    assert progress.best["val_error"] == [25.0, 25.0]
    assert progress.best["test_error"] == [12.5, 12.5]
    assert progress.snapshot.tolist() == [2, 3]


def test_an_error_that_is_not_finite_is_never_better() -> None:
    errors = [(1, 1), (math.nan, 0.5), (0.5, math.inf), (math.nan, math.nan), (1, 1)]
    log = Log()
    _, progress = loop.train(0, counting(errors), EVERY_STEP, hooks=log.hooks)
    assert log.rows[0]["val_error"] == [None, 50.0]
    assert progress.snapshot.tolist() == [2, 1]


def test_without_a_step_there_is_one_evaluation() -> None:
    log, schedule = Log(), COPRIME._replace(steps=0)
    _, progress = loop.train(0, counting(), schedule, hooks=log.hooks)
    assert log.events == [("checkpoint", 0), ("evaluation", 0)]
    assert progress.best == progress.last == log.rows[0]
    assert log.rows[0]["train_loss"] == [None, None]
    assert progress.snapshot.tolist() == [0, 0]


@pytest.mark.parametrize("stop_at", [2, 5, 6, 7, 10, 12])
def test_stopping_leaves_no_trace(stop_at: int) -> None:
    programs = counting([(0.5, 0.25)] * 12 + [(0.25, 0.5)])
    whole, first, second = Log(), Log(stop_at), Log()
    expected = loop.train(0, programs, COPRIME, hooks=whole.hooks)
    with pytest.raises(KeyboardInterrupt):
        loop.train(0, programs, COPRIME, hooks=first.hooks)
    assert first.stopped is not None
    state, progress = first.stopped
    assert progress.seconds > 0
    actual = loop.train(state, programs, COPRIME, progress=progress, hooks=second.hooks)
    assert first.rows + second.rows == whole.rows
    for name in ("step", "best", "last"):
        assert getattr(actual[1], name) == getattr(expected[1], name)
    assert actual[1].snapshot.tolist() == expected[1].snapshot.tolist() == [12, 7]
    assert actual[1].seconds >= progress.seconds


def test_a_column_of_ones_own_comes_with_the_best() -> None:
    errors = [(1, 1), (0.5, 0.25), (0.25, 0.5), (0.5, 0.5), (0.5, 0.5)]
    rows: list[dict[str, Any]] = []
    hooks = loop.Hooks(rows.append, measure=lambda state: {"bits": [state, -state]})
    _, progress = loop.train(0, counting(errors), EVERY_STEP, hooks=hooks)
    assert [row["bits"] for row in rows] == [[n, -n] for n in range(1, 5)]
    assert progress.best is not None
    assert progress.best["bits"] == [2, -1]


def test_the_bar_moves_though_every_dispatch_is_evaluated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        console.TrainingProgress, "update", lambda bar, *values: shown.append(values)
    )
    loop.train(0, counting(), EVERY_STEP)
    assert shown == [(step, step - 1.0, 50.0) for step in (1, 2, 3, 4)]
