"""Table 1: its cells, how they are run, and the table that is made of them."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment
from snipjax import config as configs
from snipjax.results import conclusions
from snipjax.studies import table1
from snipjax.studies.table1 import cells, page
from snipjax.studies.table1.cells import Cell
from tests.results.runs import make_run

NETWORK = "lenet_300_100"
DENSE = f"{NETWORK}-dense-seed0"
STEPS = 6


def small(**fields: Any) -> ConfigDict:
    """A table of SNIP on the digits, of a few steps."""
    config = table1.default()
    config.dataset.name = "digits"
    config.networks, config.methods = NETWORK, "snip"
    config[NETWORK].update(steps=STEPS, decay_every=STEPS, eval_every=STEPS)
    config.update(fields)
    return config


def write_cell(workdir: Path, config: ConfigDict, cell: Cell, **fields: Any) -> Path:
    """A finished cell as if it had been run."""
    experiment_config = cells.experiment_config(config, cell, workdir)
    return make_run(
        workdir / cell.name,
        fields.pop("error", 2.0),
        seed=cell.seed,
        sparsity=cell.sparsity,
        method=experiment_config.prune.method,
        dataset=config.dataset.name,
        model=cell.network,
        fields=dict(configs.fields(experiment_config.to_dict())),
        metrics=fields.pop("metrics", ()),
        network={"train_error": 1.0, **fields},
    )


class Stubs:
    """In the place of experiments: networks of ones, at once; they note their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail: set[str] = set()
        self.interrupt: set[str] = set()
        self.weight = 1.0
        monkeypatch.setattr(experiment, "run", self.run)
        monkeypatch.setattr(assembly, "assemble", lambda config, data_dir: config)
        monkeypatch.setattr(assembly, "abstract_state", self.check)

    def check(self, setup: ConfigDict) -> None:
        if setup.model.name == "lenet_5_caffe":
            raise ValueError("the images are too small")

    def run(self, config: ConfigDict, workdir: Path, **_: Any) -> None:
        prune, seed = config.prune, config.seed
        call = f"{prune.method} {prune.sparsity:g} {seed}"
        self.calls.append(call)
        if call in self.fail:
            raise RuntimeError("out of\nluck")
        if call in self.interrupt:
            raise KeyboardInterrupt
        if not (workdir / "result.json").exists():
            cell = cells.named(workdir.name)
            assert cell is not None
            fields = dict(configs.fields(config.to_dict()))
            make_run(
                workdir,
                seed=seed,
                sparsity=cell.sparsity,
                method=prune.method,
                dataset=config.dataset.name,
                model=config.model.name,
                fields=fields,
                network={"seconds": 2.0 + prune.sparsity},
            )
        (workdir / f"seed-{seed}").mkdir(exist_ok=True)
        weights = {"Dense_0/kernel": np.full((2, 2), self.weight)}
        np.savez(workdir / f"seed-{seed}" / "params.npz", **weights)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


def failing(config: ConfigDict, workdir: Path) -> dict[str, str]:
    return table1.make(config, workdir).failures


