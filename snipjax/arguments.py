"""The arguments of a command line: several values, places, and the name of a config."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from snipjax import config_files

# Flags that say where something is run, not what.
PLACES = ("workdir", "data_dir", "coordinator_address", "num_processes", "process_id")
PROCESSES = PLACES[2:]
# Fields whose values have commas of their own are not split into a sweep.
_SWEPT = re.compile(r"--?config\.((?!vary|mesh|prune\.exclude)[\w.]+)")


def without_given(vary: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Returns the entries of ``config.vary`` whose fields are not given as flags."""
    given = {
        argument.lstrip("-").removeprefix("config.").split("=")[0]
        for argument in arguments
    }
    rest = []
    for entry in vary:
        names = str(entry).split("=")[0].split("&")
        if len(names) > 1 and given & set(names):
            raise ValueError(
                f"the config varies {' and '.join(names)} together; give both in "
                f"--config.vary, e.g. --config.vary=\"('{'&'.join(names)}=...',)\""
            )
        if not given & set(names):
            rest.append(entry)
    return rest


def split_sweeps(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments of one value, and the others as entries of ``config.vary``.

    >>> split_sweeps(["--config.seed=1", "--config.prune.sparsity", "0.9, 0.95"])
    (['--config.seed=1'], ['prune.sparsity=0.9,0.95'])
    """
    rest: list[str] = []
    entries = []
    for arguments in with_values(argv):
        flag, _, values = "=".join(arguments).partition("=")
        match = _SWEPT.fullmatch(flag)
        if not (match and "," in values):
            rest += arguments
            continue
        parts = [value.strip() for value in values.split(",")]
        if not all(parts):
            raise ValueError(
                f"config.{match[1]} is '{values}', with an empty value; write one "
                "value without a comma, and several with no space after a comma, like "
                f"--config.{match[1]}=<value>,<value>"
            )
        entries.append(f"{match[1]}={','.join(parts)}")
    return rest, entries


def with_values(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yields each argument, together with the next one where that is its value."""
    is_value = False
    for argument, following in zip(arguments, [*arguments[1:], "--end"]):
        if is_value:
            is_value = False
            continue
        is_flag = argument.startswith("-") and "=" not in argument
        is_value = is_flag and not re.match("--?[a-z]", following)
        yield [argument, following] if is_value else [argument]


def without_places(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments that say what to run, without those that say where."""
    return [
        part
        for argument, *value in with_values(arguments)
        if argument.lstrip("-").split("=")[0] not in PLACES
        for part in (argument, *value)
    ]


def program(file: str) -> str:
    """Returns the arguments of Python that run the program of a file anywhere."""
    is_module = Path(file) == Path(__file__).with_name("train.py")
    return "-m snipjax.train" if is_module else "train.py"


def with_config_path(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments, with the path of a configuration in place of its name."""
    rest: list[str] = []
    for parts in with_values(arguments):
        flag, equals, given = "=".join(parts).partition("=")
        is_config = flag.lstrip("-") == "config" and equals
        rest += [f"--config={config_files.find(given)}"] if is_config else parts
    return rest
