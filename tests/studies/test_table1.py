"""Table 1: its cells, how they are run, and the table that is made of them."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, experiment
from snipjax import config as configs
from snipjax.results import look
from snipjax.studies import table1
from snipjax.studies.table1 import cells, page
from snipjax.studies.table1.cells import Cell
from tests.results.runs import make_run, write_config, write_json

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


def write_run(
    workdir: Path,
    config: ConfigDict,
    *errors: float,
    metrics: Sequence[Mapping[str, Any]] = (),
    **network: Any,
) -> None:
    """A finished run of a configuration, as if it had been trained."""
    make_run(
        workdir,
        *errors,
        **{"seed": config.seed, "sparsity": config.prune.sparsity},
        **{"method": config.prune.method, "model": config.model.name},
        dataset=config.dataset.name,
        fields=dict(configs.fields(config.to_dict())),
        metrics=[
            {
                "seeds": [config.seed],
                **{k: v if k in ("phase", "step") else [v] for k, v in row.items()},
            }
            for row in metrics
        ],
        network=network,
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
        # The tests of the table look at pictures, and take their time to draw.
        monkeypatch.setattr(look, "write", lambda *_, **options: None)

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
        write_run(workdir, config, 2.0, seconds=2.0 + prune.sparsity)
        (workdir / f"seed-{seed}").mkdir(exist_ok=True)
        weights = {"Dense_0/kernel": np.full((2, 2), self.weight)}
        np.savez(workdir / f"seed-{seed}" / "params.npz", **weights)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


class TestConfig:
    def test_hyperparameters_are_those_of_an_experiment(self) -> None:
        config, experiment_default = table1.default(), configs.default()
        for method in cells.RIVALS:
            assert config[method] == experiment_default[method]
            count = cells.hyperparameters(config, NETWORK, method)
            assert count == len(experiment_default[method])
        # SNIP has no section, but a learning rate of its own on one network.
        assert cells.hyperparameters(config, NETWORK, "snip") == 0
        assert cells.hyperparameters(config, "lenet_5_caffe", "snip") == 1

    def test_cells_are_those_of_the_paper(self) -> None:
        config = table1.default()
        table1.validate(config)
        found = cells.cells(config)
        assert len(found) == 2 * (9 + 1)  # SNIP is in it twice
        assert found[0] == Cell("lenet_300_100", "dense", 0.0, 0)
        assert Cell("lenet_300_100", "obd", 0.92, 0) in found
        assert Cell("lenet_5_caffe", "sparse_vd", 0.996, 0) in found
        assert len({cell.name for cell in found}) == len(found)

    def test_frontier_adds_sparsities_to_every_method_but_dense(self) -> None:
        config = small(methods="dense,snip", frontier="0.98, 0.9,0.9", seeds=2)
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
            ({"methods": " , "}, r"methods has ''; .*There are dense, lwc"),
            ({"methods": "SNIP"}, "did you mean 'snip'"),
            ({"networks": "lenet_5"}, r"has 'lenet_5'; did you mean 'lenet_5_caffe'"),
            *(
                ({"frontier": f"0.9,{part}"}, f"frontier has '{part}', which is no num")
                for part in ("1", "nan", "x")
            ),
            ({"seeds": 0}, "seeds is 0; it must be >= 1"),
            ({"seed": 2**32 - 1, "seeds": 2}, "config.seed . config.seeds is 4294967"),
            ({"lenet_5_caffe.learning_rate": 0.0}, r"learning_rate is 0\.0; it must"),
            ({"lwc.rounds": 0}, "config.lwc.rounds is 0"),
        ],
    )
    def test_mistakes(self, fields: dict[str, Any], message: str) -> None:
        config = table1.default()
        config.update_from_flattened_dict(fields)
        with pytest.raises(ValueError, match=message):
            table1.validate(config)


class TestRunning:
    def test_dense_cells_come_first_and_finished_ones_are_not_run_again(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        assert table1.make(small(), tmp_path, command="python train.py") == {}
        assert stubs.calls == ["none 0 0", "snip 0.95 0", "snip 0.98 0"]
        assert "    python train.py\n" in (tmp_path / "table1.md").read_text()
        # More seeds, methods and sparsities come into the same directory.
        config = small(methods="lwc", seeds=2, frontier="0.5")
        assert table1.make(config, tmp_path) == {}
        assert stubs.calls[3:] == [
            *("lwc 0.917 0", "lwc 0.5 0", "none 0 1", "lwc 0.917 1", "lwc 0.5 1")
        ]
        table = page.rows(config, tmp_path)
        counts = {(r.method, r.asked): len(r.networks) for r in table.itertuples()}
        assert counts == {
            ("none", 0.0): 2,
            **{("lwc", 0.5): 2, ("lwc", 0.917): 2},
            **{("snip", 0.95): 1, ("snip", 0.98): 1},
        }

    def test_a_cell_that_fails_costs_the_others_nothing(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        stubs.fail = {"snip 0.95 0", "none 0 1"}
        config = small(methods="snip,lwc", seeds=2)
        assert table1.make(config, tmp_path) == {
            f"{NETWORK}-snip-0.95-seed0": "RuntimeError: out of luck",
            f"{NETWORK}-dense-seed1": "RuntimeError: out of luck",
            f"{NETWORK}-lwc-0.917-seed1": "ValueError: there is no dense network to "
            f"start from in '{tmp_path}/{NETWORK}-dense-seed1'",
        }
        assert "5 of 8 cells are finished" in (tmp_path / "table1.html").read_text()
        # Cells that are not asked for are neither counted nor failures.
        assert len(table1.make(small(), tmp_path)) == 1
        text = (tmp_path / "table1.md").read_text()
        assert "snip-0.95-seed0 failed: RuntimeError: out of luck" in text
        assert "2 of 3 cells are finished" in text
        assert "lwc-0.917-seed1 failed" not in text
        stubs.fail, stubs.calls = set(), []
        assert table1.make(config, tmp_path) == {}
        assert stubs.calls == ["snip 0.95 0", "none 0 1", "lwc 0.917 1"]
        assert "failed" not in (tmp_path / "table1.md").read_text()

    def test_nothing_starts_from_a_network_that_diverged(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        stubs.weight = float("nan")
        failures = table1.make(small(methods="lwc"), tmp_path)
        assert stubs.calls == ["none 0 0"]
        assert "lower config.lenet_300_100.learning_rate" in failures[DENSE]

    def test_an_interrupt_leaves_the_table_so_far(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        stubs.interrupt = {"snip 0.95 0"}
        with pytest.raises(KeyboardInterrupt):
            table1.make(small(), tmp_path)
        assert "1 of 3 cells are finished" in (tmp_path / "table1.md").read_text()
        stubs.interrupt, stubs.calls = set(), []
        table1.make(small(), tmp_path)
        assert stubs.calls == ["snip 0.95 0", "snip 0.98 0"]

    def test_a_network_that_does_not_take_the_images_is_refused_at_once(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="images are too small"):
            table1.make(small(networks="lenet_5_caffe"), tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert stubs.calls == []


class TestDirectories:
    @pytest.fixture
    def finished(self, stubs: Stubs, tmp_path: Path) -> Path:
        config = small()
        for cell in cells.cells(config):
            fields = cells.experiment_config(config, cell, tmp_path)
            write_run(tmp_path / cell.name, fields, 2.0)
        write_json(tmp_path / "config.json", config.to_dict())
        return tmp_path

    def test_cells_of_other_settings_are_refused_or_left_out(
        self, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(
            ValueError, match=r"-dense-seed0' was made with other .*1 h"
        ):
            table1.make(small(quick=True), finished)
        table1.make(small(methods="lwc"), finished)
        other = small()
        other.lwc.rounds = 2
        table1.make(other, finished)
        assert set(page.rows(other, finished)["method"]) == {"none", "snip"}
        printed = " ".join(capsys.readouterr().out.split())
        assert (
            f"left out of the table: {NETWORK}-lwc-0.917-seed0, made with other "
            "settings (lwc.rounds: 2 here, 4 there)" in printed
        )

    def test_an_unfinished_cell_of_other_settings_is_refused_before_any_run(
        self, stubs: Stubs, tmp_path: Path
    ) -> None:
        config = small(methods="lwc")
        config.lwc.rounds = 2
        cell = Cell(NETWORK, "lwc", 0.917, 0)
        fields = configs.fields(cells.experiment_config(config, cell, tmp_path))
        write_config(tmp_path / cell.name, dict(fields))
        write_json(tmp_path / "config.json", config.to_dict())
        with pytest.raises(
            ValueError, match=rf"{cell.name}' was made .*lwc.rounds: 4 here, 2 there"
        ):
            table1.make(small(methods="lwc"), tmp_path)
        assert stubs.calls == []
        assert table1.make(config, tmp_path) == {}

    def test_a_copy_of_a_cell_is_left_out_and_a_damaged_one_is_named(
        self, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(finished / DENSE, finished / f"{DENSE} (copy)")
        assert table1.make(small(), finished) == {}
        assert len(page.rows(small(), finished)) == 3
        printed = " ".join(capsys.readouterr().out.split())
        assert f"left out of the table: {DENSE} (copy)" in printed
        (finished / DENSE / "result.json").write_text("{")
        with pytest.raises(ValueError, match=rf"{DENSE}/result\.json' is .*leave"):
            table1.make(small(), finished)

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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, two seeds, hand-made figures."""
    workdir, config = tmp_path_factory.mktemp("written"), table1.default()
    config.seeds, config.methods, config.frontier = 2, "snip,lwc", "0.9"
    errors = {
        ("lenet_300_100", "dense", 0.0): (1.6, 1.8),
        ("lenet_300_100", "snip", 0.95): (2.0, 2.2),
        ("lenet_300_100", "snip", 0.98): (3.0, 3.0),
        ("lenet_300_100", "snip", 0.9): (1.4, 1.4),
        ("lenet_300_100", "lwc", 0.917): (1.9, 1.9),
        ("lenet_5_caffe", "dense", 0.0): (1.6, 1.8),
        ("lenet_5_caffe", "lwc", 0.917): (0.5, 0.5),
    }
    for cell in cells.cells(config):
        if cell[:3] in errors:
            is_lwc, seconds = cell.method == "lwc", 10.0 * (1 + cell.seed)
            write_run(
                workdir / cell.name,
                cells.experiment_config(config, cell, workdir),
                errors[cell[:3]][cell.seed],
                seconds=seconds * (2.5 if is_lwc else 1.0),
                prunes=4 + cell.seed if is_lwc else 1,
            )
    page.make(config, workdir, "python train.py")
    return workdir


