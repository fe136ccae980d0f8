"""Prunes a network at initialization and trains it.

python train.py --config configs/digits_lenet300.py
python train.py --config configs/mnist_lenet300.py --config.prune.sparsity=0.98
python train.py --config configs/table1.py --config.methods=snip,lwc
"""

import contextlib
import difflib
import os
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from snipjax import config as configs

FLAGS = flags.FLAGS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's directory; by default one under runs/ by its name."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TFDS data directory; by default TFDS's own."
)
_DEVICES = "xla_force_host_platform_device_count"
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "Of several processes: <host>:<port> of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes run this command together."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0 on."
)
# Flags that say where something is run, not what.
_PLACES = "workdir", "data_dir", "coordinator_address", "num_processes", "process_id"
_NOT_LOADED = (
    "Configuration is not available because of an earlier failure to load:"  # absl's
)


def main(argv: list[str]) -> int:
    """Runs the experiment of the command line; returns the exit code."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(usage(default_of(argv)))
        return 0
    logging.set_verbosity(logging.FATAL)  # what goes wrong is raised, and said below
    warnings.showwarning = show_warning
    try:
        config = parse(argv)
        join_processes(config)
        run = runner(config)
        keep_compilations()
        results = run(
            config,
            _WORKDIR.value or default_workdir(config),
            data_dir=_DATA_DIR.value,
            command=f"python train.py {shlex.join(without_places(argv[1:]))}",
        )
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        # Lines after the first may be commands to paste, which one line would spoil.
        lines = str(error).strip().replace("\n", "\n  ")
        print(f"train.py: {lines}", file=sys.stderr)
        return 2
    # Of table 1, cells that failed are said in the table, and cost the others nothing.
    return 1 if is_table(config) and results.failures else 0


def join_processes(config: configs.ConfigDict) -> None:
    """Joins the processes that run this command together, where there are several.

    Raises:
      ValueError: if they are told of, but the configuration is for one alone.
    """
    told = _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if is_table(config) or not configs.is_large(config):
        if any(value is not None for value in told):
            raise ValueError(
                "several processes train one network on a mesh; give its axes, e.g. "
                "--config.mesh=data=8"
            )
        return
    from snipjax.training import distributed

    distributed.initialize(*told)


def runner(config: configs.ConfigDict) -> Callable[..., Any]:
    """Returns the function that runs a configuration."""
    # Importing JAX takes longer than the checks.
    if is_table(config):
        from snipjax.studies import table1

        return table1.run
    if configs.is_large(config):
        from snipjax.training import large

        return large.run
    from snipjax import experiment, sweep
    from snipjax.training import seeds

    if config.seeds > 1:
        use_every_core(config.seeds)
    if config.vary:
        return sweep.run
    return seeds.run if config.seeds > 1 else experiment.run


def use_every_core(most: int) -> None:
    """Has JAX see a device in every core of the CPU, for networks to be spread over.

    Args:
      most: how many devices there is something to do for.
    """
    import jax
    import loky

    # JAX may be at work already, on the devices that it has; or be told otherwise.
    with contextlib.suppress(RuntimeError):
        if jax.config.jax_num_cpu_devices < 0 and _DEVICES not in os.environ.get(
            "XLA_FLAGS", ""
        ):
            jax.config.update("jax_num_cpu_devices", min(most, loky.cpu_count()))


def is_table(config: configs.ConfigDict) -> bool:
    """Whether a configuration is one of table 1."""
    return "methods" in config


def keep_compilations() -> None:
    """Has JAX keep what it compiles on disk, so that a second start need not.

    In ``$JAX_COMPILATION_CACHE_DIR`` if that is set, else in the user's cache.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        directory = str(cache / "snipjax" / "compilations")
        jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # What cannot be kept, or was cut off by a kill, is compiled: that is no news.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation")


