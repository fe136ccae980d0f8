"""The command line of an experiment: from arguments to a run, mistakes in one line.

JAX is imported once the arguments are right, for that takes longer than the checks.
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
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from snipjax import arguments, build, config_files
from snipjax import config as configs
from snipjax.schema import FIELDS

_NOT_LOADED = (
    "Configuration is not available because of an earlier failure to load:"  # absl's
)


def start(argv: list[str], description: str) -> NoReturn:
    """Runs a command line, and ends the process with its exit code."""
    sys.unraisablehook = show_unraisable
    try:
        exit_code = main(argv, description)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as head, has enough
        os._exit(1)
    if exit_code:
        distributed = sys.modules.get("snipjax.training.distributed")
        if distributed is not None:
            distributed.let_others_end()
        os._exit(exit_code)  # or the threads of a failed write go on logging
    sys.exit()


def main(argv: list[str], description: str) -> int:
    """Runs the experiment of a command line, and returns the exit code.

    It is 1 if a part of a study failed, 2 for a mistake of the user, which is told in
    one line, and 130 for an interrupt.
    """
    asked = shlex.join(arguments.without_places(argv[1:]))
    command = f"python {arguments.program(argv[0])} {asked}"
    argv = arguments.with_config_path(argv)
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(usage(description, known_config(argv)))
        return 0
    logging.set_verbosity(logging.FATAL)  # absl's errors are raised, and told below
    warnings.showwarning = show_warning
    try:
        config = parse(argv)
        join_processes(config)
        run = runner(config)
        keep_compilations()
        workdir = Path(flags.FLAGS.workdir or default_workdir(config))
        outcome = run(config, workdir, data_dir=flags.FLAGS.data_dir, command=command)
        if not is_study(config):
            draw(workdir)
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = str(error).strip()
        if isinstance(error, RuntimeError):
            if "RESOURCE_EXHAUSTED" not in message:
                raise
            message = (
                "the device has too little memory; lower config.train.batch_size, or "
                f"config.seeds if it is above 1 ({message})"
            )
        # Lines after the first may be commands to paste, which one line would spoil.
        print("train.py: " + message.replace("\n", "\n  "), file=sys.stderr)
        return 2
    return 1 if is_study(config) and outcome else 0  # its failures


def draw(workdir: Path) -> None:
    """Draws the pictures of a run, and of a sweep the table that compares its runs."""
    from snipjax.results import compare
    from snipjax.training import console, distributed

    if not distributed.is_first():
        return
    table = compare.write(workdir)
    if table is not None:
        shown = compare.shown_table(table)
        console.show_table("Runs", list(shown), shown.to_numpy().tolist())
        console.say(f"everything is in {workdir}")
    for line in next_steps(workdir):
        console.say(line)


def next_steps(workdir: Path) -> list[str]:
    """Returns lines that name the picture of the kept connections, and commands."""
    names = ("first_layer", "first_layers", "densities")
    pictures = [workdir / f"{name}.png" for name in names]
    place, report = (shlex.quote(str(p)) for p in (workdir, workdir / "report"))
    return [
        *[f"kept connections: {p}" for p in pictures if p.exists()][:1],
        f"report: python -m snipjax.report {place} --out {report}",
        f"curves: tensorboard --logdir {place}",
    ]


def is_study(config: ConfigDict) -> bool:
    return "study" in config


def join_processes(config: ConfigDict) -> None:
    """Joins the processes that run this command together, where there are several."""
    told = [flags.FLAGS[name].value for name in arguments.PROCESSES]
    if is_study(config) or not configs.is_large(config):
        if any(value is not None for value in told):
            raise ValueError(
                "several processes train one network on a mesh; give its axes, e.g. "
                "--config.mesh=data=8"
            )
        return
    from snipjax.training import distributed

    distributed.initialize(*told)


def runner(config: ConfigDict) -> Callable[..., Any]:
    """Returns the function that runs a configuration, whose names are checked."""
    if is_study(config):
        from snipjax.studies import table1

        return table1.make
    if config.seeds > 1:
        use_every_core(config.seeds)
    for cell in configs.cells(config).values():
        build.check_names(cell)
    if config.vary:
        from snipjax import sweep

        return sweep.run_all
    from snipjax import experiment

    return experiment.run


def use_every_core(most: int) -> None:
    """Makes the cores of the CPU devices of JAX, at most as many as networks."""
    import jax
    import loky

    # JAX may be at work already, on the devices that it has; or be told otherwise.
    with contextlib.suppress(RuntimeError):
        is_told = "platform_device_count" in os.environ.get("XLA_FLAGS", "")
        if jax.config.jax_num_cpu_devices < 0 and not is_told:  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", min(most, loky.cpu_count()))


def keep_compilations() -> None:
    """Makes JAX keep compiled programs on disk, by default in the user's cache."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        directory = str(cache / "snipjax" / "compilations")
        jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A program that cannot be cached, or a damaged one, is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation")