class TestTable:
    def test_figures_are_as_computed_by_hand(self, written: Path) -> None:
        columns = [
            *("Network", "Method", "Sparsity (%)", "Test error, mean (%)"),
            *("Published test error (%)", "Training cost (dense trainings)"),
            *("Needs pretraining", "Number of prunings", "Additional hyperparameters"),
        ]
        table = pd.read_csv(written / "cells.csv", dtype=str, keep_default_na=False)
        assert ["; ".join(line) for line in table[columns].to_numpy()] == [
            "LeNet-300-100; dense; 0; 1.70; 1.7; 1.00; -; -; -",
            "LeNet-300-100; SNIP; 90; 1.40; -; 1.00; no; 1; 0",
            "LeNet-300-100; SNIP; 95; 2.10; 1.6; 1.00; no; 1; 0",
            "LeNet-300-100; SNIP; 98; 3.00; 2.4; 1.00; no; 1; 0",
            "LeNet-300-100; LWC; 91.7; 1.90; 1.6; 2.50; yes; 4 to 5; 4",
            "LeNet-5-Caffe; dense; 0; 1.70; 0.9; 1.00; -; -; -",
            "LeNet-5-Caffe; LWC; 91.7; 0.50; 0.8; 2.50; yes; 4 to 5; 4",
        ]
        in_paper = pd.read_csv(written / "table1.csv", dtype=str, keep_default_na=False)
        assert in_paper.to_dict("list") == table.drop(1).to_dict("list")

    def test_pages_have_the_tables_the_pictures_and_the_conclusions(
        self, written: Path
    ) -> None:
        markdown = (written / "table1.md").read_text()
        html = (written / "table1.html").read_text()
        assert "[Han et al. (2015)](https://arxiv.org/abs/1506.02626)" in markdown
        assert "(frontier_lenet_300_100.png)" in markdown
        assert html.count("data:image/svg+xml;base64,") == 2
        assert not re.search(r"""(src|href)=["'](?!data:|https://)""", html)
        assert (written / "frontier_lenet_5_caffe.png").exists()
        # The smallest of a column, without the frontier: measured 1.90 and 0.50.
        bold = re.findall(r"\*\*(.*?)\*\*", markdown)
        assert bold == ["1.6", "1.90", "1.6", "0.50", "0.8"]
        assert "<strong>1.90</strong>" in html
        assert "SNIP trains LeNet-5-Caffe at 0.05." in markdown
        assert "SNIP trains LeNet-300-100" not in markdown
        for part in (
            "54,000 steps of LeNet-300-100 at a learning rate of 0.1",
            "14 of 24 cells are finished",
            "a pruned network is 1.40% (LeNet-300-100 on MNIST, SNIP at 90%) to 3.00%",
            "The dense network has 1.70%, and 3 of 4 pruned rows",
            "Within 0.5 points of the published figure: 4 of 6 rows",
        ):
            assert part in html

    def test_figures_that_only_some_methods_have_are_a_table_of_their_own(
        self, tmp_path: Path
    ) -> None:
        config = small(methods="sws,lobs,lwc", seeds=2)
        for cell in cells.cells(config):
            seed = cell.seed
            metrics = {
                "sws": [
                    {"phase": "sws", "step": 0, "kept_by_rule": 9000},
                    {"phase": "sws", "step": 9, "kept_by_rule": 5000 + 1000 * seed},
                    {"phase": "quantized", "step": 0, "test_error": 4.0 + seed}
                    | {"bits_per_weight": 0.25},
                ],
                "lobs": [
                    {"phase": f"prune {n}", "step": 0, "layer_bound/Dense_0": bound}
                    for n, bound in ((1, 7.0), (2, 0.125))
                ],
            }.get(cell.method, [{"step": 9, "test_error": 2.0}])
            experiment_config = cells.experiment_config(config, cell, tmp_path)
            write_run(tmp_path / cell.name, experiment_config, 2.0, metrics=metrics)
        page.make(config, tmp_path, None)
        text = (tmp_path / "table1.md").read_text()
        lines = text.split("own figures")[1].replace("\\", "").split("##")[0]
        assert [
            [cell.strip() for cell in line.split("|")[2:5]]
            for line in lines.splitlines()
            if line.startswith("| LeNet")
        ] == [
            ["L-OBS at 98.5%", "layer_bound/Dense_0", "0.125"],
            ["SWS at 95.6%", "kept_by_rule", "5,500"],
            ["SWS at 95.6%", "bits_per_weight", "0.25"],
            ["SWS at 95.6%", "test_error of the quantized network (%)", "4.5"],
        ]

    def test_a_table_with_nothing_measured_says_so(self, tmp_path: Path) -> None:
        config = table1.default()
        page.make(config, tmp_path, None)
        text = (tmp_path / "table1.md").read_text()
        assert "Nothing is measured yet." in text


@pytest.mark.slow
def test_the_quick_form_in_miniature_has_a_network_of_every_method(
    tmp_path: Path,
) -> None:
    config = small(methods=table1.default().methods, quick=True)
    config[NETWORK].update(steps=600, decay_every=200)
    assert table1.make(config, tmp_path) == {}
    rows = list(page.rows(config, tmp_path).itertuples())
    assert len(rows) == len(table1.METHODS) + 1  # SNIP is in it twice
    for row in rows:
        (kept,) = row.networks["kept"]
        assert kept <= round(50_610 * (1 - row.asked))
    assert rows[0].error < 15  # the dense network
    text = (tmp_path / "table1.md").read_text().replace("\\", "")
    for figure in (
        *("SVD at 98.5% | kept_by_rule", "SWS at 95.6% | kept_by_rule"),
        *("| bits_per_weight |", "| test_error of the quantized network (%) |"),
        *("| layer_bound/Dense_0 |", "| output_bound |"),
    ):
        assert figure in text
