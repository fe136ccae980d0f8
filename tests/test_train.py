"""The command line, in processes of its own: mistakes, interruptions, kills."""

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snipjax.schema import FIELDS
from snipjax.training import rundir

ROOT = Path(__file__).parents[1]
DIGITS = ("--config", ROOT / "configs" / "digits_lenet300.py")
QUICK = (
    "--config.train.steps=300",
    "--config.train.steps_per_dispatch=10",
    "--config.train.eval_every=50",
    "--config.train.checkpoint_every=50",
)
TIMINGS = {"seconds", "steps_per_second", "wall_seconds"}


class Program(NamedTuple):
    """``train.py`` in a directory, with an environment."""

    directory: Path
    environment: dict[str, str]

    def start(
        self, *arguments: Any, script: tuple[Any, ...] = ()
    ) -> subprocess.Popen[str]:
        """Starts it, by a script of this file where one is given."""
        command = [sys.executable, *script, ROOT / "train.py", *arguments]
        return subprocess.Popen(
            [*map(str, command)],
            cwd=self.directory,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: Any, script: tuple[Any, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Starts it and waits for its end."""
        with self.start(*arguments, script=script) as process:
            output = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, *output)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, {})


@pytest.fixture(scope="module")
def cached_program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One whose processes share what they compile, for they do the same often."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Program(tmp_path_factory.mktemp("working"), environment)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore interrupts, and so would programs they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Finished(NamedTuple):
    """A run that nothing interrupted."""

    output: subprocess.CompletedProcess[str]
    workdir: Path

    @property
    def result(self) -> dict[str, Any]:
        return rundir.read_json(self.workdir / rundir.RESULT)


@pytest.fixture(scope="module")
def finished(
    cached_program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return Finished(cached_program.run(*DIGITS, *QUICK, "--workdir", workdir), workdir)


def without_timings(value: Any) -> Any:
    """The same without what differs between equal runs, at any depth."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def assert_one_line(output: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert output.returncode == 2
    assert output.stderr.count("\n") == 1
    assert re.match(f"train.py: .*{pattern}", output.stderr)
    assert "Traceback" not in output.stdout + output.stderr


def assert_silent(output: subprocess.CompletedProcess[str]) -> None:
    assert (output.returncode, output.stderr) == (0, "")


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "pattern"),
        [
            ((), "--config is missing, e.g. configs/digits_lenet300.py"),
            ((DIGITS[1],), r"unexpected argument '.*digits_lenet300\.py'"),
            (("--config", "configs/none.py"), r"no file 'configs/none\.py'"),
            (("--config",), "Missing value for flag --config"),
        ],
    )
    def test_of_the_config(
        self, arguments: tuple[Any, ...], pattern: str, program: Program
    ) -> None:
        assert_one_line(program.run(*arguments), pattern)

    @pytest.mark.parametrize(
        ("flag", "pattern"),
        [
            ("wrkdir=x", "'wrkdir'. Did you mean: workdir"),
            ("confg.seed=1", "did you mean '--config.seed'?"),
            ("sparsity.x=1", "unknown flag '--sparsity.x'; did you mean"),
            ("prune.sparsity=0", "did you mean '--config.prune.sparsity'"),
            ("process_id=0", "several processes train one network on a mesh"),
            ("config.trian.steps=9", r"did you mean 'train\.steps'"),
            ("config.train.momentum=0", r"did you mean 'optimizer\.momentum'"),
            ("config.prune=9", "config.prune is a section; its fields"),
            ("config.train.steps=ten", r"config\.train\.steps=ten"),
            ("config.train.steps=1e3", r"config\.train\.steps=1e3"),
            ("config.train.flip=perhaps", r"config\.train\.flip=perhaps"),
            ("config.optimizer.momentum=1", "is 1.0; it must be < 1:"),
            ("config.seed=-1", r"config\.seed is -1; it must be >= 0"),
            ("config.seeds=100000000", r"seeds is 100000000; it must be <= 10000"),
            ("config.prune.method=snp", r"did you mean 'snip'\?"),
            ("config.signal_seeds=2", "is for runs of several settings"),
            # Several values, one of which is a mistake.
            ("config.prune.sparsity=0.9,2", r"sparsity is 2\.0; it must be < 1"),
            ("config.prune.sparsity=0.9 , 2", r"sparsity is 2\.0; it must be < 1"),
            ("config.prune.sparsity=0.9,x", r"'prune\.sparsity' cannot be x"),
            ("config.prune.sparsty=0.9,0.8", r"did you mean 'prune\.sparsity'"),
            ("config.prune.fresh_init|--config.prune.sparsity|0.9,2", r"is 2\.0; it"),
            ("config.prune.sparsity|0.9,,0.95", "'0.9,,0.95', with an empty"),
            (  # a space, but no quotes
                "config.prune.sparsity=0.9,|0.95",
                r"'0\.9,', with an empty value; .* --config\.prune\.sparsity=<value>,",
            ),
        ],
    )
    def test_of_a_flag(self, flag: str, pattern: str, program: Program) -> None:
        output = program.run(*DIGITS, *f"--{flag}".split("|"))
        assert_one_line(output, pattern)
        assert output.stdout == ""

    @pytest.mark.parametrize(
        ("line", "pattern"),
        [
            ("config.train.stesp = 9", r"no field 'stesp'; .*'train\.steps'"),
            ("config.trian.steps = 9", "no field 'trian'; did you mean 'train'"),
            ("config.train.steps = 'many'", r"'train\.steps' cannot be many; .* int"),
            ("config.train.steps = 9.5", r"'train\.steps' cannot be 9\.5; .* int"),
            ("config.prune.method = 'snp'", "did you mean 'snip'"),
            ("config.unlock().stesp = 9", "no field 'stesp'"),
            ("return", "returned a NoneType, not the ConfigDict"),
            ("return {}", "returned a dict, not the ConfigDict"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("import nonesuch", "No module named 'nonesuch'"),
            ("if", r"SyntaxError: invalid syntax \(mine\.py, line 4\)"),
        ],
    )
    def test_in_a_config_file(
        self, line: str, pattern: str, program: Program, tmp_path: Path
    ) -> None:
        file = tmp_path / "mine.py"
        file.write_text(
            "from snipjax.config import default\n"
            "def get_config():\n"
            f"    config = default()\n    {line}\n    return config\n"
        )
        assert_one_line(program.run("--config", file), pattern)

    @pytest.mark.parametrize(
        ("flags", "pattern"),
        [
            ("model.name=nonesuch:Net", "there is no module 'nonesuch'"),
            ("model.name=lenet_300", "did you mean 'lenet_300_100'"),
            ("model.name=lenet_5_caffe", "the images are too small for this network"),
            ("prune.method=json:nonesuch", "'json' has no 'nonesuch'"),
            ("prune.method=json:dumps", r"does not take \(loss_fn, params, batch"),
            ("prune.method=lobs --config.lobs.block=2", "config.lobs: block is 2.0"),
        ],
    )
    def test_of_a_part_leaves_no_directory(
        self, flags: str, pattern: str, cached_program: Program, tmp_path: Path
    ) -> None:
        program = cached_program._replace(directory=tmp_path)
        assert_one_line(program.run(*DIGITS, *f"--config.{flags}".split()), pattern)
        assert [*(tmp_path / "runs").glob("*")] == []

    def test_of_a_workdir(
        self, finished: Finished, program: Program, tmp_path: Path
    ) -> None:
        command = (*DIGITS, *QUICK, "--config.prune.sparsity=0.5", "--workdir")
        output = program.run(*command, finished.workdir)
        assert_one_line(output, r"\(prune\.sparsity: 0\.5 here, 0\.9 there\)")
        (tmp_path / "thesis.tex").touch()
        output = program.run(*command, tmp_path / "thesis.tex")
        assert_one_line(output, "cannot be used")
        output = program.run(*command, tmp_path)
        assert_one_line(output, r"has files but no config\.json")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_with_commands_to_paste_keeps_them_on_lines_of_their_own(
        self, program: Program, tmp_path: Path
    ) -> None:
        (tmp_path / "mine.py").write_text(
            "def load():\n    raise ValueError('no data; run\\nmkdir a\\ncp b a')\n"
        )
        output = program.run(*DIGITS, "--config.dataset.name=mine:load")
        assert output.returncode == 2
        assert output.stderr == "train.py: no data; run\n  mkdir a\n  cp b a\n"


def test_help_names_every_flag_and_field(program: Program) -> None:
    output = program.run("--help")
    assert_silent(output)
    assert all(f"--{name}" in output.stdout for name in ("workdir", "data_dir"))
    for field in FIELDS:
        lines = f"--config.{field.name} (default {field.default!r})\n    {field.help}"
        assert lines in output.stdout
        assert ", ".join(field.choices) in output.stdout


class TestFinishedRun:
    def test_succeeds_in_silence_on_stderr(self, finished: Finished) -> None:
        assert_silent(finished.output)
        assert finished.result["steps"] == 300
        rows = rundir.read_metrics(finished.workdir)
        assert [row["step"] for row in rows] == list(range(50, 301, 50))

    def test_prints_densities_and_errors_without_control_characters(
        self, finished: Finished
    ) -> None:
        (network,), text = finished.result["networks"], finished.output.stdout
        assert all(character.isprintable() or character == "\n" for character in text)
        for layer in network["layers"]:
            assert re.search(rf"{layer['path']} .* {layer['kept']:,} ", text)
        kept = "5,061 of 50,610 connections kept (90.00% sparsity)"
        assert kept in " ".join(text.split())
        names = ("test_error", "test_error_last", "val_error")
        errors = " +".join(f"{network[name]:.2f}" for name in names)
        assert re.search(f"0 +{errors} ", text)

    def test_is_under_runs_by_its_name(
        self, finished: Finished, cached_program: Program
    ) -> None:
        changes = "--config.train.steps=0 --config.seed=3 --config.prune.sparsity=0.5"
        output = cached_program.run(*DIGITS, *changes.split())
        assert "everything is in runs/digits_lenet300-snip-0.5-seed3" in output.stdout


class TestInterrupted:
    def test_the_same_command_goes_on(
        self, finished: Finished, cached_program: Program, tmp_path: Path
    ) -> None:
        command = (*DIGITS, *QUICK, "--workdir", tmp_path)
        for number in (signal.SIGINT, signal.SIGTERM):
            with cached_program.start(*command) as process:
                wait_for(process, "step ")
                process.send_signal(number)
                stdout, stderr = process.communicate()
            assert (process.returncode, stderr) == (130, "train.py: interrupted\n")
            assert re.search(r"stopped at step \d+; the same command goes on", stdout)
            assert not (tmp_path / rundir.RESULT).exists()
        assert_resumes(cached_program, command, finished)

    def test_while_it_starts(self, cached_program: Program, tmp_path: Path) -> None:
        with cached_program.start(*DIGITS, "--workdir", tmp_path) as process:
            wait_for(process, "loading digits")
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate()
        assert process.returncode == 130
        assert stderr.endswith("train.py: interrupted\n")
        assert not (tmp_path / rundir.RESULT).exists()

    def test_a_second_process_is_refused(
        self, cached_program: Program, tmp_path: Path
    ) -> None:
        command = (*DIGITS, *QUICK, "--workdir", tmp_path)
        with cached_program.start(*command) as process:
            wait_for(process, "loading digits")
            process.send_signal(signal.SIGSTOP)
            assert_one_line(cached_program.run(*command), "another process is using it")
            process.kill()
            process.communicate()


def wait_for(process: subprocess.Popen[str], start: str) -> None:
    """Reads what a process prints up to a line that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"no line starts with '{start}': {process.stderr.read()}")


def assert_resumes(
    program: Program, command: tuple[Any, ...], finished: Finished
) -> None:
    """The command ends as if it had never been interrupted."""
    assert_silent(program.run(*command))
    workdir = command[-1]
    result = rundir.read_json(workdir / rundir.RESULT)
    assert without_timings(result) == without_timings(finished.result)
    metrics, expected = map(rundir.read_metrics, (workdir, finished.workdir))
    assert without_timings(metrics) == without_timings(expected)
    assert_same_files(workdir, finished.workdir)


def assert_same_files(workdir: Path, other: Path) -> None:
    first, second = ({path.name for path in d.iterdir()} for d in (workdir, other))
    assert first == second
    checkpoints = workdir / "checkpoints" / "seeds-0-0"
    steps = {path.name for path in checkpoints.iterdir()}
    assert steps == {"250", "300"}


# Runs a program that kills itself, as kill -9 does, at the n-th time that it touches
# the file system under a directory. Prints how often it did if it gets to the end.
KILLED_AT = """
import atexit, os, runpy, signal, sys
moment, directory = int(sys.argv[1]), sys.argv[2]
touched = 0
def count(event, arguments):
    global touched
    if not event.startswith(("open", "os.", "shutil.")):
        return
    if any(directory in str(a) for a in arguments if isinstance(a, (str, os.PathLike))):
        touched += 1
        if touched == moment:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
atexit.register(lambda: print("touched", touched))
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class TestKilled:
    def test_at_several_moments_one_after_the_other(
        self, finished: Finished, cached_program: Program, tmp_path: Path
    ) -> None:
        workdir = tmp_path / "run"
        command = (*DIGITS, *QUICK, "--workdir", workdir)
        for moment in (90, 150):
            script = ("-c", KILLED_AT, moment, workdir)
            output = cached_program.run(*command, script=script)
            assert output.returncode == -signal.SIGKILL
        assert_resumes(cached_program, command, finished)

    @pytest.mark.slow
    def test_all_over_a_run(
        self, finished: Finished, cached_program: Program, tmp_path: Path
    ) -> None:
        for moment in itertools.count(1, 8):
            workdir = tmp_path / f"run-{moment}"
            command = (*DIGITS, *QUICK, "--workdir", workdir)
            script = ("-c", KILLED_AT, moment, workdir)
            output = cached_program.run(*command, script=script)
            if output.returncode == 0:
                break
            assert output.returncode == -signal.SIGKILL
            assert_resumes(cached_program, command, finished)
        assert moment > 100

    @pytest.mark.slow
    def test_at_random_times_again_and_again(
        self, finished: Finished, cached_program: Program, tmp_path: Path
    ) -> None:
        rng = random.Random(0)
        for trial in range(10):
            command = (*DIGITS, *QUICK, "--workdir", tmp_path / f"run-{trial}")
            for _ in range(4):
                with cached_program.start(*command) as process:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=rng.uniform(4.0, 12.0))
                    process.kill()
                    process.communicate()
                assert process.returncode in (0, -signal.SIGKILL)
            assert_resumes(cached_program, command, finished)


