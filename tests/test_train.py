"""The command line, in processes of its own: mistakes, interruptions, kills."""

import contextlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets_builders as builders
import pytest

from snipjax import config as configs
from snipjax.training import rundir

ROOT = Path(__file__).parents[1]
DIGITS = ("--config", ROOT / "configs" / "digits_lenet300.py")
QUICK = (
    "--config.train.steps=300",
    "--config.train.steps_per_dispatch=10",
    "--config.train.eval_every=50",
    "--config.train.checkpoint_every=50",
)
TIMINGS = {"seconds", "steps_per_second"}


class Program:
    """``train.py`` in a directory, with an environment."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._options = {
            "cwd": directory,
            "env": os.environ | environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    def start(
        self, *arguments: Any, script: tuple[Any, ...] = ()
    ) -> subprocess.Popen[str]:
        """Starts it, by a script of this file where one is given."""
        command = [sys.executable, *script, ROOT / "train.py", *arguments]
        return subprocess.Popen([*map(str, command)], **self._options)

    def run(
        self, *arguments: Any, script: tuple[Any, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Starts it and waits for its end."""
        with self.start(*arguments, script=script) as process:
            stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(
            process.args, process.returncode, stdout, stderr
        )


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

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return without_timings(rundir.read_metrics(self.workdir))


