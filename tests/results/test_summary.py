"""A report opens on what was trained, how well, and what went wrong."""

import re
from pathlib import Path

import pytest

from snipjax import results
from snipjax.results import pictures
from tests.results.runs import make_run, make_unfinished


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pictures.Picture("", "")
    monkeypatch.setattr(pictures, "drawn", lambda *_, **__: nothing)


def opening(path: Path) -> tuple[str, list[list[str]], str]:
    """The summary of a report's Markdown, its table, and all after it."""
    _, markdown = results.report([path], path.parent / "report")
    parts = markdown.read_text(encoding="utf-8").split("\n## ")
    assert parts[1].startswith("Summary\n")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in parts[1].splitlines()
        if line.startswith("|")
    ]
    return parts[1], rows, parts[0] + "\n## ".join(parts[2:])


def test_methods_stand_beside_the_dense_network(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "dense", 1.5, 1.7, method="none")
    make_run(runs / "90", 1.9, 1.9, sparsity=0.9)
    make_run(runs / "98", 2.6, 2.6, sparsity=0.98)
    make_run(runs / "random", 28.0, method="random", sparsity=0.98)
    text, (head, _, *rows), _ = opening(runs)
    assert "7 networks were trained: LeNet-300-100 on MNIST, dense and pruned" in text
    assert "by SNIP and random pruning." in text
    assert "is 1.90% (SNIP at 90%), 0.30 points more than dense." in text
    assert "Every run is finished, and every loss was finite." in text
    expected = [
        ["dense", "0", "1.60", "-", "2"],
        ["SNIP", "90 to 98", "1.90 to 2.60", "+0.30 to +1.00", "2"],
        ["random pruning", "98", "28.00", "+26.40", "1"],
    ]
    assert rows == expected
    assert head[:3] == ["Method", "Sparsity (%)", "Test error (%)"]


def test_each_of_several_networks_has_its_lines(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", 2.3)
    make_run(tmp_path / "runs" / "b", 1.3, model="lenet_5_caffe", method="none")
    text, (_, _, *rows), _ = opening(tmp_path / "runs")
    assert [row[0] for row in rows] == [
        "LeNet-300-100 on MNIST",
        "LeNet-5-Caffe on MNIST",
    ]
    assert "LeNet-5-Caffe on MNIST, dense, has an error of 1.30%." in text


def test_the_counts_of_a_page_agree_where_a_seed_was_trained_twice(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "runs" / "one", 2.0)
    make_run(tmp_path / "runs" / "both", 2.0, 3.0)
    make_run(tmp_path / "runs" / "untrained", 90.0, sparsity=0.5, network={"steps": 0})
    text, _, rest = opening(tmp_path / "runs")
    assert "2 networks were trained" in text
    assert "twice with the same settings counts once; left out: 1 network." in text
    assert re.findall(r"(\d+) trained network", rest) == ["2", "2"]


def test_a_loss_that_is_not_finite_is_marked(tmp_path: Path) -> None:
    rows = [{"seeds": [0, 1], "step": 1000, "train_loss": [0.5, None]}]
    make_run(tmp_path / "runs" / "run", 2.0, 92.5, metrics=rows)
    text, _, rest = opening(tmp_path / "runs")
    assert "The loss of 1 network was not finite" in text
    assert "LeNet-300-100 on MNIST, SNIP at 98%, seed 1" in text
    assert "47.25 (loss not finite: seed 1)" in rest


def test_what_is_unfinished_or_without_an_error_is_told(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "runs" / "begun")
    text, *_ = opening(tmp_path / "runs")
    assert "No network is finished yet. Unfinished, and listed below: 1 run." in text
    make_run(tmp_path / "runs" / "run", None, 2.0)
    text, _, _ = opening(tmp_path / "runs")
    assert "Without a test error: 1 network. Unfinished, and listed" in text


def test_random_labels_are_no_test_of_a_method(tmp_path: Path) -> None:
    fields = {"dataset.random_labels": True}
    make_run(tmp_path / "runs" / "labels", 90.0, fields=fields)
    text, rows, _ = opening(tmp_path / "runs")
    assert "90.00" not in text
    assert rows == []
