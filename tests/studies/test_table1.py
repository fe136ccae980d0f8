"""Table 1: what is run, what is kept of it, and what the table says of it."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import experiment, masks, methods
from snipjax.studies import table1
from snipjax.studies.table1 import (
    aggregation,
    config,
    files,
    output,
    running,
    sentences,
    tables,
)
from snipjax.studies.table1.cell import Cell
from snipjax.training import rundir

ROOT = Path(__file__).parents[1]
TABLE = ("--config", ROOT / "configs" / "table1.py")
STEPS = 6


def small(**fields: Any) -> ConfigDict:
    """A table of SNIP on the digits, of a few steps."""
    settings = table1.default()
    settings.dataset.name = "digits"
    settings.networks, settings.methods = "lenet_300_100", "snip"
    settings.lenet_300_100.update(steps=STEPS, decay_every=STEPS, eval_every=STEPS)
    settings.update(fields)
    return settings


class TestConfig:
    def test_every_method_of_the_table_is_there(self) -> None:
        names = "dense,lwc,dns,lc,sws,sparse_vd,obd,lobs,snip"
        assert table1.default().methods == names
        assert [method.name for method in table1.METHODS.values()] == [
            *("Dense", "LWC", "DNS", "LC", "SWS", "SVD", "OBD", "L-OBS", "SNIP")
        ]

    def test_a_section_has_the_hyperparameters_of_the_methods_signature(self) -> None:
        for method in table1.METHODS:
            section = table1.default()[method].to_dict()
            assert section == methods.hyperparameters(getattr(methods, method))

    def test_the_default_and_the_quick_form_are_valid(self) -> None:
        settings = table1.default()
        table1.validate(settings)
        settings.quick = True
        settings.frontier = "0.9, 0.95"
        table1.validate(settings)

    def test_cells_are_those_of_the_paper(self) -> None:
        cells = config.cells(table1.default())
        assert len(cells) == 2 * (len(table1.METHODS) + 1)  # SNIP is in it twice
        assert cells[0] == Cell("lenet_300_100", "dense", 0.0, 0)
        assert Cell("lenet_300_100", "obd", 0.92, 0) in cells
        assert Cell("lenet_5_caffe", "sparse_vd", 0.996, 0) in cells
        assert len({cell.name for cell in cells}) == len(cells)

    def test_frontier_adds_sparsities_to_every_method_but_dense(self) -> None:
        settings = small(methods="dense,snip", frontier="0.98,0.9,0.9", seeds=2)
        assert [cell[1:] for cell in config.cells(settings)] == [
            (method, sparsity, seed)
            for seed in (0, 1)
            for method, sparsity in [
                ("dense", 0.0),
                *(("snip", sparsity) for sparsity in (0.95, 0.98, 0.9)),
            ]
        ]

    def test_a_sparsity_of_minus_0_is_0(self) -> None:
        cells = config.cells(small(frontier="-0,0"))
        assert [cell.name for cell in cells if cell.sparsity == 0] == [
            *("lenet_300_100-dense-seed0", "lenet_300_100-snip-0-seed0")
        ]

    def test_quick_is_a_share_of_the_steps(self) -> None:
        settings = table1.default()
        settings.quick = True
        train = config.experiment_config(
            settings, config.Cell("lenet_5_caffe", "lwc", 0.9, seed=3)
        ).train
        full = settings.lenet_5_caffe
        assert train.steps == full.steps // 20
        assert train.decay_every == full.decay_every // 20

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"methods": "snip,lwcc"}, r"has 'lwcc'; did you mean 'lwc'\?"),
            ({"methods": " , "}, "methods is empty; there are dense, lwc"),
            ({"methods": "SNIP"}, "did you mean 'snip'"),
            ({"methods": "L-OBS"}, "did you mean 'lobs'"),
            ({"methods": "SVD"}, "did you mean 'sparse_vd'"),
            ({"frontier": "0.99999999"}, "no number in"),
            ({"networks": "lenet_5"}, r"has 'lenet_5'; did you mean 'lenet_5_caffe'"),
            ({"frontier": "0.9,1"}, r"frontier has '1', which is no number in \[0, 1"),
            ({"frontier": "nan"}, "frontier has 'nan'"),
            ({"seeds": 0}, "seeds is 0; it must be >= 1"),
            ({"seed": -1}, "seed is -1; it must be >= 0"),
            ({"seed": 2**32}, "config.seed . config.seeds is 4294967297"),
            ({"lenet_5_caffe.steps": 0}, "lenet_5_caffe.steps is 0; it must be >= 1"),
            ({"lenet_5_caffe.snip_learning_rate": -1.0}, r"snip_learning_rate is -1"),
            ({"lenet_5_caffe.learning_rate": 0.0}, r"learning_rate is 0\.0; it must"),
            ({"methods": "lwc", "lwc.rounds": 0}, "config.lwc: rounds is 0"),
            ({"methods": "dns", "dns.surgery": -1.0}, "config.dns: surgery is -1"),
        ],
    )
    def test_mistakes(self, fields: dict[str, Any], message: str) -> None:
        settings = table1.default()
        settings.update_from_flattened_dict(fields)
        with pytest.raises(ValueError, match=message):
            table1.validate(settings)

    def test_an_unknown_field_is_named_with_the_nearest(self) -> None:
        settings = table1.default().unlock()
        settings.lwc.runds = 3
        with pytest.raises(ValueError, match=r"'lwc\.runds'; did you mean 'lwc\.round"):
            table1.validate(settings)


def keep_one_sparsity(patch: pytest.MonkeyPatch) -> None:
    """SNIP at one sparsity, for compiling takes most of the time."""
    published = config.published_sparsities
    patch.setattr(config, "published_sparsities", lambda *names: published(*names)[:1])


@pytest.fixture
def one_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_one_sparsity(monkeypatch)


@pytest.fixture(scope="module")
def finished(
    compile_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, table1.Results]:
    workdir = tmp_path_factory.mktemp("tables") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        keep_one_sparsity(patch)
        return workdir, table1.run(small(), workdir, command="python train.py")


@pytest.mark.usefixtures("one_sparsity")
class TestRun:
    def test_has_a_row_for_each_cell(
        self, finished: tuple[Path, table1.Results]
    ) -> None:
        _, results = finished
        assert results.failures == {}
        assert [(row.method, row.wanted) for row in results.rows] == [
            ("dense", 0.0),
            ("snip", 0.95),
        ]
        dense, snip = results.rows
        assert dense.costs == (1.0,)
        assert snip.values("kept") == [2531]
        assert snip.values("prunes") == [1]
        assert snip.values("steps") == [STEPS]
        seconds = [row.values("seconds")[0] for row in results.rows]
        assert snip.cost == pytest.approx(seconds[1] / seconds[0])

    def test_a_cell_keeps_its_network(
        self, finished: tuple[Path, table1.Results]
    ) -> None:
        workdir, _ = finished
        directory = workdir / "lenet_300_100-snip-0.95-seed0"
        parts = running.parts_of(small(), None, "lenet_300_100")
        params, mask, history = files.read_outcome(
            directory, methods.abstract_params(parts)
        )
        assert masks.sparsity(mask) == pytest.approx(0.95, abs=1e-4)
        for name in params:
            kernel, keep = (np.asarray(tree[name]["kernel"]) for tree in (params, mask))
            assert not kernel[~keep].any()
        result = files.read(directory)
        assert result["params_sha256"] == experiment.digest(params)
        assert history.rows[-1]["test_error"] == result["test_error_last"]
        logits = parts.model.apply(
            {"params": params}, parts.preprocess(parts.test.images), train=False
        )
        wrong = float(np.mean(np.argmax(logits, axis=1) != parts.test.labels))
        assert result["test_error"] == pytest.approx(100 * wrong, rel=1e-4)

    def test_everything_is_written(self, finished: tuple[Path, table1.Results]) -> None:
        workdir, _ = finished
        for name in ("table1.md", "table1.csv", "table1.html", "cells.csv"):
            assert (workdir / name).stat().st_size > 100
        assert (workdir / "frontier_lenet_300_100.png").read_bytes()[:4] == b"\x89PNG"
        assert "python train.py" in (workdir / "table1.md").read_text()

    def test_what_is_finished_is_not_run_again(
        self,
        finished: tuple[Path, table1.Results],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        workdir, results = finished
        stubs = Stubs(monkeypatch)
        monkeypatch.setattr(experiment, "assemble", None)
        assert table1.run(small(), workdir, command="python train.py") == results
        assert stubs.calls == []

    def test_other_hyperparameters_are_refused_naming_the_cell(
        self, finished: tuple[Path, table1.Results]
    ) -> None:
        settings = small()
        settings.lenet_300_100.steps = STEPS + 1
        message = r"-dense-seed0' was made with config\.lenet_300_100\.steps=6, not 7"
        with pytest.raises(ValueError, match=message):
            table1.run(settings, finished[0])

    def test_another_data_set_or_form_is_refused(
        self, finished: tuple[Path, table1.Results]
    ) -> None:
        with pytest.raises(ValueError, match="quick: True here, False there"):
            table1.run(small(quick=True), finished[0])

    def test_a_network_that_does_not_take_the_images_is_said_at_once(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="images are too small"):
            table1.run(small(networks="lenet_5_caffe"), tmp_path / "new")
        assert not (tmp_path / "new").exists()


class TestSummary:
    def test_the_last_step_is_of_training_at_the_final_sparsity(self) -> None:
        rows = [
            {"phase": "dense", "step": 9, "sparsity": 0.0, "test_error": 1.0},
            {"phase": "shares", "step": 5, "sparsity": 0.9, "test_error": 2.0},
            {"phase": "quantised", "step": 0, "sparsity": 0.9, "test_error": 3.0},
        ]
        assert files.last_row(rows)["test_error"] == 2.0
        without_training = [rows[0], rows[2]]
        assert files.last_row(without_training)["test_error"] == 3.0
        assert files.last_row([]) == {}


class Stubs:
    """In the place of methods: networks of ones, at once; they count their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail: set[str] = set()
        self.interrupt: set[str] = set()
        self.weights: dict[str, float] = {}
        for name in ("dense", "lwc", "snip"):
            monkeypatch.setattr(methods, name, self._stub(name))
        monkeypatch.setattr(config, "_check_hyperparameters", lambda config: None)

    def _stub(self, name: str) -> Any:
        def method(
            parts: experiment.Parts,
            target: float = 0.0,
            *,
            pretrained: methods.Outcome | None = None,
        ) -> methods.Outcome:
            assert (pretrained is None) == (name in ("dense", "snip"))
            self.calls.append(f"{name} {target:g} {parts.config.seed}")
            if self.calls[-1] in self.fail:
                raise RuntimeError("out of\nluck")
            if self.calls[-1] in self.interrupt:
                signal.raise_signal(signal.SIGINT)
            params = {
                leaf: {
                    "kernel": jnp.ones(shape) * self.weights.get(name, 1.0),
                    "bias": jnp.zeros(shape[-1]),
                }
                for leaf, shape in (
                    ("Dense_0", (64, 300)),
                    ("Dense_1", (300, 100)),
                    ("Dense_2", (100, 10)),
                )
            }
            mask = masks.ones(params, parts.prunable)
            history = methods.History(
                (
                    {
                        "phase": name,
                        "step": 5,
                        "test_error": 7.0,
                        "train_loss": float("nan"),
                    },
                ),
                prunes=int(100 * target),
                steps=5,
                seconds=2.0 + target,
            )
            return methods.Outcome(params, mask, history)

        return method


