"""The paper's rows: each a run in the time there is, and files of what is known."""

import json
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper, paper_results
from snipjax import arguments, cli
from snipjax.results import published, reading
from tests.test_train import flags_of


def miniature(*fields: str) -> list[str]:
    """Returns arguments of a run of four steps; later fields hold."""
    every = [f"{name}_every=4" for name in ("train.checkpoint", "optimizer.decay")]
    short = "train.steps=4", "train.steps_per_dispatch=2", "train.eval_every=2"
    fields = ("dataset.name=digits", *short, *every, *fields)
    return [f"--config.{field}" for field in fields]


@pytest.mark.parametrize("row", paper.ROWS)
def test_every_row_is_the_whole_protocol(row: str) -> None:
    command = paper.command(row, Path("runs"))
    with flags_of(tuple(command[3:])) as argv:
        config = cli.parse(arguments.with_config_path(argv))
    name, percent = row.split(".")
    is_mnist = config.dataset.name == "mnist"
    epoch = 540 if is_mnist else 351
    assert config.model.name == name
    assert config.train.steps == 250 * epoch
    assert config.train.eval_every == epoch
    assert config.train.checkpoint_every % epoch == 0
    assert config.optimizer.decay_every == (25_000 if is_mnist else 30_000)
    assert config.seeds == (20 if "lenet" in name else 1)
    # 90% is not in the paper's table of LeNets.
    place = config.dataset.name, name, config.prune.method, config.prune.sparsity
    assert published.find(*place) or row == "lenet_300_100.90"
    assert percent == "dense" or float(percent) / 100 == config.prune.sparsity
    # Names are of files on any system.
    assert row.replace(".", "").replace("_", "").isalnum()


def test_a_command_ends_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a background job of a shell, processes do not hear of it by themselves.
    hears = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    waits = "try: time.sleep(60)\nexcept KeyboardInterrupt: pass"
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    start = time.monotonic()
    for program in (f"{hears}\n{waits}", f"{deaf}\ntime.sleep(60)"):
        command = [sys.executable, "-c", f"import signal, time\n{program}"]
        assert paper.run(command, 1.0, tmp_path / "log") == "unfinished"
        assert time.monotonic() - start < 50
        # The other does not hear, and is killed.
        monkeypatch.setattr(paper, "MOST_SECONDS_TO_END", 0.5)


def test_a_failure_has_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no memory\\n')"]
    log = tmp_path / "log"
    assert paper.run(command, 60.0, log) == "failed, 1: no memory"
    command = [sys.executable, "-c", "import os; assert os.environ['A'] == 'b'"]
    assert paper.run(command, 60.0, log, {"A": "b"}) == "finished"


def test_a_row_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(command: Any, *_: Any) -> str:
        asked.append(Path(command[4].removeprefix("--workdir=")).name)
        return "failed, 2: out of memory" if "lstm" in asked[-1] else "finished"

    monkeypatch.setattr(paper, "run", run)
    rows = ["--rows", "lstm_s.95", "gru_s", "--out", str(tmp_path)]
    assert paper.main(rows) == 1
    assert asked == ["lstm_s.95", "gru_s.95", "gru_s.dense"]
    states = {row["row"]: row["state"] for row in read(tmp_path)}
    assert states["lstm_s.95"] == "failed, 2: out of memory"
    assert states["gru_s.dense"] == "finished"
    assert paper.main([*rows, "--minutes", "0.9"]) == 0
    assert {row["state"] for row in read(tmp_path)} == {"no time"}


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"no row begins with \['lenet_7'"):
        paper.chosen(["gru_s", "lenet_7"])


def test_a_row_in_miniature_is_a_run_for_the_report(tmp_path: Path) -> None:
    out, results = tmp_path / "runs", tmp_path / "results"
    rows = ["--rows", "lenet_300_100.95", "--out", str(out), "--results", str(results)]
    assert paper.main([*rows, *miniature("seeds=2")]) == 0
    (row,) = read(results)
    assert (row["state"], row["seeds"], row["published"]) == ("finished", 2, None)
    assert len(row["of each network"]["test_error"]) == 2
    assert f"{row['test_error']:.2f} ± " in (results / "paper.md").read_text()
    # The archive is enough for the report, and for not training the row again.
    elsewhere = tmp_path / "elsewhere"
    with tarfile.open(results / paper_results.ARCHIVE) as archive:
        assert sum(member.size for member in archive) < 2**17
        archive.extractall(elsewhere, filter="data")
    found = reading.read(elsewhere)
    assert list(found.sparsity.round(2)) == [0.95, 0.95]
    assert len(reading.read_metrics(elsewhere)) == 4
    again = ["--rows", "lenet_300_100.95", "--out", str(elsewhere)]
    assert paper.main(again) == 0
    assert read(elsewhere)[0]["state"] == "finished before"


def test_a_row_has_the_published_error_or_the_step_it_came_to(tmp_path: Path) -> None:
    errors = {"test_error": 1.5, "test_error_last": 1.75, "val_error": 2.0}
    spread = {f"{name}_std": 0.125 for name in errors}
    place = {"dataset": "mnist", "model": "lenet_300_100", "method": "snip"}
    result = {
        **{**place, "wall_seconds": 90.0, "epochs": 250.0, "networks": [errors]},
        "summary": {"seeds": 20, "sparsity": 0.98, "kept": 5332, **errors, **spread},
    }
    for row in ("lenet_300_100.98", "gru_s.95"):
        (tmp_path / row).mkdir()
    (tmp_path / "lenet_300_100.98" / "result.json").write_text(json.dumps(result))
    metrics = {"seeds": [0], "step": 54_000, "val_error": [2.5], "seconds": 60.0}
    (tmp_path / "gru_s.95" / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    paper_results.write(
        tmp_path, tmp_path, list(paper.ROWS), {"gru_s.95": "unfinished"}
    )
    *_, lenet, gru = (tmp_path / "paper.md").read_text().splitlines()
    wanted = "| 20 | 1.50 ± 0.12 | 1.75 ± 0.12 | 2.4 | 250.0 | 1.5 |"
    assert lenet == f"| lenet_300_100.98 | not asked for {wanted}"
    assert gru.startswith("| gru_s.95 | unfinished, step 54,000 |")


@pytest.mark.slow
@pytest.mark.parametrize("row", paper.ROWS)
def test_every_row_runs_in_miniature(row: str, tmp_path: Path) -> None:
    size = "28x28x1" if paper.ROWS[row].config.startswith("mnist") else "32x32x3"
    fields = [f"dataset.name=synthetic:60x{size}/10"]
    fields += ["train.batch_size=8", "prune.batch_size=8"]
    fields += ["seeds=2"] if "lenet" in row else []
    rows = ["--rows", row, "--out", str(tmp_path)]
    assert paper.main([*rows, *miniature(*fields)]) == 0
    assert reading.read(tmp_path).steps.eq(4).all()


def read(results: Path) -> list[Mapping[str, Any]]:
    lines = (results / paper_results.ROWS).read_text().splitlines()
    return [json.loads(line) for line in lines]
