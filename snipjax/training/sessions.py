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

    Attributes:
      directory: the directory that all processes see.
      output: the directory that this process writes to: the same in the first process,
        in the others one that is removed at the end.
      stop: the request of a signal to stop.
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

    Every process of a run calls it alike. Signals are noted while it lasts.

    Args:
      workdir: the directory of the run.
      fields: the configuration by dotted names, which all processes must share.
      differences: as :func:`snipjax.training.rundir.claim` takes it.

    Raises:
      ValueError: if the directory holds something else, or the processes were not
        given the same configuration, directory and code.
      OSError: if another process died.
      KeyboardInterrupt: if a signal came that nothing has raised for.

    Example:
      >>> import tempfile
      >>> with opened(Path(tempfile.mkdtemp()), {"seed": 0}, lambda _: []) as session:
      ...     session.write("result.json", {"error": 1.5})
      ...     session.read("result.json")
      {'error': 1.5}
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
    """Returns the facts that all processes of a run must share, by their names.

    Args:
      workdir: the directory of the run.
      fields: the configuration by dotted names.
    """
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
