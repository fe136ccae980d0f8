"""Requests to stop: interrupts and terminations, noted and obeyed at a good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """A request by an interrupt or a termination.

    It raises ``KeyboardInterrupt`` at once, unless it ``waits``: then the first signal
    is only noted. It is noted also where it raises, for an exception can get lost:
    Python drops those raised in callbacks of the garbage collector, and JAX has one.
    """

    def __init__(self) -> None:
        self.is_made, self.waits = False, False

    def handle(self, number: int, frame: Any) -> None:
        """Handles a signal."""
        is_first, self.is_made = not self.is_made, True
        if not (is_first and self.waits):
            raise KeyboardInterrupt


@contextmanager
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