def parse(argv: list[str]) -> configs.ConfigDict:
    """Returns the configuration that the command line asks for.

    Raises:
      ValueError: for what is misspelt, missing or of a wrong type.
    """
    like = default_of(argv)
    # Which has lists of its own, such as methods.
    argv, vary = (argv, []) if is_table(like) else several_values(argv)
    known = configs.field_names(like)
    for argument in argv[1:]:
        name = argument.lstrip("-").split("=")[0]
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            name = name.removeprefix("config.")
            raise ValueError(configs.unknown_field(name, like))
        is_flag = argument.startswith("--")
        if is_flag and "." in name and not name.startswith("config."):
            fields = [f"config.{field}" for field in known]
            ends = [field for field in fields if field.endswith(f".{name}")]
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown flag '--{name}'; did you mean '--{[*ends, *close][0]}'?"
            )
    try:
        arguments = FLAGS(argv)
        config = _CONFIG.value
        if config is not None:
            config.items()  # a file that could not be read says so here
    except Exception as error:  # a config file is code, and can raise anything
        raise ValueError(explanation(error, like)) from None
    if len(arguments) > 1:
        raise ValueError(f"unexpected argument '{arguments[1]}'; options begin with --")
    if not FLAGS["config"].present:
        raise ValueError("--config is missing, e.g. configs/digits_lenet300.py")
    if not isinstance(config, configs.ConfigDict):
        raise ValueError(
            f"--config: get_config() returned a {type(config).__name__}, not the "
            "ConfigDict it made with snipjax.config.default()"
        )
    if is_table(config):
        from snipjax.studies import table1

        table1.validate(config)
        return config
    config.vary = (*not_overridden(config.vary, argv[1:] + vary), *vary)
    configs.validate(config)
    configs.cells(config)
    if config.signal_seeds and not config.vary:
        raise ValueError(
            "config.signal_seeds is for runs of several settings; give several values "
            "of a field, e.g. --config.init.scored=fan_in,he"
        )
    return config


