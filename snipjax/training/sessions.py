"""A run's use of its directory, by one process or by several together."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import snipjax
from snipjax.training import distributed, rundir
from snipjax.training.stopping import StopRequest, stop_requests


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
        if not distributed.any_of(path.exists()):
            return None
        return rundir.read_json(path)

    def write(self, name: str, value: Any) -> None:
        """Writes a value as a JSON file of the run."""
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
    with (
        distributed.lost_peers(),
        _claimed(workdir, fields, differences),
        distributed.one_voice(workdir) as output,
        stop_requests() as stop,
    ):
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


@contextlib.contextmanager
def _claimed(
    workdir: Path, fields: Mapping[str, Any], differences: rundir.Differences
) -> Iterator[None]:
    """Claims the directory in the first process, for all of them."""
    if jax.process_count() > 1:
        distributed.check_same(start_facts(workdir, fields))
    with contextlib.ExitStack() as stack:
        claim = rundir.claim(workdir, differences)
        distributed.by_first(lambda: stack.enter_context(claim))
        yield
