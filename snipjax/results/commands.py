"""Commands behind the rows of a table, noted by the runs or reconstructed."""

import functools
import re
import runpy
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import snipjax
from snipjax import config as configs
from snipjax.results.words import flag_value, printable


def command(config: Mapping[str, Any]) -> str:
    """Returns a command that asks for a configuration, given by dotted names.

    It has the file of ``configs/`` that needs the fewest flags, and these.

    Example:
      >>> command({"prune.sparsity": 0.98, "seed": 1})
      'python train.py --config configs/digits_lenet300.py
       --config.prune.sparsity=0.98 --config.seed=1'
    """
    asked = dict(configs.fields(configs.default())) | dict(config)

    def flags(known: Mapping[str, Any]) -> list[str]:
        return [
            shlex.quote(f"--config.{name}={flag_value(value)}")
            for name, value in asked.items()
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
    """Returns fields by name of the files in ``configs/``; the default without any."""
    files = {"digits_lenet300": dict(configs.fields(configs.default()))}
    directory = Path(snipjax.__file__).parents[1] / "configs"
    for path in sorted(directory.glob("*.py")):
        try:
            config = runpy.run_path(str(path))["get_config"]()
            if "study" not in config:
                files[path.stem] = dict(configs.fields(config.to_dict()))
        except Exception:  # a config file is code, and can raise anything
            continue
    return files


def commands(row: Any) -> list[str]:
    """Returns the commands behind a row; those that differ in the seed as one.

    Directories of runs are left out, and absolute paths shortened to their last part.
    The command of a run without a note is reconstructed from its configuration.
    Remarks stand behind a ``#``.
    """
    lines: dict[tuple[str, bool], dict[str, list[int]]] = {}
    for network in row.networks.drop_duplicates("directory").to_dict("records"):
        noted = network.get("command")
        is_noted = isinstance(noted, str) and bool(noted)
        config = {name: network[name] for name, _ in configs.fields(configs.default())}
        line = printable(_without_paths(noted) if is_noted else command(config))
        bare = re.sub(r" --?config\.seed[= ]\d+", "", line)
        seeds = lines.setdefault((bare, is_noted), {})
        seeds.setdefault(line, []).append(network["seed"])
    return [_with_remarks(*of, seeds) for of, seeds in lines.items()]


def _with_remarks(bare: str, is_noted: bool, seeds: Mapping[str, list[int]]) -> str:
    remarks = [] if is_noted else ["reconstructed from config.json"]
    if len(seeds) == 1:  # one command made all of them
        (line,) = seeds
    else:
        first, *others = sorted(seed for same in seeds.values() for seed in same)
        line = f"{bare} --config.seed={first}"
        remarks = [f"likewise seed {', '.join(map(str, others))}", *remarks]
    return line + (f"  # {'; '.join(remarks)}" if remarks else "")


def _without_paths(line: str) -> str:
    """Returns a command without its --workdir and a machine's places."""
    line = re.sub(r"""\s--?workdir[=\s]+('[^']*'|"[^"]*"|\S+)""", "", line)
    return re.sub(
        r"""(?<![\w.~:/-])/(?:[^\s'"=,/]+/)*?((?:configs/)?[^\s'"=,/]+)/?(?=[\s'"=,]|$)""",
        r"\1",
        line,
    )
