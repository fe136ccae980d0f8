"""The page and the Markdown of run directories made by hand."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from snipjax import results
from snipjax.report import main
from snipjax.results import pictures, reading
from tests.results.runs import (
    layers,
    make_run,
    make_unfinished,
    write_config,
    write_json,
)

HOSTILE = '<script>alert("x")</script>_$x^{$ | `y` "><img src=x onerror=z>'
CURVE = [
    {"step": step, "train_loss": [1 / step], "test_error": [90.0]} for step in (1, 2)
]


class Page(HTMLParser):
    """The tags, texts and rows of tables that a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: dict[str, str] = {}
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("img", "meta"):
            self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, "tags are not nested"

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data
        for tag in set(self._inside):
            self.text[tag] = self.text.get(tag, "") + data


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Names and arguments of functions that would draw pictures of rows."""
    calls: list[tuple[str, Any, Any]] = []

    def record(caption: str, draw: Any, *args: Any, **kwargs: Any) -> pictures.Picture:
        calls.append((draw.__name__, args, kwargs))
        return pictures.Picture("", caption)

    monkeypatch.setattr(pictures, "drawn", record)
    return calls


def page(path: Path) -> tuple[Page, list[list[str]]]:
    """Writes a report, and returns its page and the rows of the Markdown's tables."""
    html, markdown = results.report([path], path.parent / "report")
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in markdown.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return Page(html.read_text(encoding="utf-8")), rows


@pytest.mark.usefixtures("drawn")
def test_the_tables_hold_the_figures_and_the_commands(tmp_path: Path) -> None:
    values = {"train_error": 1.75, "test_error_last": 2.8}
    command = "python train.py --config configs/mnist_lenet300.py"
    make_run(tmp_path / "runs" / "run", 2.0, 2.2, 2.7, network=values, command=command)
    shown, markdown = page(tmp_path / "runs")
    header, line = shown.rows[:2]
    expected = {
        "Network": "LeNet-300-100",
        "Data set": "MNIST",
        "Method": "SNIP Lee et al. (2019)",
        "Sparsity (%)": "98",
        "Parameters of the dense network": "266,610",
        "Connections kept": "5,332",
        "Seeds": "3 (0-2)",
        "Test error, mean (%)": "2.30",
        "Test error, standard deviation (points)": "0.36",
        "Test error at the last step, mean (%)": "2.80",
        "Test error at the last step, standard deviation (points)": "0.00",
        "Training error before the last evaluation, mean (%)": "1.75",
        "Published test error (%)": "2.4 Lee et al. (2019)",
        "Measured less published (points)": "-0.10",
        "Measured less dense (points)": "-",
        "Training (epochs)": "2.5",
        "Training (steps)": "1,000",
    }
    assert dict(zip(header, line, strict=True)) == expected
    labels = [a["data-label"] for tag, a in shown.tags if "data-label" in a]
    assert labels[: len(header)] == header, "narrow screens show these instead"
    link = "[Lee et al. (2019)](https://arxiv.org/abs/1810.02340)"
    header, _, line = markdown[:3]
    assert dict(zip(header, line, strict=True)) == {
        name: text.replace("Lee et al. (2019)", link) for name, text in expected.items()
    }
    assert shown.text["pre"] == f"{command}  # LeNet-300-100 on MNIST, SNIP at 98%"
    assert f"    {shown.text['pre']}\n" in (tmp_path / "report.md").read_text()
    dns = next(row for row in shown.rows if "DNS: Dynamic Network Surgery" in row[2])
    assert dns[3:] == ["98.2", "2.0", "magnitude", "yes", "many", "yes", "no", "yes"]
    assert ("a", {"href": "https://arxiv.org/abs/1608.04493"}) in shown.tags
    assert "3 trained networks on cpu" in shown.text["p"]
    assert shown.text["h2"].startswith("Summary")
    assert shown.text["h2"].endswith("Conclusion")