@pytest.fixture(scope="module")
def finished(
    cached_program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return Finished(cached_program.run(*DIGITS, *QUICK, "--workdir", workdir), workdir)


def without_timings(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in metrics]


def assert_one_line(output: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert output.returncode == 2
    assert output.stderr.count("\n") == 1
    assert re.match(f"train.py: .*{pattern}", output.stderr)
    assert "Traceback" not in output.stdout + output.stderr


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "pattern"),
        [
            ((), "--config is missing, e.g. configs/digits_lenet300.py"),
            ((DIGITS[1],), r"unexpected argument '.*digits_lenet300\.py'"),
            (("--config", "configs/none.py"), r"no file 'configs/none\.py'"),
            (("--config",), "Missing value for flag --config"),
            ((*DIGITS, "--wrkdir=x"), "'wrkdir'. Did you mean: workdir"),
            ((*DIGITS, "--confg.seed=1"), "did you mean '--config.seed'?"),
            ((*DIGITS, "--sparsity.x=1"), "unknown flag '--sparsity.x'; did you mean"),
            ((*DIGITS, "--prune.sparsity=0"), "did you mean '--config.prune.sparsity'"),
            ((*DIGITS, "--config.train.momentum=1"), "is 1.0; it must be < 1.0"),
            (
                (*DIGITS, "--config.prune.sparsty=0.9"),
                r"did you mean 'prune\.sparsity'",
            ),
            ((*DIGITS, "--config.trian.steps=9"), r"did you mean 'train\.steps'"),
            ((*DIGITS, "--config.prune=9"), "config.prune is a section; its fields"),
            ((*DIGITS, "--config.train.steps=ten"), r"config\.train\.steps=ten"),
            ((*DIGITS, "--config.train.steps=1e3"), r"config\.train\.steps=1e3"),
            ((*DIGITS, "--config.train.flip=perhaps"), r"config\.train\.flip=perhaps"),
            (
                (*DIGITS, "--config.prune.sparsity=1"),
                r"sparsity is 1\.0, outside \[0, 1",
            ),
            ((*DIGITS, "--config.prune.sparsity=-1"), r"sparsity is -1\.0, outside"),
            ((*DIGITS, "--config.prune.method=snp"), r"did you mean 'snip'\?"),
            ((*DIGITS, "--config.seed=-1"), r"config\.seed is -1; it must be >= 0"),
        ],
    )
    def test_of_the_command_line(
        self, arguments: tuple[Any, ...], pattern: str, program: Program
    ) -> None:
        output = program.run(*arguments)
        assert_one_line(output, pattern)
        assert output.stdout == ""

    @pytest.mark.parametrize(
        ("lines", "pattern"),
        [
            (["config.train.stesp = 9"], r"no field 'stesp'; .*'train\.steps'"),
            (["config.trian.steps = 9"], "no field 'trian'; did you mean 'train'"),
            (["config.train.steps = 'many'"], r"'train\.steps' cannot be many; .* int"),
            (["config.train.steps = 9.5"], r"'train\.steps' cannot be 9\.5; .* int"),
            (["config.prune.method = 'snp'"], "did you mean 'snip'"),
            (["config.unlock()", "config.stesp = 9"], "no field 'stesp'"),
            (["return"], "returned a NoneType, not the ConfigDict"),
            (["return {}"], "returned a dict, not the ConfigDict"),
            (["1 / 0"], "ZeroDivisionError: division by zero"),
            (["import nonesuch"], "No module named 'nonesuch'"),
            (["if"], r"SyntaxError: invalid syntax \(mine\.py, line 5\)"),
        ],
    )
    def test_of_a_config_file(
        self, lines: list[str], pattern: str, program: Program, tmp_path: Path
    ) -> None:
        file = tmp_path / "mine.py"
        start = ["from snipjax.config import default", "", "def get_config():"]
        body = ["config = default()", *lines, "return config"]
        file.write_text("\n".join([*start, *(f"    {line}" for line in body)]))
        assert_one_line(program.run("--config", file), pattern)

    def test_of_a_workdir_with_another_configuration(
        self, finished: Finished, cached_program: Program
    ) -> None:
        output = cached_program.run(
            *DIGITS,
            *QUICK,
            "--config.prune.sparsity=0.5",
            "--workdir",
            finished.workdir,
        )
        assert_one_line(output, r"\(prune\.sparsity: 0\.5 here, 0\.9 there\)")

    def test_of_a_workdir_with_other_files(
        self, program: Program, tmp_path: Path
    ) -> None:
        (tmp_path / "thesis.tex").touch()
        output = program.run(*DIGITS, "--workdir", tmp_path)
        assert_one_line(output, r"has files but no config\.json")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_of_a_workdir_that_is_a_file(
        self, program: Program, tmp_path: Path
    ) -> None:
        (tmp_path / "run").touch()
        output = program.run(*DIGITS, "--workdir", tmp_path / "run")
        assert_one_line(output, "cannot be used")

    def test_of_a_model_that_does_not_take_the_images(
        self, cached_program: Program, tmp_path: Path
    ) -> None:
        name = "--config.model.name=lenet_5_caffe"
        output = cached_program.run(*DIGITS, name, "--workdir", tmp_path)
        assert_one_line(output, "the images are too small for this network")

    def test_of_a_data_set_keeps_the_commands_that_mend_it_on_lines_of_their_own(
        self, program: Program, tmp_path: Path
    ) -> None:
        split = builders.records(builders.examples(4))
        directory = builders.prepare(tmp_path / "data", {"train": split})
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        data = "--config.dataset.name=tiny", "--data_dir", tmp_path / "data"
        output = program.run(*DIGITS, *data)
        assert output.returncode == 2
        first, *advice = output.stderr.splitlines()
        assert re.match("train.py: .* is in tfrecord format", first)
        assert all(line.startswith("  ") for line in advice)
        commands = [shlex.split(line)[:3] for line in advice]
        converter = "tensorflow_datasets.scripts.convert_format"
        assert commands[-1] == ["python", "-m", converter]
        assert list((tmp_path / "runs").iterdir()) == []


def test_help_names_every_flag_and_field(program: Program) -> None:
    output = program.run("--help")
    assert (output.returncode, output.stderr) == (0, "")
    names = ["workdir", "data_dir", *(f"config.{n}" for n in configs.field_names())]
    assert all(f"--{name}" in output.stdout for name in names)


