"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_EXAMPLES = 3  # names in an error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields an empty file that takes the place of ``path`` when the block ends.

    The file lies beside ``path`` and is called ``<name>.partial``. An error in the
    block removes it, and leaves an earlier file untouched.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # a library may have narrowed it
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(
            f"'{path}' cannot be written ({error}); its previous content is untouched. "
            "Make room, or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def listed(names: Sequence[str]) -> str:
    """Returns the first of some names, and the number of the others.

    >>> listed(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    text = ", ".join(f"'{name}'" for name in names[:_EXAMPLES])
    others = len(names) - _EXAMPLES
    return f"{text} and {others} more" if others > 0 else text
