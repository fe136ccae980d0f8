"""The page and the Markdown of run directories made by hand."""

import base64
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from snipjax import results
from snipjax.results import figures, pictures, reading
from snipjax.results.conclusions import analysis, conclusion
from tests.results.runs import (
    layers,
    make_run,
    make_unfinished,
    write_config,
    write_json,
)

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script>_$x^{$ | `y` "><img src=x onerror=z>'
CURVE = [{"step": step, "train_loss": 1 / step, "test_error": 90.0} for step in (1, 2)]


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
        if tag in ("img", "meta", "br"):
            self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, "tags are not nested"

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data
        for tag in set(self._inside):
            self.text[tag] = self.text.get(tag, "") + data


def page(path: Path) -> Page:
    html, _ = results.report([path], path.parent / "report")
    return Page(html.read_text(encoding="utf-8"))


def markdown_rows(path: Path) -> list[list[str]]:
    """Cells of the lines of Markdown's tables, heads among them."""
    _, file = results.report([path], path.parent / "report")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]


def test_the_table_spells_its_columns_out_and_holds_the_figures(
    tmp_path: Path,
) -> None:
    values = {"train_error": 1.75, "test_error_last": 2.8}
    make_run(tmp_path / "runs" / "run", 2.0, 2.2, 2.7, network=values)
    shown = page(tmp_path / "runs")
    header, figures, command = shown.rows[:3]
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
    assert dict(zip(header, figures)) == expected
    assert command[0].startswith("python train.py --config configs/")
    labels = [a["data-label"] for tag, a in shown.tags if "data-label" in a]
    assert labels[: len(header)] == header, "narrow screens show these instead"
    link = "[Lee et al. (2019)](https://arxiv.org/abs/1810.02340)"
    header, _, line = markdown_rows(tmp_path / "runs")[:3]
    expected = {
        name: text.replace("Lee et al. (2019)", link) for name, text in expected.items()
    }
    assert dict(zip(header, line)) == {**expected, "Command": f"`{command[0]}`"}


def test_magnitude_refers_to_the_method_that_pruned_by_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run", method="magnitude")
    (_, figures, *_) = page(tmp_path / "run").rows
    assert figures[2] == "magnitude at initialization Han et al. (2015)"