def not_overridden(vary: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Returns the entries of a config file's ``vary`` without those given as flags.

    Raises:
      ValueError: if a flag is for one of several fields that vary together.
    """
    given = {
        argument.lstrip("-").removeprefix("config.").split("=")[0]
        for argument in arguments
    }
    kept = []
    for entry in vary:
        names = entry.split("=")[0].split("&")
        if len(names) > 1 and given & set(names):
            raise ValueError(
                f"the config varies {' and '.join(names)} together; give both in "
                f"--config.vary, e.g. --config.vary=\"('{'&'.join(names)}=...',)\""
            )
        if not given & set(names):
            kept.append(entry)
    return kept


def several_values(argv: list[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments without those of several values, and these for ``vary``.

    ``--config.prune.sparsity=0.9,0.95`` asks for a run with each. The values may be an
    argument of their own, and have spaces around them.

    Raises:
      ValueError: if one of several values is empty.
    """
    # Not of fields whose one value may have commas itself.
    field = re.compile(r"--?config\.((?!vary|mesh|prune\.exclude)[\w.]+)")
    rest, several, is_value = [], [], False
    for argument, following in zip(argv, [*argv[1:], ""]):
        if is_value:
            is_value = False
            continue
        flag, equals, values = argument.partition("=")
        if not (equals or re.match("--?[a-z]", following)):
            values = following
        match = field.fullmatch(flag)
        if match and "," in values:
            several.append(f"{match[1]}={without_spaces(match[1], values)}")
            is_value = not equals
        else:
            rest.append(argument)
    return rest, several


def without_spaces(name: str, values: str) -> str:
    """Returns the values of a field without the spaces around them.

    Raises:
      ValueError: if one of them is empty.
    """
    parts = [value.strip() for value in values.split(",")]
    if not all(parts):
        raise ValueError(
            f"config.{name} is '{values}', with an empty value; write one value "
            "without a comma, and several with no space after a comma, like "
            f"--config.{name}=<value>,<value>"
        )
    return ",".join(parts)


def without_places(arguments: list[str]) -> list[str]:
    """Returns the arguments that say what to run, without those that say where."""
    kept, is_value = [], False
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        if is_value or name in _PLACES:
            is_value = not is_value and "=" not in argument
            continue
        kept.append(argument)
    return kept


def default_of(argv: Sequence[str]) -> configs.ConfigDict:
    """Returns a configuration with the fields that the command line may set.

    They are those of an experiment, or of table 1 where the file makes such a one.
    """
    for argument, following in zip(argv[1:], [*argv[2:], ""]):
        name, equals, value = argument.partition("=")
        if name not in ("-config", "--config"):
            continue
        file, _, of_file = (value if equals else following).partition(":")
        try:
            # Importing all methods takes seconds, which only their table costs.
            if "table1" in Path(file).read_text():
                get_config = runpy.run_path(file)["get_config"]
                config = get_config(*filter(None, [of_file]))
                if is_table(config):
                    return config
        except Exception:  # which loading it as a flag raises again, and explains
            break
    return configs.default()


def explanation(error: Exception, like: configs.ConfigDict) -> str:
    """Returns what absl or ml_collections say of a bad flag or config file, in short.

    They give tracebacks and the whole configuration.
    """
    message = str(error).removeprefix(_NOT_LOADED)
    missing_file = re.search(r"No such file or directory: '(.*?)'", message)
    if missing_file:
        return f"--config: there is no file '{missing_file[1]}'"
    unknown_field = re.search(r'(?:Key \\?|instead of )"(\w+)', message)
    if unknown_field:
        return f"--config: {configs.unknown_field(unknown_field[1], like)}"
    wrong_type = re.search(r"override field '(\w+)'.*?(\S+) is of original", message)
    if wrong_type:
        return f"--config: {configs.wrong_type(*wrong_type.groups(), like)}"
    if "Traceback" in message:
        return f"--config: {message.strip().splitlines()[-1]}"
    if isinstance(error, flags.Error):
        return message
    return f"--config: {type(error).__name__}: {message}"


def show_warning(message: Warning | str, *where: Any) -> None:
    """Prints a warning as a line, without the line of code it comes from."""
    print(f"train.py: warning: {message}", file=sys.stderr)


def usage(like: configs.ConfigDict) -> str:
    """Returns the text of ``--help``: the flags, and every field of a config."""
    fields = "\n".join(
        f"  --config.{name} (default {value!r})" for name, value in configs.fields(like)
    )
    return (
        f"{__doc__}\nFlags:\n{FLAGS.main_module_help()}\n\n"
        f"Fields of the configuration, each a flag:\n{fields}"
    )


def default_workdir(config: configs.ConfigDict) -> Path:
    """Returns ``runs/<config file>-<method>-<sparsity>-seed<seed>``.

    Of table 1, where more methods and seeds may come later, ``runs/<config file>``.
    """
    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem
    if is_table(config):
        data = "" if config.dataset.name == "mnist" else f"-{config.dataset.name}"
        return Path("runs") / f"{name}{data}{'-quick' if config.quick else ''}"
    prune = config.prune
    sparsity = "" if prune.method == "none" else f"-{prune.sparsity:g}"
    seed = f"seed{config.seed}"
    if config.seeds > 1:
        seed = f"seeds{config.seed}-{config.seed + config.seeds - 1}"
    varied = "".join(f"-{re.sub('[ /]', '_', entry)}" for entry in config.vary)
    return Path("runs") / f"{name}-{prune.method}{sparsity}-{seed}{varied}"[:200]


if __name__ == "__main__":
    exit_code = main(sys.argv)
    if exit_code:
        if "snipjax.training.distributed" in sys.modules:
            sys.modules["snipjax.training.distributed"].let_others_end()
        os._exit(exit_code)  # or the threads of a failed write go on logging