@pytest.mark.usefixtures("drawn")
def test_a_run_without_a_noted_command_or_device_has_none(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", command="python train.py")
    make_run(tmp_path / "runs" / "b", sparsity=0.9, command=None, device=None)
    shown, _ = page(tmp_path / "runs")
    assert shown.text["pre"].startswith("python train.py  # ")
    assert "# LeNet-300-100 on MNIST, SNIP at 90%" not in shown.text["pre"]
    assert "2 trained networks on cpu; " in shown.text["p"]


def test_the_page_loads_nothing_and_is_a_function_of_the_runs(tmp_path: Path) -> None:
    for sparsity in (0.95, 0.98):
        path = tmp_path / "runs" / f"{sparsity}"
        run = make_run(path, sparsity=sparsity, metrics=CURVE)
    Figure().savefig(run / "densities.png")
    shown, _ = page(tmp_path / "runs")
    images = [a["src"] or "" for tag, a in shown.tags if tag == "img"]
    assert len(images) == 4  # errors, densities, curves, and the run's own
    for source in images:
        kind, data = source.split(";base64,")
        start = {"data:image/svg+xml": b"<?xml", "data:image/png": b"\x89PNG"}[kind]
        assert base64.b64decode(data).startswith(start)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in shown.tags}
    assert not re.search(r"url\(|@import", shown.text["style"])
    again, _ = results.report([tmp_path / "runs"], tmp_path / "again")
    assert again.read_bytes() == (tmp_path / "report.html").read_bytes()


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.7):
        run = make_run(
            tmp_path / "runs" / f"a <b>bold</b> run {sparsity}",
            **{"sparsity": sparsity, "dataset": HOSTILE, "model": HOSTILE},
            **{"device": HOSTILE, "command": HOSTILE, "metrics": CURVE},
            fields={"init.scored": HOSTILE},
            network={"layers": [{**x, "path": HOSTILE + x["path"]} for x in layers()]},
        )
        Figure().savefig(run / "<i>.png")
    make_unfinished(tmp_path / "runs" / "half <b>")
    shown, (head, _, *lines) = page(tmp_path / "runs")
    assert not {"script", "b", "i"} & {tag for tag, _ in shown.tags}
    assert all(a["src"].startswith("data:") for tag, a in shown.tags if tag == "img")
    assert not any(name.startswith("on") for _, a in shown.tags for name in a)
    assert shown.rows[1][1] == HOSTILE
    assert {len(line) for line in lines[:2]} == {len(head)}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    text = re.sub("^    .*", "", text, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)<", text), "neither escaped nor code"


def test_an_unfinished_run_is_listed_with_how_far_it_is(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_unfinished(runs / "begun")
    rows = [
        {"seeds": [0, 1], "step": 500, "test_error": [9.0, 8.0]},
        {"seeds": [0, 1], "step": 1000, "test_error": [5.0, 4.0]},
        {"seeds": [2, 3], "step": 500, "test_error": [7.0, 6.0]},
    ]
    make_unfinished(runs / "half", rows)
    shown, markdown = page(runs)
    assert "nothing can be concluded" in shown.text["p"]
    # At step 500 the four seeds have 9, 8, 7 and 6.
    expected = [
        ["runs/begun", "0", "1,000", "-"],
        ["runs/half", "500", "1,000", "7.50"],
    ]
    assert shown.rows[1:] == markdown[2:] == expected


@pytest.mark.usefixtures("drawn")
def test_pictures_in_the_directories_have_a_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep" / "run", fields={"prune.batch_class": 1})
    write_config(run.parent, {"vary": ("prune.batch_class=1",)})
    Figure().savefig(run / "curves.png")
    Figure().savefig(run.parent / "errors.png")
    shown, _ = page(run.parent)
    titles = "Pictures of sweepPictures of sweep/run"
    assert titles in re.sub("\n", "", shown.text["h2"])
    captions = [a["alt"] for tag, a in shown.tags if tag == "img"]
    assert captions[-2:] == ["errors.png", "curves.png"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("out", ["new/page.html", "new/page"])
def test_the_command_line_writes_both_files(out: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / out)]) == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"page.html", "page.md"}


def test_the_command_line_tells_mistakes_and_damage_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_run(tmp_path / "damaged") / "result.json").write_text("{")
    for path, says in (
        (tmp_path, "warning: left out: '.*result.json' is damaged"),
        (tmp_path / "nowhere", "there is no run in"),
    ):
        assert main([str(path), "--out", str(tmp_path / "out")]) == 2
        line, *_ = capsys.readouterr().err.splitlines()
        assert re.match(f"snipjax.report: {says}", line)
    assert not (tmp_path / "out.html").exists()