class TestConfig:
    def test_every_method_of_the_table_is_there(self) -> None:
        names = "dense,lwc,dns,lc,sws,sparse_vd,obd,lobs,snip"
        assert table1.default().methods == names
        assert [method.name for method in table1.METHODS.values()] == [
            *("Dense", "LWC", "DNS", "LC", "SWS", "SVD", "OBD", "L-OBS", "SNIP")
        ]

    def test_hyperparameters_are_those_of_an_experiment(self) -> None:
        config, experiment_default = table1.default(), configs.default()
        for method in cells.RIVALS:
            assert config[method] == experiment_default[method]
            count = cells.hyperparameters(config, NETWORK, method)
            assert count == len(experiment_default[method])

    def test_the_default_and_the_quick_form_are_valid(self) -> None:
        config = table1.default()
        table1.validate(config)
        config.quick, config.frontier = True, "0.9, 0.95"
        table1.validate(config)

    def test_cells_are_those_of_the_paper(self) -> None:
        found = cells.cells(table1.default())
        assert len(found) == 2 * (len(table1.METHODS) + 1)  # SNIP is in it twice
        assert found[0] == Cell("lenet_300_100", "dense", 0.0, 0)
        assert Cell("lenet_300_100", "obd", 0.92, 0) in found
        assert Cell("lenet_5_caffe", "sparse_vd", 0.996, 0) in found
        assert len({cell.name for cell in found}) == len(found)
        assert all(cells.named(cell.name) == cell for cell in found)

    def test_frontier_adds_sparsities_to_every_method_but_dense(self) -> None:
        config = small(methods="dense,snip", frontier="0.98,0.9,0.9", seeds=2)
        assert [cell[1:] for cell in cells.cells(config)] == [
            (method, sparsity, seed)
            for seed in (0, 1)
            for method, sparsity in [
                ("dense", 0.0),
                *(("snip", sparsity) for sparsity in (0.95, 0.98, 0.9)),
            ]
        ]

    def test_a_cell_is_an_experiment_of_its_method_and_network(self) -> None:
        config = table1.default()
        config.quick, config.lwc.rounds, config.dns.gamma = True, 2, 3.0
        cell = Cell("lenet_5_caffe", "lwc", 0.917, seed=3)
        found = cells.experiment_config(config, cell, Path("runs/t"))
        assert (found.seed, found.dataset.name) == (3, "mnist")
        assert (found.prune.method, found.prune.sparsity) == ("lwc", 0.917)
        assert found.prune.pretrained == "runs/t/lenet_5_caffe-dense-seed3"
        full = config.lenet_5_caffe
        assert found.train.steps == full.steps // 20
        assert found.optimizer.decay_every == full.decay_every // 20
        assert found.optimizer.learning_rate == full.learning_rate
        assert (found.lwc.rounds, found.dns.gamma) == (2, configs.default().dns.gamma)
        snip = cells.experiment_config(config, cell._replace(method="snip"), Path())
        assert snip.optimizer.learning_rate == full.snip_learning_rate
        assert snip.prune.pretrained == ""
        dense = cells.experiment_config(config, cell.dense, Path())
        assert dense.prune.method == "none"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"methods": "snip,lwcc"}, r"has 'lwcc'; did you mean 'lwc'\?"),
            ({"methods": " , "}, "methods is empty; there are dense, lwc"),
            ({"methods": "SNIP"}, "did you mean 'snip'"),
            ({"methods": "L-OBS"}, "did you mean 'lobs'"),
            ({"methods": "SVD"}, "did you mean 'sparse_vd'"),
            ({"networks": "lenet_5"}, r"has 'lenet_5'; did you mean 'lenet_5_caffe'"),
            *(
                ({"frontier": f"0.9,{part}"}, f"frontier has '{part}', which is no num")
                for part in ("1", "nan", "0", "-0.5", "0.99999999", "x")
            ),
            ({"seeds": 0}, "seeds is 0; it must be >= 1"),
            ({"seed": -1}, "seed is -1; it must be >= 0"),
            ({"seed": 2**32 - 1, "seeds": 2}, "config.seed . config.seeds is 4294967"),
            ({"lenet_5_caffe.steps": 0}, "lenet_5_caffe.steps is 0; it must be >= 1"),
            ({"lenet_5_caffe.snip_learning_rate": -1.0}, r"snip_learning_rate is -1"),
            ({"lenet_5_caffe.learning_rate": 0.0}, r"learning_rate is 0\.0; it must"),
            ({"lwc.rounds": 0}, "config.lwc.rounds is 0"),
            ({"dns.surgery": -1.0}, "config.dns.surgery is -1"),
        ],
    )
    def test_mistakes(self, fields: dict[str, Any], message: str) -> None:
        config = table1.default()
        config.update_from_flattened_dict(fields)
        with pytest.raises(ValueError, match=message):
            table1.validate(config)

    def test_an_unknown_field_is_named_with_the_nearest(self) -> None:
        config = table1.default().unlock()
        config.lwc.runds = 3
        with pytest.raises(ValueError, match=r"'lwc\.runds'; did you mean 'lwc\.round"):
            table1.validate(config)