def test_numbers_are_set_below_each_other(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    cells = [a for tag, a in page(tmp_path / "run").tags if tag == "td"][:17]
    texts = {a["data-label"] for a in cells if a.get("class") != "number"}
    assert texts == {"Network", "Data set", "Method", "Seeds"}


def test_a_narrow_screen_has_each_row_as_a_list_of_names_and_cells(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "run")
    style = " ".join(page(tmp_path / "run").text["style"].split())
    _, _, narrow = style.partition("@media (max-width: 1330px) {")
    for rule in (
        "thead { display: none; }",
        "td:not(.command)::before { content: attr(data-label);",
        "table, caption, tbody, td { display: block; }",
    ):
        assert rule in narrow
    assert "@media (max-width: 720px) { figure.wide img { width: 720px;" in style
    assert "figure.wide { grid-column: 1 / -1; min-width: 0; overflow-x: auto; }" in (
        style
    )


def test_only_trained_networks_count_as_trained(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "sweep", 2.0, 2.2, 2.7, device="TPU v5e")
    make_run(
        tmp_path / "runs" / "pruned",
        None,
        fields={"train.steps": 0},
        network={"steps": 0},
    )
    about = "2 finished runs, 3 trained networks, 2 rows, made on TPU v5e and cpu."
    assert about in page(tmp_path / "runs").text["p"]


def test_published_methods_are_referenced(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    shown = page(tmp_path / "run")
    (dns,) = [row for row in shown.rows if row[1:2] == ["DNS: Dynamic Network Surgery"]]
    assert dns == ["Guo et al. (2016)", "DNS: Dynamic Network Surgery", "magnitude",
                   "LeNet-300-100", "MNIST", "98.2", "2.0", "yes", "many", "yes", "no",
                   "yes"]  # fmt: skip
    assert ("a", {"href": "https://arxiv.org/abs/1608.04493"}) in shown.tags


def test_analysis_is_a_paragraph_and_the_conclusion_comes_last(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    shown = page(tmp_path / "run")
    table = results.aggregate(results.read(tmp_path / "run"))
    for sentence in analysis(table) + conclusion(table):
        assert sentence in shown.text["p"]
        assert sentence not in shown.text["caption"]
    assert shown.text["body"].rstrip().endswith(conclusion(table)[-1])
    assert [tag for tag, _ in shown.tags if tag in ("h1", "h2")][-1] == "h2"
    assert shown.text["h2"].endswith("Conclusion")


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for sparsity in (0.95, 0.98):
        run = make_run(
            tmp_path / "runs" / f"{sparsity}", sparsity=sparsity, metrics=CURVE
        )
    Figure().savefig(run / "densities.png")
    shown = page(tmp_path / "runs")
    images = [a["src"] or "" for tag, a in shown.tags if tag == "img"]
    assert len(images) == 4  # errors, densities, curves, and the run's own
    for source in images:
        kind, data = source.split(";base64,")
        start = {"data:image/svg+xml": b"<?xml", "data:image/png": b"\x89PNG"}[kind]
        assert base64.b64decode(data).startswith(start)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in shown.tags}
    assert not re.search(r"url\(|@import", shown.text["style"])


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    for sparsity in (0.95, 0.98):
        make_run(tmp_path / "runs" / f"{sparsity}", sparsity=sparsity, metrics=CURVE)
    first, second = (
        results.report([tmp_path / "runs"], tmp_path / name)[0].read_bytes()
        for name in ("first", "second")
    )
    assert first == second


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.7):
        run = make_run(
            tmp_path / "runs" / f"a <b>bold</b> run {sparsity}",
            sparsity=sparsity,
            dataset=HOSTILE,
            model=HOSTILE + "\n\0\ud800",
            device=HOSTILE,
            command=HOSTILE,
            fields={"init.scored": HOSTILE},
            metrics=CURVE,
            network={"layers": [{**x, "path": HOSTILE + x["path"]} for x in layers()]},
        )
        Figure().savefig(run / "<i>.png")
    make_unfinished(tmp_path / "runs" / "half <b>")
    shown = page(tmp_path / "runs")
    assert not {"script", "b", "i"} & {tag for tag, _ in shown.tags}
    assert all(a["src"].startswith("data:") for tag, a in shown.tags if tag == "img")
    assert not any(name.startswith("on") for _, a in shown.tags for name in a)
    assert shown.rows[1][1] == HOSTILE
    head, _, *lines = markdown_rows(tmp_path / "runs")[:4]
    assert {len(line) for line in lines} == {len(head)}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    text = re.sub("`[^`\n]+`", "", text)
    assert not re.search(r"(?<!\\)<", text), "neither escaped nor code"


# Pictures of rows.


def drawn(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> list[tuple[Any, ...]]:
    """Arguments of the calls of a function that draws, without the file."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        figures, name, lambda *args, **kwargs: calls.append((*args[:-1], kwargs))
    )
    runs = reading.find(path)
    table = results.aggregate(reading.networks(runs))
    pictures.of_rows(table, reading.metrics(runs))
    pictures.of_signals(runs)
    return calls


def test_errors_are_drawn_beside_the_published_and_the_dense_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "95", 1.7, 1.9, sparsity=0.95)
    make_run(tmp_path / "98", 2.7)
    make_run(tmp_path / "98, shorter", 9.0, fields={"train.steps": 100})
    make_run(tmp_path / "dense", 1.5, method="none")
    ((measured, of_papers),) = drawn(tmp_path, monkeypatch, "errors_by_density")
    assert list(measured) == ["SNIP", "SNIP (train.steps=100)"]
    # Of two errors, the deviation of a sample is their distance over the root of 2.
    first, second = measured["SNIP"]
    assert first == pytest.approx((0.05, 1.8, 0.2 / 2**0.5))
    assert second == pytest.approx((0.02, 2.7, 0.0))
    first, second = of_papers["published"]["SNIP"]
    assert first == pytest.approx((0.05, 1.6))
    assert second == pytest.approx((0.02, 2.4))
    assert of_papers["dense"] == {"dense": 1.5}


def test_curves_are_of_each_row_and_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"seeds": [0, 1], "step": s, "test_error": [9.0, 8.0]} for s in (1, 2)]
    make_run(tmp_path / "run", 2.0, 3.0, metrics=rows)
    make_run(tmp_path / "other", sparsity=0.9, metrics=CURVE)
    make_run(tmp_path / "without", sparsity=0.8)
    ((named, quantities, _),) = drawn(tmp_path, monkeypatch, "compared_curves")
    assert list(named) == ["SNIP at 90%", "SNIP at 98%"]
    assert list(named["SNIP at 98%"]["seed"].unique()) == [0, 1]
    assert list(quantities) == ["train_loss", "test_error"]


def test_the_training_error_on_random_labels_is_drawn_over_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"step": 500 * step, "train_error": 60.0 / step} for step in (1, 2)]
    fields = {"dataset.random_labels": True}
    make_run(tmp_path / "run", fields=fields, metrics=rows, epochs=50.0)
    ((_, quantities, options),) = drawn(tmp_path, monkeypatch, "compared_curves")
    assert list(quantities) == ["train_error"]
    assert options == {"steps_per_epoch": 20}
    monkeypatch.undo()
    assert "learned by heart" in page(tmp_path / "run").text["figcaption"]


def test_networks_are_compared_at_their_common_sparsity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sparsity in (0.9, 0.95):
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity)
    two = {"layers": layers()[:4]}
    make_run(tmp_path / "b", model="lenet_5_caffe", sparsity=0.95, network=two)
    ((named, _),) = drawn(tmp_path, monkeypatch, "densities_by_depth")
    assert {name: len(shares) for name, shares in named.items()} == {
        "LeNet-300-100 on MNIST, SNIP at 95%": 3,
        "LeNet-5-Caffe on MNIST, SNIP at 95%": 2,
    }


def test_signals_of_initializations_are_drawn_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = ("activation_variance", "gradient_variance", "density")
    for name in ("he", "glorot_uniform"):
        run = make_run(tmp_path / "runs" / name, fields={"init.scored": name})
        values = {array: [[0.5, 0.25]] for array in arrays}
        values |= {"layers": ["Dense_0", "Dense_1"], "rank_correlation": [0.1, None]}
        write_json(run / "signal.json", values)
    shown = page(tmp_path / "runs")
    assert "The signal of initializations" in shown.text["figcaption"]
    ((named, _),) = drawn(tmp_path / "runs", monkeypatch, "signals")
    assert list(named) == ["glorot uniform", "he"]


# Pictures in the directories.


def make_sweep(path: Path) -> Path:
    """Writes a sweep of two classes with pictures in its directory and a run's."""
    for number in (0, 1):
        run = make_run(
            path / f"prune.batch_class={number}", fields={"prune.batch_class": number}
        )
    write_config(path, {"vary": ["prune.batch_class=0,1"]})
    for directory, names in (
        (run, ("curves.png", "first_layer.png")),
        (path, ("errors.png", "first_layers.png", "signals.png")),
    ):
        for name in names:
            Figure().savefig(directory / name)
    Figure(figsize=(9, 4)).savefig(path / "curves.png")
    return path


def own_pictures(path: Path) -> list[str]:
    """Descriptions of the pictures in the directories, in the order of the page."""
    tags = page(path).tags
    return [a["alt"] or "" for tag, a in tags if ".png of " in (a.get("alt") or "")]


def test_pictures_of_sweeps_and_runs_have_a_place(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "classes")
    assert own_pictures(sweep) == [
        "curves.png of classes",
        "errors.png of classes",
        "first_layers.png of classes",
        "curves.png of classes/prune.batch_class=1",
        "first_layer.png of classes/prune.batch_class=1",
    ]
    shown = page(sweep)
    assert "Pictures of each sweep" in shown.text["h2"]
    assert (
        "Connections kept of every input pixel: the lighter, the more, by "
        "prune.batch_class=0,1." in shown.text["figcaption"]
    )
    wide = [
        image["alt"]
        for (_, place), (_, image) in itertools.pairwise(shown.tags)
        if place.get("class") == "wide"
    ]
    assert wide == ["curves.png of classes"]


def test_a_run_given_alone_has_no_pictures_of_others(tmp_path: Path) -> None:
    run = make_sweep(tmp_path / "classes") / "prune.batch_class=1"
    assert own_pictures(run) == [
        "curves.png of prune.batch_class=1",
        "first_layer.png of prune.batch_class=1",
    ]


def test_a_damaged_picture_costs_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Figure().savefig(run / "whole.png")
    data = (run / "whole.png").read_bytes()
    (run / "cut.png").write_bytes(data[: len(data) // 2])
    (run / "no picture.png").write_text("hello")
    shown = page(run)
    assert "cut.png is damaged" in shown.text["p"]
    assert "no picture.png is damaged" in shown.text["p"]
    assert own_pictures(run) == ["whole.png of run"]


# Unfinished runs.


def test_an_unfinished_run_is_listed_with_how_far_it_is(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "done")
    make_unfinished(runs / "begun")
    rows = [
        {"seeds": [0, 1], "step": 500, "test_error": [9.0, 8.0]},
        {"seeds": [0, 1], "step": 1000, "test_error": [5.0, 4.0]},
        {"seeds": [2, 3], "step": 500, "test_error": [7.0, 6.0]},
    ]
    make_unfinished(runs / "half", rows)
    shown = page(runs).rows
    assert ["runs/begun", "0", "1000", "-"] in shown
    # At step 500 the four seeds have 9, 8, 7 and 6.
    assert ["runs/half", "500", "1000", "7.50"] in shown
    assert ["runs/half", "500", "1000", "7.50"] in markdown_rows(runs)


def test_unfinished_runs_alone_make_a_page(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "begun")
    assert "nothing can be concluded" in page(tmp_path / "begun").text["p"]


def test_the_command_line_writes_both_files_and_needs_no_jax(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = (
        "import sys; from snipjax.results.__main__ import main; "
        "code = main(sys.argv[1:]); assert 'jax' not in sys.modules; sys.exit(code)"
    )
    subprocess.run(
        [sys.executable, "-c", code, "run", "--out", "new/page.html"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"page.html", "page.md"}