# Pictures of rows.


def calls_of(name: str, path: Path, drawn: list[Any]) -> list[tuple[Any, Any]]:
    """Arguments of the calls of a function that draws pictures of runs."""
    runs, _ = reading.find(path)
    table = results.aggregate(reading.networks(runs))
    pictures.of_rows(table, reading.metrics(runs))
    pictures.of_signals(runs)
    return [(args, kwargs) for called, args, kwargs in drawn if called == name]


def test_errors_are_drawn_beside_the_published_and_the_dense_ones(
    tmp_path: Path, drawn: list[Any]
) -> None:
    make_run(tmp_path / "95", 1.7, 1.9, sparsity=0.95)
    make_run(tmp_path / "98", 2.7)
    make_run(tmp_path / "98, shorter", 9.0, fields={"train.steps": 100})
    make_run(tmp_path / "dense", 1.5, method="none")
    (((measured,), options),) = calls_of("errors_by_density", tmp_path, drawn)
    assert list(measured) == ["SNIP", "SNIP (train.steps=100)"]
    # Of two errors, the deviation of a sample is their distance over the root of 2.
    points = [pytest.approx((0.05, 1.8, 0.2 / 2**0.5)), pytest.approx((0.02, 2.7, 0))]
    assert measured["SNIP"] == points
    published = [pytest.approx((0.05, 1.6)), pytest.approx((0.02, 2.4))]
    assert options["published"]["SNIP"] == published
    assert options["dense"] == {"dense": 1.5}
    assert options["to_beat"] == [
        pytest.approx((0.05, 1.53)),
        pytest.approx((0.02, 1.99)),
    ]


def test_curves_are_of_each_row_and_its_seeds(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{"seeds": [0, 1], "step": s, "test_error": [9.0, 8.0]} for s in (1, 2)]
    make_run(tmp_path / "run", 2.0, 3.0, metrics=rows)
    make_run(tmp_path / "other", sparsity=0.9, metrics=CURVE)
    make_run(tmp_path / "without", sparsity=0.8)
    (((named, units), _),) = calls_of("compared_curves", tmp_path, drawn)
    assert list(named) == ["SNIP at 90%", "SNIP at 98%"]
    assert list(named["SNIP at 98%"]["seed"].unique()) == [0, 1]
    assert list(units) == ["train_loss", "test_error"]


def test_the_training_error_on_random_labels_is_drawn_over_the_epochs(
    tmp_path: Path, drawn: list[Any]
) -> None:
    rows = [{"step": 500 * step, "train_error": [60.0 / step]} for step in (1, 2)]
    fields = {"dataset.random_labels": True}
    make_run(tmp_path / "run", fields=fields, metrics=rows, epochs=50.0)
    (((_, units), options),) = calls_of("compared_curves", tmp_path, drawn)
    assert list(units) == ["train_error"]
    assert options == {"steps_per_epoch": 20}


def test_networks_are_compared_at_their_common_sparsity(
    tmp_path: Path, drawn: list[Any]
) -> None:
    for sparsity in (0.9, 0.95):
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity)
    two = {"layers": layers()[:4]}
    make_run(tmp_path / "b", model="lenet_5_caffe", sparsity=0.95, network=two)
    (((named,), _),) = calls_of("densities_by_depth", tmp_path, drawn)
    assert {name: len(shares) for name, shares in named.items()} == {
        "LeNet-300-100 on MNIST, SNIP at 95%": 3,
        "LeNet-5-Caffe on MNIST, SNIP at 95%": 2,
    }


def test_signals_of_initializations_are_drawn_side_by_side(
    tmp_path: Path, drawn: list[Any]
) -> None:
    arrays = ("activation_variance", "gradient_variance", "density")
    for name in ("he", "glorot_uniform"):
        run = make_run(tmp_path / name, fields={"init.scored": name})
        values = {array: [[0.5, 0.25]] for array in arrays}
        values |= {"layers": ["Dense_0", "Dense_1"], "rank_correlation": [0.1, None]}
        write_json(run / "signal.json", values)
    (((named,), _),) = calls_of("signals", tmp_path, drawn)
    assert list(named) == ["glorot uniform", "he"]
