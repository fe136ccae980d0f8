"""The command line: mistakes and runs; interrupts and kills of its own processes."""

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from absl.testing import flagsaver

import snipjax.train
from snipjax import cli, experiment
from snipjax.schema import FIELDS
from snipjax.training import rundir

pytestmark = pytest.mark.usefixtures("compile_once")

ROOT = Path(__file__).parents[1]
DIGITS = ("--config", ROOT / "configs" / "digits_lenet300.py")
QUICK = (
    "--config.train.steps=60",
    "--config.train.steps_per_dispatch=5",
    "--config.train.eval_every=10",
    "--config.train.checkpoint_every=10",
)
TIMINGS = {"seconds", "steps_per_second", "wall_seconds"}


@contextlib.contextmanager
def flags_of(arguments: tuple[Any, ...]) -> Iterator[list[str]]:
    """Defines the flags of ``train.py`` for a command line, as its process would."""
    argv = ["train.py", *map(str, arguments)]
    with (
        flagsaver.flagsaver(),
        # As Python does by default, and pytest does not.
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", argv)  # read by the flag of the configuration
        patch.setattr(cli, "keep_compilations", lambda: None)
        snipjax.train.define_flags()
        yield argv


class Output(NamedTuple):
    """The outcome of a command line."""

    exit_code: int
    out: str
    err: str


Train = Callable[..., Output]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs ``train.py`` within this process."""

    def run(*arguments: Any) -> Output:
        with flags_of(arguments) as argv:
            return Output(cli.main(argv, ""), *capsys.readouterr())

    return run


class Finished(NamedTuple):
    """A run that nothing interrupted."""

    out: str
    workdir: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, compile_once: None) -> Finished:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with (
        flags_of((*DIGITS, *QUICK, "--workdir", workdir)) as argv,
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        assert cli.main(argv, "") == 0
    return Finished(out.getvalue(), workdir)


def assert_one_line(output: Output, pattern: str) -> None:
    assert output.exit_code == 2
    assert output.err.count("\n") == 1
    assert re.match(f"train.py: .*{pattern}", output.err)


def test_too_little_memory_is_told_in_a_line(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any, **settings: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(experiment, "run", run)
    output = train(*DIGITS, "--workdir", tmp_path)
    assert_one_line(output, "memory; lower config.train.batch_size.*Out of memory")


def test_help_may_be_read_in_part() -> None:
    command = [sys.executable, "train.py", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


# An error in a place that has no caller, such as a callback of a thread in C.
DROPPED = """
from snipjax import cli
class Dropped:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
def main(*arguments):
    Dropped()
    return 2
cli.main = main
cli.start([], "")
"""


def test_errors_without_a_caller_do_not_stand_around_the_line() -> None:
    command = [sys.executable, "-c", DROPPED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "pattern"),
        [
            ((), "--config is missing, e.g. --config digits_lenet300"),
            ((DIGITS[1],), r"unexpected argument '.*digits_lenet300\.py'"),
            (("--config", "configs/none.py"), r"no file 'configs/none\.py'"),
            (("--config", "digits"), r"no file 'digits'; did you mean 'digits_"),
            (("--config",), "Missing value for flag --config"),
            *(
                ((*DIGITS, *f"--{flag}".split("|")), pattern)
                for flag, pattern in {
                    "wrkdir=x": "'wrkdir'. Did you mean: workdir",
                    "confg.seed=1": "did you mean '--config.seed'?",
                    "prune.sparsity=0": "did you mean '--config.prune.sparsity'",
                    "process_id=0": "several processes train one network on a mesh",
                    "config.prune=9": "config.prune is a section; its fields",
                    "config.train.steps=1e3": r"config\.train\.steps=1e3",
                    "config.prune.method=snp": r"did you mean 'snip'\?",
                    "config.signal_seeds=2": "is for runs of several settings",
                    "config.prune.sparsity|0.9,x": r"'prune\.sparsity' cannot be x",
                    # A space, but no quotes.
                    "config.prune.sparsity=0.9,|0.95": r"'0\.9,', with an empty value; "
                    r".* --config\.prune\.sparsity=<value>,",
                }.items()
            ),
        ],
    )
    def test_in_the_arguments(
        self, arguments: tuple[Any, ...], pattern: str, train: Train
    ) -> None:
        output = train(*arguments)
        assert_one_line(output, pattern)
        assert output.out == ""

    @pytest.mark.parametrize(
        ("line", "pattern"),
        [
            ("config.train.stesp = 9", r"no field 'stesp'; .*'train\.steps'"),
            ("config.train.steps = 9.5", r"'train\.steps' cannot be 9\.5; .* int"),
            ("config.unlock().stesp = 9", "no field 'stesp'"),
            ("return", "returned a NoneType, not the ConfigDict"),
            ("config.optimizer.learning_rate = 10**400", "int too large"),
            ("config.vary = (5,)", r"config\.vary has '5'; an entry is"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("if", r"SyntaxError: invalid syntax \(mine\.py, line 4\)"),
        ],
    )
    def test_in_a_config_file(
        self, line: str, pattern: str, train: Train, tmp_path: Path
    ) -> None:
        assert_one_line(train("--config", config_file(tmp_path, line)), pattern)

    @pytest.mark.parametrize(
        ("flags", "pattern"),
        [
            ("model.name=nonesuch:Net", "there is no module 'nonesuch'"),
            ("prune.method=json:dumps", r"does not take \(loss_fn, params, batch"),
            (
                "dataset.name=synthetic:9999999999999999x8x8x3/2 "
                "--config.dataset.stream=True --config.dataset.image_size=8",
                "Unable to allocate",
            ),
        ],
    )
    def test_of_a_part_leaves_no_directory(
        self,
        flags: str,
        pattern: str,
        train: Train,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert_one_line(train(*DIGITS, *f"--config.{flags}".split()), pattern)
        assert [*tmp_path.glob("runs/*")] == []

    def test_of_a_project_is_told_before_anything_is_pruned(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class UsageError(Exception):
            """As wandb's own, it is of no standard class."""

        def init(**options: Any) -> None:
            raise UsageError("No API key configured.\nUse `wandb login`.")

        wandb = types.SimpleNamespace(__spec__="found", init=init)
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        output = train(*DIGITS, "--config.wandb=a/b", "--workdir", tmp_path / "run")
        assert_one_line(output, r"config\.wandb is 'a/b'.*\(No API key .*login")
        assert not [*tmp_path.rglob("*.npz")]

    def test_with_commands_to_paste_keeps_them_on_lines_of_their_own(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "without_data.py").write_text(
            "def load():\n    raise ValueError('no data; run\\nmkdir a\\ncp b a')\n"
        )
        output = train(*DIGITS, "--config.dataset.name=without_data:load")
        assert output.err == "train.py: no data; run\n  mkdir a\n  cp b a\n"


def config_file(directory: Path, *lines: str) -> Path:
    """Writes a configuration that differs from the default by some statements."""
    file = directory / "mine.py"
    body = "\n    ".join(["config = default()", *lines, "return config"])
    text = f"from snipjax.config import default\ndef get_config():\n    {body}\n"
    file.write_text(text)
    return file


class TestFinishedRun:
    def test_has_pictures_and_says_what_to_do_next(self, finished: Finished) -> None:
        place = finished.workdir
        pictures = {path.stem for path in place.glob("*.png")}
        assert pictures == {"curves", "densities", "first_layer", "saliency"}
        for line in (
            f"kept connections: {place / 'first_layer.png'}",
            f"report: python -m snipjax.report {place} --out {place / 'report'}",
            f"curves: tensorboard --logdir {place}",
        ):
            assert f"{line}\n" in finished.out

    def test_prints_densities_and_errors_without_control_characters(
        self, finished: Finished
    ) -> None:
        result, text = rundir.read_json(finished.workdir / rundir.RESULT), finished.out
        (network,) = result["networks"]
        assert all(character.isprintable() or character == "\n" for character in text)
        for layer in network["layers"]:
            assert re.search(rf"{layer['path']} .* {layer['kept']:,} ", text)
        kept = "5,061 of 50,610 connections kept (90.00% sparsity)"
        assert kept in " ".join(text.split())
        names = ("test_error", "test_error_last", "val_error")
        errors = " +".join(f"{network[name]:.2f}" for name in names)
        assert re.search(f"0 +{errors} ", text)

    @pytest.mark.parametrize(
        ("name", "damage", "pattern"),
        [
            ("config.json", lambda content: b"{}", "choose another with --workdir"),
            (
                "result.json",
                lambda content: content.replace(b'"seed": 0', b'"seed": 1'),
                r"networks of seeds \[1\]",
            ),
            ("seed-0/mask.npz", lambda content: content[:-40], "remove"),
            ("seed-0/mask.npz", None, "remove"),
            ("seed-0/params.npz", lambda content: b"", "remove"),
            ("metrics.jsonl", None, "without the last errors of seed 0"),
        ],
    )
    def test_that_is_damaged_is_not_shown(
        self,
        name: str,
        damage: Any,
        pattern: str,
        finished: Finished,
        train: Train,
        tmp_path: Path,
    ) -> None:
        shutil.copytree(finished.workdir, tmp_path / "run")
        file = tmp_path / "run" / name
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage(file.read_bytes()))
        output = train(*DIGITS, *QUICK, "--workdir", tmp_path / "run")
        assert_one_line(output, pattern)
        assert output.out == ""

    @pytest.mark.parametrize(
        ("name", "text", "pattern"),
        [
            ("groups.json", "[[0, 99999999]]", "groups of seeds"),
            ("checkpoints/seeds-0-0/60/progress/metadata", "{}", "'step' is missing"),
        ],
    )
    def test_that_was_interrupted_and_damaged_does_not_go_on(
        self,
        name: str,
        text: str,
        pattern: str,
        finished: Finished,
        train: Train,
        tmp_path: Path,
    ) -> None:
        shutil.copytree(finished.workdir, tmp_path / "run")
        for file in (rundir.RESULT, rundir.NETWORKS):
            (tmp_path / "run" / file).unlink()
        (tmp_path / "run" / name).write_text(text)
        output = train(*DIGITS, *QUICK, "--workdir", tmp_path / "run")
        assert_one_line(output, f"'{tmp_path}.*{pattern}.*remove")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["prune.sparsity=0.5"], "snip-0.5-seed3"),
        (["prune.method=none"], "none-seed3"),
        (["optimizer.sparse.name=set"], "snip-0.9-set-seed3"),
        (
            [
                "prune.method=none",
                "optimizer.sparse.name=gradual_magnitude",
                "optimizer.sparse.sparsity=0.98",
            ],
            "none-gradual_magnitude-0.98-seed3",
        ),
    ],
)
def test_a_run_is_under_runs_by_its_name(changes: list[str], name: str) -> None:
    given = [f"--config.{change}" for change in ("seed=3", *changes)]
    with flags_of((*DIGITS, *given)) as argv:
        workdir = cli.default_workdir(cli.parse(argv))
    assert workdir == Path(f"runs/digits_lenet300-{name}")