@pytest.mark.slow
def test_the_quick_form_in_miniature_has_a_network_of_every_method(
    tmp_path: Path,
) -> None:
    settings = small(methods=table1.default().methods, quick=True)
    settings.lenet_300_100.update(steps=600, decay_every=200)
    results = table1.run(settings, tmp_path)
    assert results.failures == {}
    rows = {row.method: row for row in results.rows}
    assert set(rows) == set(table1.METHODS)
    for row in results.rows:
        (kept,) = row.values("kept")
        assert kept <= round(50_610 * (1 - row.wanted))
        assert len(row.values("test_error")) == 1
    assert rows["dense"].values("test_error")[0] < 15
    cells = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert len(cells) == len(table1.METHODS) + 1  # SNIP is in it twice


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


@pytest.mark.usefixtures("one_sparsity")
class TestResuming:
    def test_more_seeds_and_sparsities_come_into_the_same_directory(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        table1.run(small(), tmp_path)
        assert stubs.calls == ["dense 0 0", "snip 0.95 0"]
        table1.run(small(seeds=2, frontier="0.5"), tmp_path)
        assert stubs.calls[2:] == [
            *("snip 0.5 0", "dense 0 1", "snip 0.95 1", "snip 0.5 1")
        ]

    def test_the_table_keeps_what_is_not_asked_for_again(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        table1.run(small(frontier="0.5", seeds=2), tmp_path)
        rows = table1.run(small(methods="dense"), tmp_path).rows
        assert [(row.wanted, len(row.results)) for row in rows] == [
            *((0.0, 2), (0.5, 2), (0.95, 2))
        ]

    def test_a_cell_that_fails_costs_the_others_nothing(
        self,
        stubs: Stubs,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        stubs.fail = {"snip 0.95 0", "dense 0 1"}
        settings = small(methods="snip,lwc", seeds=2)
        results = table1.run(settings, tmp_path)
        assert results.failures == {
            "lenet_300_100-snip-0.95-seed0": "RuntimeError: out of luck",
            "lenet_300_100-dense-seed1": "RuntimeError: out of luck",
            "lenet_300_100-lwc-0.917-seed1": "ValueError: there is no dense network to "
            f"start from in '{tmp_path}/lenet_300_100-dense-seed1'",
        }
        printed = capsys.readouterr().out
        assert "3 of 6 cells failed; the same command tries them again" in printed
        for name in ("table1.md", "table1.html"):
            text = (tmp_path / name).read_text()
            assert "SNIP on LeNet-300-100 at 95% failed: RuntimeError: out of" in text
            assert "3 of 6 cells are finished, 3 failed" in text
        stubs.fail, stubs.calls = set(), []
        assert table1.run(settings, tmp_path).failures == {}
        assert stubs.calls == ["snip 0.95 0", "dense 0 1", "lwc 0.917 1"]
        assert "failed" not in (tmp_path / "table1.md").read_text()

    def test_nothing_starts_from_a_network_that_diverged(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        stubs.weights = {"dense": float("nan")}
        failures = table1.run(small(methods="lwc"), tmp_path).failures
        assert stubs.calls == ["dense 0 0"]
        assert failures["lenet_300_100-dense-seed0"] == (
            "FloatingPointError: parameters are not finite, for training diverged; "
            "lower config.lenet_300_100.learning_rate"
        )

    def test_an_interrupt_leaves_the_table_so_far(
        self,
        stubs: Stubs,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        stubs.interrupt = {"snip 0.95 0"}
        with pytest.raises(KeyboardInterrupt):
            table1.run(small(), tmp_path)
        printed = capsys.readouterr().out
        assert "stopped; 1 of 2 cells are finished, and the same command" in printed
        assert "1 of 2 cells are finished" in (tmp_path / "table1.md").read_text()
        stubs.interrupt, stubs.calls = set(), []
        table1.run(small(), tmp_path)
        assert stubs.calls == ["snip 0.95 0"]

    def test_progress_is_said(
        self,
        stubs: Stubs,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        table1.run(small(), tmp_path)
        printed = capsys.readouterr().out
        assert "cell 1 of 2: lenet_300_100 dense seed 0 (0 s so far)" in printed
        pattern = r"cell 2 of 2: lenet_300_100 snip 95% seed 0 \(\d+ s so far, about"
        assert re.search(pattern, printed)

    def test_a_damaged_cell_is_named(self, stubs: Stubs, tmp_path: Path) -> None:
        table1.run(small(), tmp_path)
        path = tmp_path / "lenet_300_100-dense-seed0" / files.CELL
        path.write_text("{")
        with pytest.raises(ValueError, match=r"cell\.json' is damaged .* remove"):
            table1.run(small(), tmp_path)


def write_cell(workdir: Path, settings: ConfigDict, cell: Cell, **fields: Any) -> None:
    """A cell as if it had been run."""
    result = {
        **cell._asdict(),
        "measured_sparsity": cell.sparsity,
        "kept": 1000,
        "test_error_last": 3.0,
        "prunes": 1,
        "steps": 100,
        "seconds": 10.0,
        "wall_seconds": 20.0,
        "history": [],
        "device": "cpu",
        "settings": config.settings(settings, cell),
        **fields,
    }
    (workdir / cell.name).mkdir()
    rundir.write_json(workdir / cell.name / files.CELL, result)


@pytest.fixture
def written(tmp_path: Path) -> tuple[ConfigDict, list[aggregation.Row], Path]:
    """Both networks, two seeds, hand-made figures."""
    settings = table1.default()
    settings.seeds, settings.methods, settings.frontier = 2, "snip,lwc", "0.9"
    for cell in config.cells(settings):
        if cell.network == "lenet_5_caffe" and cell.method != "dense":
            if (cell.method, cell.sparsity) == ("lwc", 0.917):
                write_cell(tmp_path, settings, cell, test_error=0.5, prunes=4)
            continue
        errors = {
            ("dense", 0.0): (1.6, 1.8),
            ("snip", 0.95): (2.0, 2.2),
            ("snip", 0.98): (3.0, 3.0),
            ("snip", 0.9): (1.4, 1.4),
            ("lwc", 0.917): (1.9, 1.9),
            ("lwc", 0.9): (1.5, 1.5),
        }[cell.method, cell.sparsity]
        is_lwc = cell.method == "lwc"
        write_cell(
            tmp_path,
            settings,
            cell,
            test_error=errors[cell.seed],
            seconds=(10.0 if cell.seed == 0 else 20.0) * (2.5 if is_lwc else 1.0),
            prunes=4 + cell.seed if is_lwc else 1,
            history=[
                {"step": 9, "sparsity": 0.9, "test_error": 2.0, "phase": "sparse"}
                | {"bound": 7.0},
                {"step": 0, "sparsity": 0.9, "test_error": 4.0, "phase": "quantised"}
                | {"bits_per_weight": 3.0 + cell.seed},
            ]
            * is_lwc,
        )
    return settings, aggregation.rows(settings, tmp_path), tmp_path


class TestTable:
    def test_lines_are_as_computed_by_hand(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        _, table, _ = written
        hyperparameters = len(methods.hyperparameters(methods.lwc))
        lines = [
            "; ".join(entry.text for entry in line[3:]) for line in tables.lines(table)
        ]
        # Sparsity, error, deviation, published and cost of each network; the method.
        assert lines == [
            "-; 1.70; 0.14; 1.7; 1.00; -; 1.70; 0.14; 0.9; 1.00; -; -; -; -; -",
            "91.7; 1.90; 0.00; 1.6; 2.50; 91.7; 0.50; 0.00; 0.8; 0.75; yes; 4 to 5; "
            f"{hyperparameters}; no; yes",
            # SNIP has no section, but a learning rate of its own on LeNet-5-Caffe.
            "95; 2.10; 0.14; 1.6; 1.00; 98; -; -; 0.8; -; no; 1; 1; no; no",
            "98; 3.00; 0.00; 2.4; 1.00; 99; -; -; 1.1; -; no; 1; 1; no; no",
        ]

    @pytest.mark.parametrize(
        ("networks", "snip_learning_rate", "count"),
        [
            ("lenet_300_100,lenet_5_caffe", 0.05, "1"),
            ("lenet_300_100,lenet_5_caffe", 0.02, "0"),
            ("lenet_5_caffe", 0.05, "1"),
            ("lenet_300_100", 0.05, "0"),
        ],
    )
    def test_a_learning_rate_of_its_own_is_a_hyperparameter(
        self, tmp_path: Path, networks: str, snip_learning_rate: float, count: str
    ) -> None:
        settings = table1.default()
        settings.methods, settings.networks = "snip", networks
        settings.lenet_5_caffe.learning_rate = 0.02
        settings.lenet_5_caffe.snip_learning_rate = snip_learning_rate
        table = aggregation.rows(settings, tmp_path)
        names = [column.name for column in tables.columns(table)]
        place = names.index("Additional hyperparameters")
        dense, *snip = [line[place].text for line in tables.lines(table)]
        assert (dense, set(snip)) == ("-", {count})
        legend = dict(tables.LEGEND)["Additional hyperparameters"]
        assert "for SNIP one more if it trains any of the networks at another" in legend

    def test_the_legend_says_what_a_cost_rests_on(self) -> None:
        text = dict(tables.LEGEND)["Training cost (dense trainings)"]
        assert "Seconds are of wall time" in text
        assert "only if all runs had the machine alike" in text

    def test_the_smallest_errors_are_marked_and_the_frontier_is_not_among_them(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        _, table, _ = written
        columns = [column.full_name for column in tables.columns(table)]
        marked = [
            (line[1].text.split(":")[0], columns[place], entry.text)
            for line in tables.lines(table)
            for place, entry in enumerate(line)
            if entry.is_best
        ]
        measured, published = "Test error, mean (%)", "Published test error (%)"
        assert marked == [
            ("LWC", f"LeNet-300-100: {measured}", "1.90"),
            ("LWC", f"LeNet-300-100: {published}", "1.6"),
            ("LWC", f"LeNet-5-Caffe: {measured}", "0.50"),
            ("LWC", f"LeNet-5-Caffe: {published}", "0.8"),
            ("SNIP", f"LeNet-300-100: {published}", "1.6"),
            ("SNIP", f"LeNet-5-Caffe: {published}", "0.8"),
        ]

    def test_files_have_the_table_and_its_parts_apart(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        settings, table, workdir = written
        output.write(settings, table, workdir, "python train.py")
        with (workdir / "table1.csv").open() as file:
            rows = list(csv.DictReader(file))
        columns = [column.full_name for column in tables.columns(table)]
        for row, line in zip(rows, tables.lines(table), strict=True):
            assert [row[name] for name in columns] == [entry.text for entry in line]
        smallest = "LeNet-300-100: Test error, mean (%), smallest"
        assert [row[smallest] for row in rows] == ["no", "yes", "no", "no"]
        markdown = (workdir / "table1.md").read_text()
        assert "| **1.90** |" in markdown
        assert "bits per weight 3.5" in markdown
        for name in config.NETWORKS:
            assert (workdir / output.picture_name(name)).exists()
        page = (workdir / "table1.html").read_text()
        assert page.count('<th scope="colgroup" colspan="5"') == 2
        assert 'class="number best"' in page
        assert page.count("data:image/png;base64,") == 2
        assert not re.search(r"""(src|href)=["'](?!data:|https://)""", page)
        caption, legend, analysis = (
            page.index(part)
            for part in ("<caption>", "<dl>", "<h2>What the tables say")
        )
        assert caption < legend < analysis

    def test_the_second_table_has_the_frontier_too(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        _, table, _ = written
        lines = [
            dict(zip(tables.DETAIL_COLUMNS, line))
            for line in tables.detail_lines(table)
        ]
        snip = [line for line in lines if line["Method"] == "SNIP"][:3]
        assert [line["Sparsity (%)"] for line in snip] == ["90", "95", "98"]
        assert [line["Measured less published (points)"] for line in snip] == [
            *("-", "+0.50", "+0.60")
        ]
        assert [line["Training and pruning (seconds)"] for line in snip] == ["15"] * 3

    def test_sentences_are_computed(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        _, table, _ = written
        text = " ".join(sentences.analysis(table))
        assert (
            "On LeNet-300-100 the smallest error of a pruned network is 1.40% (SNIP at "
            "90%) and the largest 3.00% (SNIP at 98%); dense it is 1.70%" in text
        )
        assert "the dearest LWC on LeNet-300-100 at 90%, 2.50" in text
        assert "none of 2 rows are below its line" in text

    def test_extra_figures_of_the_last_rows_are_notes(
        self, written: tuple[ConfigDict, list[aggregation.Row], Path]
    ) -> None:
        _, table, _ = written
        assert tables.notes(table) == [
            f"LWC on LeNet-300-100 at {sparsity}%, at the end: bound 7, bits per "
            "weight 3.5 and quantised test error (%) 4."
            for sparsity in ("90", "91.7")
        ]

    def test_with_nothing_measured(self, tmp_path: Path) -> None:
        settings = table1.default()
        table = aggregation.rows(settings, tmp_path)
        output.write(settings, table, tmp_path, None)
        count = len(config.cells(settings))
        text = (tmp_path / "table1.md").read_text()
        assert f"0 of {count} cells are finished" in text
        assert "Nothing is measured yet." in (tmp_path / "table1.html").read_text()


def train(
    *arguments: Any, cwd: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "train.py", *TABLE, *arguments]
    return subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, **options
    )


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--config.methods=snip,lwcc"], "did you mean 'lwc'"),
            (["--config.lwc.runds=3"], r"no field 'lwc\.runds'; .*'lwc\.rounds'"),
            (["--config.methods=lwc", "--config.lwc.rounds=0"], r"lwc: rounds is 0;"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, arguments: list[str], message: str, tmp_path: Path
    ) -> None:
        output = train(*arguments, cwd=tmp_path)
        assert output.returncode == 2
        assert output.stderr.count("\n") == 1
        assert re.match(f"train.py: .*{message}", output.stderr)
        assert not list(tmp_path.iterdir())

    def test_help_lists_the_fields_of_the_table(self, tmp_path: Path) -> None:
        output = train("--help", cwd=tmp_path)
        assert output.returncode == 0
        assert "--config.lwc.rounds (default 4)" in output.stdout
        assert "--config.prune.method" not in output.stdout

    def test_it_runs_under_its_name_with_its_lists_as_given(
        self, tmp_path: Path
    ) -> None:
        directory = tmp_path / "runs" / "table1-digits-quick"
        arguments = [
            "--config.quick",
            "--config.dataset.name=digits",
            "--config.networks=lenet_300_100",
            "--config.methods=dense,",
            "--config.lenet_300_100.steps=1",
        ]
        output = train(*arguments, cwd=tmp_path)
        assert (output.returncode, output.stderr) == (0, "")
        assert "everything is in runs/table1-digits-quick" in output.stdout
        result = json.loads(
            (directory / "lenet_300_100-dense-seed0" / "cell.json").read_text()
        )
        assert result["command"].endswith(" ".join(arguments))