def parse(argv: list[str]) -> ConfigDict:
    """Returns the configuration that a command line asks for, checked."""
    like = known_config(argv)
    # A study has lists of its own, such as its methods.
    argv, vary = (argv, []) if is_study(like) else arguments.split_sweeps(argv)
    for argument in argv[1:]:
        check_flag(argument, like)
    try:
        positional = flags.FLAGS(argv)
        config = flags.FLAGS.config
        if config is not None:
            config.items()  # a file that could not be read says so here
    except Exception as error:  # a config file is code, and can raise anything
        raise ValueError(explanation(error, like)) from None
    if len(positional) > 1:
        raise ValueError(
            f"unexpected argument '{positional[1]}'; options begin with --"
        )
    if not flags.FLAGS["config"].present:
        raise ValueError("--config is missing, e.g. --config digits_lenet300")
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"--config: get_config() returned a {type(config).__name__}, not the "
            "ConfigDict it made with snipjax.config.default()"
        )
    if is_study(config):
        from snipjax.studies import table1

        table1.validate(config)
        return config
    config.vary = (*arguments.without_given(config.vary, argv[1:] + vary), *vary)
    configs.validate(config)
    configs.cells(config)
    if config.signal_seeds and not config.vary:
        raise ValueError(
            "config.signal_seeds is for runs of several settings; give several values "
            "of a field, e.g. --config.init.scored=fan_in,he"
        )
    return config


def check_flag(argument: str, like: ConfigDict) -> None:
    """Raises a ``ValueError`` for a flag of no field, with the nearest there is."""
    known = configs.field_names(like)
    name = argument.lstrip("-").split("=")[0]
    section, dot, field = name.partition(".")
    if section == "config" and dot and field not in known:
        raise ValueError(configs.unknown_field(field, like))
    if argument.startswith("--") and dot and section != "config":
        names = [f"config.{field}" for field in known]
        ends = [field for field in names if field.endswith(f".{name}")]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown flag '--{name}'; did you mean '--{[*ends, *close][0]}'?"
        )


def known_config(argv: Sequence[str]) -> ConfigDict:
    """Returns a configuration with the fields that a command line may set."""
    for argument, *value in arguments.with_values(argv):
        name, _, file = "=".join([argument, *value]).partition("=")
        if name.lstrip("-") != "config":
            continue
        file, _, choice = file.partition(":")
        try:
            # Studies import JAX, which other files need not wait for.
            if "snipjax.studies" in Path(file).read_text():
                get_config = runpy.run_path(file)["get_config"]
                config = get_config(*filter(None, [choice]))
                if is_study(config):
                    return config
        except Exception:  # which loading it as a flag raises again, and explains
            break
    return configs.default()


def explanation(error: Exception, like: ConfigDict) -> str:
    """Returns the error of a bad flag or config file without its traceback."""
    message = str(error).removeprefix(_NOT_LOADED)
    missing_file = re.search(r"No such file or directory: '(.*?)'", message)
    if missing_file:
        return config_files.missing(missing_file[1])
    unknown_field = re.search(r'(?:Key \\?|instead of )"(\w+)', message)
    if unknown_field:
        return f"--config: {configs.unknown_field(unknown_field[1], like)}"
    wrong_type = re.search(r"override field '(\w+)'.*?(\S+) is of original", message)
    if wrong_type:
        return f"--config: {configs.wrong_type(wrong_type[1], wrong_type[2], like)}"
    if "Traceback" in message:
        return f"--config: {message.strip().splitlines()[-1]}"
    name = type(error).__name__
    return message if isinstance(error, flags.Error) else f"--config: {name}: {message}"


def show_unraisable(unraisable: Any) -> None:
    """Prints an error that nobody can catch, but not of reads behind a failed one."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Prints a warning as a line, without the line of code it comes from."""
    print(f"train.py: warning: {message}", file=sys.stderr)


def usage(description: str, like: ConfigDict) -> str:
    """Returns the help: the flags, and every field of a configuration."""
    values = dict(configs.fields(like))
    known = {field.name: field for field in FIELDS}
    lines = []
    for name in configs.field_names(like):
        lines.append(f"  --config.{name} (default {values[name]!r})")
        if name in known:
            choices = [*known[name].choices, *["import path"] * known[name].own]
            suffix = f": {', '.join(choices)}" if choices else ""
            lines.append(f"    {known[name].help}{suffix}")
    # They are the main module's where it is run by its name.
    modules = ("snipjax.train", sys.argv[0])
    flag_help = "".join(flags.FLAGS.module_help(module) for module in modules)
    return (
        f"{description}\nFlags:\n{flag_help}\n\n"
        f"Fields of the configuration, each a flag:\n" + "\n".join(lines)
    )


def default_workdir(config: ConfigDict) -> Path:
    """Returns ``runs/<config file>-<method>-<sparsity>-seed<seed>``, or a study's.

    An optimizer that moves the mask follows, with the sparsity that it comes to.
    """
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    if is_study(config):
        data = "" if config.dataset.name == "mnist" else f"-{config.dataset.name}"
        return Path("runs") / f"{name}{data}{'-quick' if config.quick else ''}"
    prune, moves = config.prune, config.optimizer.sparse
    method = prune.method
    if method != "none":
        method += f"-{prune.sparsity:g}"
    if moves.name != "static":
        method += f"-{moves.name}"
    if moves.name in build.ENDS_AT_SPARSITY:
        method += f"-{moves.sparsity:g}"
    seed = f"seed{config.seed}"
    if config.seeds > 1:
        seed = f"seeds{config.seed}-{config.seed + config.seeds - 1}"
    varied = "".join(f"-{entry}" for entry in config.vary)
    directory = f"{name}-{method}-{seed}{varied}"
    return Path("runs") / re.sub("[ /:]", "_", directory)[:200]