def test_examples_run_by_import_path(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    parts = {
        "model.name": "own_model_and_criterion:Net",
        "prune.method": "own_model_and_criterion:criterion",
        "dataset.name": "own_data_and_loss:load",
        "train.loss": "own_data_and_loss:smoothed",
    }
    flags = [f"--config.{field}={path}" for field, path in parts.items()]
    output = train(*DIGITS, *flags, "--config.train.steps=0", "--workdir", tmp_path)
    assert (output.exit_code, output.err) == (0, "")
    result = rundir.read_json(tmp_path / rundir.RESULT)
    assert result["parameters"] == 65 * 64 + 65 * 2
    assert result["summary"]["kept"] == round(0.1 * result["prunable"])


class TestSeveralRuns:
    def test_several_values_are_a_run_each(self, train: Train, tmp_path: Path) -> None:
        values = ("--config.prune.sparsity", "0.9, 0.98")
        command = (*DIGITS, *values, "--config.train.steps=0", "--workdir", tmp_path)
        output = train(*command)
        assert (output.exit_code, output.err) == (0, "")
        results = {
            path.parent.name: rundir.read_json(path)
            for path in tmp_path.glob(f"*/{rundir.RESULT}")
        }
        assert {
            name: result["summary"]["kept"] for name, result in results.items()
        } == {"prune.sparsity=0.9": 5_061, "prune.sparsity=0.98": 1_012}
        for result in results.values():
            assert "--config.prune.sparsity '0.9, 0.98'" in result["command"]
            assert "--workdir" not in result["command"]
            assert str(tmp_path) not in result["command"]
        assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 2

    def test_a_flag_replaces_what_the_config_varies(self, tmp_path: Path) -> None:
        vary = "config.vary = ('prune.sparsity=0.5,0.6', 'prune.method=snip,random')"
        file = config_file(tmp_path, vary)
        with flags_of(("--config", file, "--config.prune.sparsity=0.9")) as argv:
            config = cli.parse(argv)
        assert config.vary == ("prune.method=snip,random",)
        assert config.prune.sparsity == 0.9


# Processes of their own.


class Program(NamedTuple):
    """``train.py`` as a process, with programs that were compiled before."""

    compiled: Path

    def start(
        self, *arguments: Any, script: tuple[Any, ...] = ()
    ) -> subprocess.Popen[str]:
        """Starts it, by a script of this file where one is given."""
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(
            [*map(str, [sys.executable, *script, ROOT / "train.py", *arguments])],
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: Any, script: tuple[Any, ...] = ()) -> Output:
        """Starts it and waits for its end."""
        with self.start(*arguments, script=script) as process:
            output = process.communicate(timeout=300)
        return Output(process.returncode, *output)


@pytest.fixture
def program(compiled: Path) -> Iterator[Program]:
    # A shell's background jobs ignore interrupts, and so would programs they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Program(compiled)
    signal.signal(signal.SIGINT, before)


def test_help_names_every_flag_and_field(program: Program) -> None:
    exit_code, text, error = program.run("--help")
    assert (exit_code, error) == (0, "")
    assert all(f"--{name}" in text for name in ("workdir", "data_dir"))
    for field in FIELDS:
        lines = f"--config.{field.name} (default {field.default!r})\n    {field.help}"
        assert lines in text
        assert ", ".join(field.choices) in text


def test_an_interrupted_run_goes_on(
    finished: Finished, program: Program, train: Train, tmp_path: Path
) -> None:
    command = (*DIGITS, *QUICK, "--workdir", tmp_path)
    with program.start(*command) as process:
        wait_for(process, "step ")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "train.py: interrupted\n")
    assert re.search(r"stopped at step \d+; the same command goes on", stdout)
    assert not (tmp_path / rundir.RESULT).exists()
    assert_resumes(train, command, finished)