class TestFinishedRun:
    def test_succeeds_in_silence_on_stderr(self, finished: Finished) -> None:
        assert finished.output.returncode == 0
        assert finished.output.stderr == ""
        assert finished.result["steps"] == 300

    def test_prints_no_control_characters(self, finished: Finished) -> None:
        text = finished.output.stdout
        assert all(character.isprintable() or character == "\n" for character in text)

    def test_prints_densities_and_the_result(self, finished: Finished) -> None:
        result, text = finished.result, finished.output.stdout
        for layer in result["layers"]:
            assert re.search(rf"{layer['path']} .* {layer['kept']:,} ", text)
        for name, value in (
            ("parameters of the dense network", "50,610"),
            ("of these kept", "5,061"),
            (r"sparsity \(%\)", "90.00"),
            (r"validation error is least \(%\)", f"{result['test_error']:.2f}"),
            (r"at the last step \(%\)", f"{result['test_error_last']:.2f}"),
        ):
            assert re.search(f"{name} +{value} ", text)

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
    output = program.run(*command)
    assert (output.returncode, output.stderr) == (0, "")
    workdir = command[-1]
    result = rundir.read_json(workdir / rundir.RESULT)
    assert {**result, "wall_seconds": 0} == {**finished.result, "wall_seconds": 0}
    assert without_timings(rundir.read_metrics(workdir)) == finished.metrics
    assert_same_files(workdir, finished.workdir)


def assert_same_files(workdir: Path, other: Path) -> None:
    first, second = ({path.name for path in d.iterdir()} for d in (workdir, other))
    assert first == second
    steps = {path.name for path in (workdir / "checkpoints").iterdir()}
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


# Runs a program whose files cannot grow beyond some bytes, as if the disk were full.
LIMITED = """
import os, resource, runpy, sys
limits = int(sys.argv[1]), resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
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


def test_results_are_one_line_of_json_per_evaluation(finished: Finished) -> None:
    lines = (finished.workdir / rundir.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(50, 301, 50))


class TestSeveralRuns:
    def test_several_values_are_a_run_each(
        self, cached_program: Program, tmp_path: Path
    ) -> None:
        methods = ("--config.prune.method", "none, snip")
        sweep = ("--config.prune.sparsity=0.9,0.98", *methods)
        command = (*DIGITS, *sweep, "--config.train.steps=10", "--workdir", tmp_path)
        output = cached_program.run(*command)
        assert (output.returncode, output.stderr) == (0, "")
        table = json.loads((tmp_path / "sweep.json").read_text())
        assert [row["kept"] for row in table] == [50_610, 5_061, 50_610, 1_012]
        result = rundir.read_json(
            tmp_path / "prune.sparsity=0.9_prune.method=snip" / rundir.RESULT
        )
        assert "--config.prune.sparsity=0.9,0.98" in result["command"]
        assert "--workdir" not in result["command"]
        assert str(tmp_path) not in result["command"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["--config.prune.sparsity=0.9,2"],
                r"sparsity is 2\.0, outside \[0, 1\)",
            ),
            (["--config.prune.sparsity=0.9,x"], r"'prune\.sparsity' cannot be x"),
            (["--config.prune.sparsty=0.9,0.8"], r"did you mean 'prune\.sparsity'"),
            (["--config.seeds=0"], r"seeds is 0; it must be >= 1"),
            (["--config.prune.sparsity=0.9 , 2"], r"sparsity is 2\.0, outside"),
            (
                ["--config.prune.fresh_init", "--config.prune.sparsity", "0.9,2"],
                r"sparsity is 2\.0, outside",
            ),
            (
                ["--config.prune.sparsity=0.9,", "0.95"],  # a space, but no quotes
                r"'0\.9,', with an empty value; .* --config\.prune\.sparsity=<value>,",
            ),
            (["--config.prune.sparsity", "0.9,,0.95"], "'0.9,,0.95', with an empty"),
        ],
    )
    def test_a_mistake_in_one_is_said_at_once(
        self, arguments: list[str], message: str, program: Program
    ) -> None:
        assert_one_line(program.run(*DIGITS, *arguments), message)

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
        command = ("--config", study, "--config.prune.sparsity=0.9")
        output = cached_program.run(*command, "--workdir", tmp_path / "run")
        assert (output.returncode, output.stderr) == (0, "")
        table = json.loads((tmp_path / "run" / "sweep.json").read_text())
        assert [row["settings"] for row in table] == [
            {"prune.method": "snip"},
            {"prune.method": "random"},
        ]
        assert [row["kept"] for row in table] == [5_061, 5_061]