class TestRunning:
    def test_dense_cells_come_first_and_finished_ones_are_not_run_again(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        first = table1.make(small(), tmp_path, command="python train.py")
        assert stubs.calls == ["none 0 0", "snip 0.95 0", "snip 0.98 0"]
        assert first.failures == {}
        for name in ("table1.md", "table1.csv", "table1.html", "cells.csv"):
            assert (tmp_path / name).stat().st_size > 100
        assert "python train.py" in (tmp_path / "table1.md").read_text()
        again = table1.make(small(), tmp_path, command="python train.py")
        assert len(stubs.calls) == 3
        assert list(again.table["error"]) == list(first.table["error"])

    def test_more_seeds_methods_and_sparsities_come_into_the_same_directory(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        table1.make(small(), tmp_path)
        config = small(methods="lwc", seeds=2, frontier="0.5")
        table = table1.make(config, tmp_path).table
        assert stubs.calls[3:] == [
            *("lwc 0.917 0", "lwc 0.5 0", "none 0 1", "lwc 0.917 1", "lwc 0.5 1")
        ]
        counts = {(r.name, r.asked): len(r.networks) for r in table.itertuples()}
        assert counts == {
            ("dense", 0.0): 2,
            **{("lwc", 0.5): 2, ("lwc", 0.917): 2},
            **{("snip", 0.95): 1, ("snip", 0.98): 1},
        }

    def test_a_cell_that_fails_costs_the_others_nothing(
        self, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stubs.fail = {"snip 0.95 0", "none 0 1"}
        config = small(methods="snip,lwc", seeds=2)
        assert failing(config, tmp_path) == {
            f"{NETWORK}-snip-0.95-seed0": "RuntimeError: out of luck",
            f"{NETWORK}-dense-seed1": "RuntimeError: out of luck",
            f"{NETWORK}-lwc-0.917-seed1": "ValueError: there is no dense network to "
            f"start from in '{tmp_path}/{NETWORK}-dense-seed1'",
        }
        printed = capsys.readouterr().out
        assert "3 of 8 cells failed; the same command tries them again" in printed
        for name in ("table1.md", "table1.html"):
            text = (tmp_path / name).read_text()
            assert "SNIP at 95% failed: RuntimeError: out of luck" in text
            assert "5 of 8 cells are finished, 3 failed" in text
        stubs.fail, stubs.calls = set(), []
        assert failing(config, tmp_path) == {}
        assert stubs.calls == ["snip 0.95 0", "none 0 1", "lwc 0.917 1"]
        assert "failed" not in (tmp_path / "table1.md").read_text()

    def test_nothing_starts_from_a_network_that_diverged(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        stubs.weight = float("nan")
        failures = failing(small(methods="lwc"), tmp_path)
        assert stubs.calls == ["none 0 0"]
        assert failures[DENSE] == (
            "FloatingPointError: parameters are not finite, for training diverged; "
            "lower config.lenet_300_100.learning_rate, and remove "
            f"'{tmp_path / DENSE}'"
        )

    def test_an_interrupt_leaves_the_table_so_far(
        self, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stubs.interrupt = {"snip 0.95 0"}
        with pytest.raises(KeyboardInterrupt):
            table1.make(small(), tmp_path)
        printed = capsys.readouterr().out
        assert "stopped; 1 of 3 cells are finished, and the same command" in printed
        assert "1 of 3 cells are finished" in (tmp_path / "table1.md").read_text()
        stubs.interrupt, stubs.calls = set(), []
        table1.make(small(), tmp_path)
        assert stubs.calls == ["snip 0.95 0", "snip 0.98 0"]

    def test_progress_is_said(
        self, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table1.make(small(), tmp_path)
        printed = " ".join(capsys.readouterr().out.split())
        assert f"cell 1 of 3: {DENSE} (0 s so far)" in printed
        # A cell took 20 seconds, and two are to go.
        pattern = rf"cell 2 of 3: {NETWORK}-snip-0.95-seed0 \(\d+ s so far, about 40 s"
        assert re.search(pattern, printed)

    def test_a_network_that_does_not_take_the_images_is_said_at_once(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="images are too small"):
            table1.make(small(networks="lenet_5_caffe"), tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert stubs.calls == []


@pytest.fixture
def finished(stubs: Stubs, tmp_path: Path) -> Path:
    """A directory of a whole table."""
    table1.make(small(), tmp_path)
    stubs.calls.clear()
    return tmp_path


class TestDirectories:
    def test_other_settings_are_refused_naming_the_cell(self, finished: Path) -> None:
        config = small()
        config[NETWORK].steps = STEPS + 1
        message = (
            r"-dense-seed0' was made with other settings \(train\.steps: 7 here, 6"
        )
        with pytest.raises(ValueError, match=message):
            table1.make(config, finished)
        with pytest.raises(ValueError, match=r"train\.steps: 1 here, 6 there"):
            table1.make(small(quick=True), finished)

    def test_cells_of_other_settings_are_left_out_saying_why(
        self, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        both = small(methods="snip,lwc", seeds=7)
        for cell in cells.cells(both):
            write_cell(tmp_path, both, cell)
        assert len(table1.make(both, tmp_path).table) == 4
        assert "left out" not in capsys.readouterr().out
        other = small()
        other.lwc.rounds = 2
        other.methods = "snip"
        assert len(table1.make(other, tmp_path).table) == 3
        printed = " ".join(capsys.readouterr().out.split())
        names = ", ".join(f"{NETWORK}-lwc-0.917-seed{seed}" for seed in range(5))
        assert (
            f"left out of the table: {names} and 2 more, made with other settings "
            "(lwc.rounds: 2 here, 4 there)" in printed
        )

    @pytest.mark.parametrize("text", ["null", "[]", "{}", "", "{"])
    def test_a_damaged_cell_is_named_with_the_remedy(
        self, text: str, finished: Path
    ) -> None:
        (finished / DENSE / "result.json").write_text(text)
        with pytest.raises(ValueError, match=rf"{DENSE}/result\.json' is .*leave"):
            table1.make(small(), finished)
        shutil.rmtree(finished / DENSE)
        assert len(table1.make(small(), finished).table) == 3

    @pytest.mark.parametrize(
        "name",
        [
            *("notes", f"{DENSE} (copy)", "x-snip-0.5-seed0"),
            "lenet_300_100-snip-0.950-seed0",
        ],
    )
    def test_a_directory_that_is_no_cell_is_left_alone(
        self, name: str, finished: Path
    ) -> None:
        shutil.copytree(finished / DENSE, finished / name)
        (finished / name / "result.json").write_text("{")
        assert len(table1.make(small(), finished).table) == 3

    @pytest.mark.parametrize("text", ["{", "[]", ""])
    def test_a_damaged_configuration_costs_no_finished_cell(
        self, text: str, finished: Path
    ) -> None:
        path = finished / "config.json"
        written = path.read_text()
        path.write_text(text)
        message = r"config\.json' is damaged .*; remove this file, and the same command"
        with pytest.raises(ValueError, match=message):
            table1.make(small(), finished)
        path.unlink()
        assert len(table1.make(small(), finished).table) == 3
        assert path.read_text() == written

    def test_another_run_or_other_files_are_refused(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        make_run(tmp_path / "run")
        with pytest.raises(ValueError, match="study: table1 here"):
            table1.make(small(), tmp_path / "run")
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "thesis.tex").write_text("")
        with pytest.raises(ValueError, match=r"has files but no config\.json"):
            table1.make(small(), tmp_path / "files")


@pytest.fixture
def written(tmp_path: Path) -> tuple[ConfigDict, Path]:
    """Both networks, two seeds, hand-made figures."""
    config = table1.default()
    config.seeds, config.methods, config.frontier = 2, "snip,lwc", "0.9"
    for cell in cells.cells(config):
        if cell.network == "lenet_5_caffe" and cell.method != "dense":
            if (cell.method, cell.sparsity) == ("lwc", 0.917):
                write_cell(tmp_path, config, cell, error=0.5, prunes=4, seconds=7.5)
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
        seconds = 10.0 if cell.network == "lenet_5_caffe" or cell.seed == 0 else 20.0
        metrics = [
            {"phase": "sparse", "step": 9, "test_error": 2.0, "bound": 7.0},
            {"phase": "quantized", "step": 0, "test_error": 4.0}
            | {"bits_per_weight": 3.0 + cell.seed},
        ]
        write_cell(
            tmp_path,
            config,
            cell,
            error=errors[cell.seed],
            seconds=seconds * (2.5 if is_lwc else 1.0),
            prunes=4 + cell.seed if is_lwc else 1,
            metrics=[{**row, "seeds": [cell.seed]} for row in metrics] * is_lwc,
        )
    return config, tmp_path


class TestTable:
    def test_lines_are_as_computed_by_hand(
        self, written: tuple[ConfigDict, Path]
    ) -> None:
        lines = [
            "; ".join(entry.text for entry in line[3:])
            for line in page.pivot(page.rows(*written))
        ]
        # Sparsity, error, deviation, published and cost of each network; the method.
        assert lines == [
            "-; 1.70; 0.14; 1.7; 1.00; -; 1.70; 0.14; 0.9; 1.00; -; -; -; -; -",
            "91.7; 1.90; 0.00; 1.6; 2.50; 91.7; 0.50; 0.00; 0.8; 0.75; yes; 4 to 5; "
            "4; no; yes",
            # SNIP has no section, but a learning rate of its own on LeNet-5-Caffe.
            "95; 2.10; 0.14; 1.6; 1.00; 98; -; -; 0.8; -; no; 1; 1; no; no",
            "98; 3.00; 0.00; 2.4; 1.00; 99; -; -; 1.1; -; no; 1; 1; no; no",
        ]

    def test_the_smallest_errors_are_marked_and_the_frontier_is_not_among_them(
        self, written: tuple[ConfigDict, Path]
    ) -> None:
        columns = page.columns(cells.NETWORKS)
        marked = [
            (line[1].text.split(":")[0], column.full_name, entry.text)
            for line in page.pivot(page.rows(*written))
            for column, entry in zip(columns, line, strict=True)
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

    @pytest.mark.parametrize(
        ("network", "rate", "count"),
        [
            ("lenet_5_caffe", 0.05, 1),
            ("lenet_5_caffe", 0.02, 0),
            (NETWORK, 0.1, 0),
        ],
    )
    def test_a_learning_rate_of_its_own_is_a_hyperparameter(
        self, network: str, rate: float, count: int
    ) -> None:
        config = table1.default()
        config[network].snip_learning_rate = rate
        assert cells.hyperparameters(config, network, "snip") == count

    def test_files_have_the_table_and_its_parts_apart(
        self, written: tuple[ConfigDict, Path]
    ) -> None:
        config, workdir = written
        table = page.write(config, workdir, "python train.py")
        with (workdir / "table1.csv").open() as file:
            rows = list(csv.DictReader(file))
        columns = [column.full_name for column in page.columns(cells.NETWORKS)]
        for row, line in zip(rows, page.pivot(table), strict=True):
            assert [row[name] for name in columns] == [e.text or e[1] for e in line]
        smallest = "LeNet-300-100: Test error, mean (%), smallest"
        assert [row[smallest] for row in rows] == ["no", "yes", "no", "no"]
        markdown = (workdir / "table1.md").read_text()
        assert "| **1.90** |" in markdown
        assert "[Han et al. (2015)](https://arxiv.org/abs/1506.02626)" in markdown
        html = (workdir / "table1.html").read_text()
        assert html.count('<th scope="colgroup" colspan="5"') == 2
        assert 'class="number best"' in html
        assert html.count("data:image/png;base64,") == 2
        assert not re.search(r"""(src|href)=["'](?!data:|https://)""", html)
        caption, legend, analysis = (
            html.index(part) for part in ("<caption>", "<dl>", "<h2>Conclusions")
        )
        assert caption < legend < analysis
        for text in (markdown, html):
            assert "LWC: Learning Weights and Connections" in text
            assert "Seconds are of wall time" in text
            assert "only if all runs had the machine alike" in text
            assert "at the end: bound 7, bits per weight 3.5 and quantized test" in text

    def test_the_second_table_has_the_frontier_too(
        self, written: tuple[ConfigDict, Path]
    ) -> None:
        details = page.detail_rows(page.rows(*written))
        snip = details[details["Method"] == "SNIP"].head(3)
        assert list(snip["Network"].unique()) == ["LeNet-300-100"]
        assert list(snip["Sparsity (%)"]) == ["90", "95", "98"]
        difference = list(snip["Measured less published (points)"])
        assert difference == ["-", "+0.50", "+0.60"]
        assert list(snip["Training and pruning (seconds)"]) == ["15"] * 3

    def test_sentences_are_computed(self, written: tuple[ConfigDict, Path]) -> None:
        measured = page.rows(*written).dropna(subset="error")
        rows = list(measured.itertuples())
        text = " ".join(conclusions.paragraphs_of_table_1(rows))
        for sentence in (
            "On LeNet-300-100 the smallest error of a pruned network is 1.40% (SNIP at "
            "90%) and the largest 3.00% (SNIP at 98%); dense it is 1.70%, and 4 of 5 "
            "pruned rows are at most 0.5 points above it.",
            "the dearest LeNet-300-100 on MNIST, LWC at 90%, 2.50",
            "none of 2 rows are below its line",
            "SNIP at 95%, 2.10% against its 1.53% (0.57 points above)",
            "Of 6 rows with a published figure",
        ):
            assert sentence in text

    def test_the_frontier_has_the_errors_that_both_papers_published(
        self, written: tuple[ConfigDict, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(
            page.figures,
            "draw",
            lambda draw, table, path: draw(table, path),
        )
        monkeypatch.setattr(
            page.figures,
            "errors_by_density",
            lambda measured, path, **of_papers: calls.append((measured, of_papers)),
        )
        page.write(*written, None)
        measured, of_papers = calls[0]
        assert list(measured) == ["LWC", "SNIP"]
        densities = [point[0] for point in measured["SNIP"]]
        assert densities == pytest.approx([0.1, 0.05, 0.02])
        assert of_papers["published"]["LWC"] == [(pytest.approx(0.083), 1.6)]
        assert of_papers["dense"] == {"Dense": pytest.approx(1.7)}
        assert of_papers["to_beat"][1] == [
            *((pytest.approx(0.05), 1.53), (pytest.approx(0.02), 1.99))
        ]

    def test_with_nothing_measured(self, tmp_path: Path) -> None:
        config = table1.default()
        page.write(config, tmp_path, None)
        count = len(cells.cells(config))
        text = (tmp_path / "table1.md").read_text()
        assert f"0 of {count} cells are finished" in text
        assert "Nothing is measured yet." in (tmp_path / "table1.html").read_text()


@pytest.mark.slow
def test_the_quick_form_in_miniature_has_a_network_of_every_method(
    tmp_path: Path,
) -> None:
    config = small(methods=table1.default().methods, quick=True)
    config[NETWORK].update(steps=600, decay_every=200)
    results = table1.make(config, tmp_path)
    assert results.failures == {}
    rows = {row.name: row for row in results.table.itertuples()}
    assert set(rows) == set(table1.METHODS)
    for row in results.table.itertuples():
        (kept,) = row.networks["kept"]
        assert kept <= round(50_610 * (1 - row.asked))
    assert rows["dense"].error < 15
    details = pd.read_csv(tmp_path / "cells.csv")
    assert len(details) == len(table1.METHODS) + 1  # SNIP is in it twice
    result = json.loads((tmp_path / DENSE / "result.json").read_text())
    assert result["method"] == "none"
