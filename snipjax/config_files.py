"""The configurations that come with snipjax, by their names."""

import difflib
from pathlib import Path

# A link to the repository's configs/, and a copy of it where snipjax is installed.
DIRECTORY = Path(__file__).parent / "configs"


def names() -> list[str]:
    return sorted(path.stem for path in DIRECTORY.glob("*.py"))


def find(given: str) -> str:
    """Returns the path of a configuration that is given by its name or by its path.

    A file in the current directory comes first. The text behind a colon is the
    argument of the file's ``get_config``, and stays.

    >>> Path(find("digits_lenet300")).name, find("mine.py:small")
    ('digits_lenet300.py', 'mine.py:small')
    """
    name, colon, choice = given.partition(":")
    if name in names() and not Path(name).is_file():
        name = str(DIRECTORY / f"{name}.py")
    return f"{name}{colon}{choice}"


def missing(given: str) -> str:
    """Returns the message for a file that is not there, with the nearest name."""
    nearest = difflib.get_close_matches(Path(given).stem, names(), n=1, cutoff=0.0)
    return (
        f"--config: there is no file '{given}'; did you mean '{nearest[0]}'? Give the "
        f"path of a file, or one of {', '.join(names())}"
    )
