"""A run's use of its directory, by one process or by several, until asked to stop."""

import contextlib
import hashlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import snipjax
from snipjax.training import distributed, rundir


class StopRequest:
    """A request to stop by an interrupt or a termination.

    It raises ``KeyboardInterrupt`` at once, unless it ``waits``: then the first signal
    is only recorded. It is recorded even when it raises, since Python drops exceptions
    that are raised in callbacks of the garbage collector, and JAX has such a callback.
    """

    def __init__(self) -> None:
        self.is_made, self.waits = False, False

    def handle(self, number: int, frame: Any) -> None:
        is_first, self.is_made = not self.is_made, True
        if not (is_first and self.waits):
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yields the request that signals make while the block runs in the main thread."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, stop.handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)


class Session(NamedTuple):
    """A run directory in use.

    All processes see ``directory``. Each writes to its ``output``: the same in the
    first process, in the others a directory that is removed at the end.
    """

    directory: Path
    output: Path
    stop: StopRequest

    def read(self, name: str) -> Any:
        """Returns the value of a JSON file that the run wrote, or None without it."""
        path = self.directory / name
        return rundir.read_json(path) if distributed.any_of(path.exists()) else None

    def write(self, name: str, value: Any) -> None:
        rundir.write_json(self.output / name, value)


@contextlib.contextmanager
def opened(
    workdir: Path, fields: Mapping[str, Any], differences: rundir.Differences
) -> Iterator[Session]:
    """Yields the session of a run, in a directory that only this run uses meanwhile.

    Every process of a run calls it alike, with the same configuration, directory and
    code. Signals are noted while it lasts; its end raises a ``KeyboardInterrupt`` for
    one that nothing has raised for.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.lost_peers())
        if jax.process_count() > 1:
            distributed.check_same(start_facts(workdir, fields))
        claim = rundir.claim(workdir, differences)
        distributed.by_first(lambda: stack.enter_context(claim))
        output = stack.enter_context(distributed.one_voice(workdir))
        stop = stack.enter_context(stop_requests())
        yield Session(workdir, output, stop)
        if stop.is_made:  # too late for this run, but not for the ones after it
            raise KeyboardInterrupt


def start_facts(workdir: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that all processes of a run must share, by their names."""
    digest = hashlib.sha256()
    for file in sorted(Path(snipjax.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return {
        **{f"config.{name}": value for name, value in fields.items()},
        "workdir": str(workdir.absolute()),
        "the version of snipjax": f"{snipjax.__version__} {digest.hexdigest()[:16]}",
        "the version of JAX": jax.__version__,
    }
