"""The commands that made the rows: as noted by the runs, or reconstructed."""

import functools
import re
import runpy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import snipjax
from snipjax import config as configs
from snipjax.results.report.aggregation import Row
from snipjax.results.report.values import flag_value, printable
from snipjax.training import rundir


def command(config: Mapping[str, Any]) -> str:
    """Returns a command that asks for a configuration.

    Args:
      config: values by dotted name.

    Returns:
      ``train.py`` with the file of ``configs/`` that needs the fewest flags, and these.

    Example:
      >>> command({"prune.sparsity": 0.98, "seed": 1})
      'python train.py --config configs/digits_lenet300.py
       --config.prune.sparsity=0.98 --config.seed=1'
    """
    wanted = dict(configs.fields(configs.default())) | dict(config)

    def flags(known: Mapping[str, Any]) -> list[str]:
        return [
            shlex.quote(f"--config.{name}={flag_value(value)}")
            for name, value in wanted.items()
            if name != "vary"
            if name not in known or flag_value(known[name]) != flag_value(value)
        ]

    files = _config_files()
    name = min(files, key=lambda name: len(flags(files[name])))
    return " ".join(
        [f"python train.py --config configs/{name}.py", *flags(files[name])]
    )


@functools.cache
def _config_files() -> dict[str, dict[str, Any]]:
    """Fields by name of the files in ``configs/``; the default where there are none."""
    files = {"digits_lenet300": dict(configs.fields(configs.default()))}
    directory = Path(snipjax.__file__).parents[1] / "configs"
    for path in sorted(directory.glob("*.py")):
        try:
            if "table1" in path.read_text():
                continue  # of many runs, and importing all methods takes seconds
            config = runpy.run_path(str(path))["get_config"]()
            files[path.stem] = dict(configs.fields(config.to_dict()))
        except Exception:  # a config file is code, and can raise anything
            continue
    return files


def commands(row: Row) -> list[str]:
    """Returns the commands that made a row; those that differ in the seed as one.

    Directories of runs are left out, and absolute paths shortened to their last part.
    A run that did not note its command has it reconstructed from its configuration.
    What a reader should know stands behind a ``#``.
    """
    seeds: dict[tuple[str, bool], list[int]] = {}
    for run in {run.path: run for run in row.runs}.values():
        noted = run.result.get("command")
        is_noted = isinstance(noted, str) and bool(noted)
        line = _without_paths(noted) if is_noted else command(run.config)
        bare = re.sub(r" --?config\.seed[= ]\d+", "", printable(line))
        seeds.setdefault((bare, is_noted), []).append(run.config["seed"])
    return [
        _with_seeds(line, of_line, is_noted)
        for (line, is_noted), of_line in seeds.items()
    ]


def _with_seeds(line: str, seeds: Sequence[int], is_noted: bool) -> str:
    first, *others = seeds
    remarks = [f"likewise seed {', '.join(map(str, others))}"] if others else []
    remarks += [] if is_noted else [f"reconstructed from {rundir.CONFIG}"]
    line += f" --config.seed={first}" if first or others else ""
    return line + (f"  # {'; '.join(remarks)}" if remarks else "")


def _without_paths(line: str) -> str:
    """A command without its --workdir, and without where things are on a machine."""
    line = re.sub(r"""\s--?workdir[=\s]+('[^']*'|"[^"]*"|\S+)""", "", line)
    return re.sub(
        r"""(?<![\w.~:/-])/(?:[^\s'"=,/]+/)*?((?:configs/)?[^\s'"=,/]+)/?(?=[\s'"=,]|$)""",
        r"\1",
        line,
    )
