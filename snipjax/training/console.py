"""The output of a run on a terminal: lines, a progress bar and tables."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table


def say(message: str) -> None:
    Console(highlight=False, soft_wrap=True).print(message, markup=False)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table, with the first column aligned left and the others right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A file has no width; a table cut at 80 columns would lose figures.
        console = Console(highlight=False, markup=False, width=120)
    console.print(table)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


class TrainingProgress:
    """Shows steps, loss, error and speed as a bar, on a terminal only."""

    def __init__(self, progress: Progress, total: int, start: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, completed=start)
        self._since, self._start = time.monotonic(), start

    def update(self, step: int, loss: float | None, error: float) -> None:
        """Shows the mean loss and error (in percent) of the last steps.

        A loss of None is one that is not finite.
        """
        seconds = time.monotonic() - self._since
        speed = (step - self._start) / max(seconds, 1e-9)
        loss = math.nan if loss is None else loss
        self._progress.update(
            self._task,
            completed=step,
            refresh=True,
            description=(
                f"loss {loss:.4f} error {error:.2f}% {speed:,.{speed < 100:d}f} steps/s"
            ),
        )


@contextmanager
def training_progress(total: int, start: int) -> Iterator[TrainingProgress]:
    progress = Progress(
        TextColumn("training"),
        # A narrow terminal cuts the bar, not the figures.
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=Column(no_wrap=True, overflow="ignore")),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(),
        transient=True,
        disable=not Console().is_terminal,
    )
    with progress:
        yield TrainingProgress(progress, total, start)