def wait_for(process: subprocess.Popen[str], start: str) -> None:
    """Reads the output of a process up to a line that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"no line starts with '{start}': {process.stderr.read()}")


def assert_resumes(train: Train, command: tuple[Any, ...], finished: Finished) -> None:
    """The command ends as if it had never been interrupted."""
    output = train(*command)
    assert (output.exit_code, output.err) == (0, "")
    workdir = command[-1]
    result, expected = (
        rundir.read_json(d / rundir.RESULT) for d in (workdir, finished.workdir)
    )
    assert without_timings(result) == without_timings(expected)
    metrics, expected = map(rundir.read_metrics, (workdir, finished.workdir))
    assert without_timings(metrics) == without_timings(expected)
    names, expected = (
        {path.name for path in d.iterdir()} for d in (workdir, finished.workdir)
    )
    assert names == expected
    # One more is left if the last had been written and the first not yet been deleted.
    checkpoints = (workdir / "checkpoints" / "seeds-0-0").iterdir()
    assert {"50", "60"} <= {path.name for path in checkpoints} <= {"40", "50", "60"}


def without_timings(value: Any) -> Any:
    """Returns a value without what differs between equal runs, at any depth."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


# Runs a program that kills itself, as kill -9 does, at the n-th time that it touches
# the file system under a directory.
KILLED_AT = """
import os, runpy, signal, sys
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
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_goes_on(
    finished: Finished, program: Program, train: Train, tmp_path: Path
) -> None:
    for moment in itertools.count(1, 8):
        workdir = tmp_path / f"run-{moment}"
        command = (*DIGITS, *QUICK, "--workdir", workdir)
        script = ("-c", KILLED_AT, moment, workdir)
        output = program.run(*command, script=script)
        if output.exit_code == 0:
            break
        assert output.exit_code == -signal.SIGKILL
        assert_resumes(train, command, finished)
    assert moment > 100