# Runs a program whose disk is full once it writes a checkpoint: files cannot grow
# beyond some bytes.
LIMITED = """
import os, resource, runpy, sys
limits = int(sys.argv[1]), resource.RLIM_INFINITY
def limit(event, arguments):
    if event in ("open", "os.mkdir") and "checkpoint-tmp" in str(arguments[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
sys.addaudithook(limit)
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    finished: Finished, cached_program: Program, tmp_path: Path
) -> None:
    command = (*DIGITS, *QUICK, "--workdir", tmp_path)
    output = cached_program.run(*command, script=("-c", LIMITED, 12_000))
    assert output.returncode == 2
    error = output.stderr.splitlines()[-1]
    assert re.match("train.py: a checkpoint cannot be written in .*File too", error)
    assert_resumes(cached_program, command, finished)


@pytest.mark.parametrize(
    ("file", "parts", "parameters"),
    [
        (
            "own_model_and_criterion",
            {"model.name": "Net", "prune.method": "criterion"},
            65 * 64 + 65 * 10,
        ),
        (
            "own_data_and_loss",
            {"dataset.name": "load", "train.loss": "smoothed"},
            65 * 300 + 301 * 100 + 101 * 2,
        ),
    ],
)
def test_examples_run_by_import_path(
    file: str,
    parts: dict[str, str],
    parameters: int,
    cached_program: Program,
    tmp_path: Path,
) -> None:
    program = cached_program._replace(directory=ROOT / "examples")
    flags = [f"--config.{field}={file}:{name}" for field, name in parts.items()]
    short = ("--config.train.steps=20", "--config.train.eval_every=10")
    assert_silent(program.run(*DIGITS, *flags, *short, "--workdir", tmp_path))
    result = rundir.read_json(tmp_path / rundir.RESULT)
    assert result["parameters"] == parameters
    assert result["summary"]["kept"] == round(0.1 * result["prunable"])


class TestSeveralRuns:
    def test_several_values_are_a_run_each(
        self, cached_program: Program, tmp_path: Path
    ) -> None:
        methods = ("--config.prune.method", "none, snip")
        sweep = ("--config.prune.sparsity=0.9,0.98", *methods)
        command = (*DIGITS, *sweep, "--config.train.steps=10", "--workdir", tmp_path)
        output = cached_program.run(*command)
        assert_silent(output)
        results = {
            path.parent.name: rundir.read_json(path)
            for path in tmp_path.glob(f"*/{rundir.RESULT}")
        }
        assert {
            name: result["summary"]["kept"] for name, result in results.items()
        } == {
            "prune.sparsity=0.9_prune.method=none": 50_610,
            "prune.sparsity=0.9_prune.method=snip": 5_061,
            "prune.sparsity=0.98_prune.method=none": 50_610,
            "prune.sparsity=0.98_prune.method=snip": 1_012,
        }
        for result in results.values():
            assert "--config.prune.sparsity=0.9,0.98" in result["command"]
            assert "--workdir" not in result["command"]
            assert str(tmp_path) not in result["command"]

    def test_a_flag_replaces_what_the_config_varies(
        self, cached_program: Program, tmp_path: Path
    ) -> None:
        study = tmp_path / "study.py"
        study.write_text(
            "from snipjax.config import default\n"
            "def get_config():\n"
            "    config = default()\n"
            "    config.vary = ('prune.sparsity=0.5,0.6', 'prune.method=snip,random')\n"
            "    config.train.steps = 0\n"
            "    return config\n"
        )
        command = ("--config", study, "--config.prune.sparsity=0.9", "--config.seeds=2")
        output = cached_program.run(*command, "--workdir", tmp_path / "run")
        assert_silent(output)
        found = {
            path.parent.name: [network["kept"] for network in networks]
            for path in (tmp_path / "run").glob(f"*/{rundir.RESULT}")
            if (networks := rundir.read_json(path)["networks"])
        }
        assert found == {
            "prune.method=snip": [5_061, 5_061],
            "prune.method=random": [5_061, 5_061],
        }
