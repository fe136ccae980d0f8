"""Reports of run directories made by hand, whose figures are known."""

import base64
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import config_flags

from snipjax import config as configs
from snipjax.initializers import signals
from snipjax.results import plots, report
from snipjax.training import rundir

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
LAYERS = (("Dense_0", (784, 300)), ("Dense_1", (300, 100)), ("Dense_2", (100, 10)))
KEPT = (0.02, 0.01, 0.5)  # of each layer's weights
HOSTILE = '<script>alert("x")</script>_$x^{$ | `y` "><img src=x onerror=z>'


def layers_of(kept: tuple[float, ...] = KEPT) -> list[dict[str, Any]]:
    """As ``result.json`` has them; no bias is kept."""
    rows = []
    for (name, shape), share in zip(LAYERS, kept):
        total = shape[0] * shape[1]
        rows.append(
            {
                "path": f"{name}/kernel",
                "shape": list(shape),
                "kept": round(total * share),
                "total": total,
            }
        )
        rows.append(
            {
                "path": f"{name}/bias",
                "shape": [shape[1]],
                "kept": 0,
                "total": shape[1],
            }
        )
    return rows


def config_of(
    fields: dict[str, Any], dataset: str, model: str, method: str
) -> dict[str, Any]:
    config = configs.default().to_dict()
    names = {"dataset.name": dataset, "model.name": model, "prune.method": method}
    for name, value in {**names, **fields}.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    return config


def make_run(
    path: Path,
    error: float | None = 2.0,
    *,
    seed: int = 0,
    sparsity: float = 0.98,
    method: str = "snip",
    dataset: str = "mnist",
    model: str = "lenet_300_100",
    fields: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Writes a finished run of one network."""
    path.mkdir(parents=True)
    fields = {"seed": seed, "prune.sparsity": sparsity, **(fields or {})}
    config = config_of(fields, dataset, model, method)
    rundir.write_json(path / rundir.CONFIG, config)
    rundir.write_json(
        path / rundir.RESULT,
        {
            "dataset": dataset,
            "model": model,
            "method": method,
            "sparsity": sparsity,
            "parameters": 266_610,
            "prunable": 266_610,
            "kept": round(266_610 * (1 - sparsity)),
            "layers": layers_of(),
            "test_error": error,
            "test_error_last": error,
            "val_error": error,
            "best_step": 10,
            "steps": 1000,
            "epochs": 2.5,
            "seed": seed,
            "device": "cpu",
            **result,
        },
    )
    return path


def make_sweep(path: Path, errors: dict[float, list[float]], **result: Any) -> Path:
    """Writes a finished run of several sparsities, with a seed for each error."""
    make_run(path, fields={"seeds": 3, "prune.sparsity": "0.95,0.98"}, **result)
    whole = rundir.read_json(path / rundir.RESULT)
    of_member = ("sparsity", "seed", "kept", "layers", "test_error", "test_error_last")
    whole["members"] = [
        {
            **{name: whole[name] for name in of_member},
            "sparsity": sparsity,
            "seed": seed,
            "kept": round(266_610 * (1 - sparsity)),
            "test_error": error,
            "test_error_last": error + 0.5,
        }
        for sparsity, of_sparsity in errors.items()
        for seed, error in enumerate(of_sparsity)
    ]
    for name in of_member:
        del whole[name]
    rundir.write_json(path / rundir.RESULT, whole)
    return path


def make_unfinished(path: Path, metrics: str = "") -> Path:
    path.mkdir(parents=True)
    fields = {"train.steps": 1000}
    config = config_of(fields, "mnist", "lenet_300_100", "snip")
    rundir.write_json(path / rundir.CONFIG, config)
    (path / rundir.METRICS).write_text(metrics)
    return path


def write_groups(run: Path, groups: dict[str, list[list[float]]]) -> None:
    """Writes the metrics of groups of seeds: test errors by evaluation and seed."""
    for name, evaluations in groups.items():
        (run / name).mkdir()
        lines = [
            {
                "step": 10 * number,
                "test_error": sum(errors) / len(errors),
                "members": [{"step": 10 * number, "test_error": e} for e in errors],
            }
            for number, errors in enumerate(evaluations, 1)
        ]
        (run / name / rundir.METRICS).write_text("\n".join(map(json.dumps, lines)))


def drawn_curves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[list[tuple[float, float]]]]:
    """Points of the lines of each picture over steps, by the picture's caption."""
    return {
        caption: [[*zip(*line.get_data())] for line in axes.lines]
        for caption, axes in axes_drawn(path, monkeypatch).items()
        if axes.get_xlabel() in ("step", "epoch")
    }


def axes_drawn(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """The axes of each picture of the rows, by the picture's caption."""
    drawn: list[Axes] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes)
    )
    captions = [caption for _, caption in report.pictures(rows_in(path))]
    return dict(zip(captions, drawn, strict=True))


def rows_in(path: Path) -> list[report.Row]:
    return report.rows(report.gather([path]))


class Page(HTMLParser):
    """What a browser would make of a page."""

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


def page_of(path: Path) -> Page:
    runs = report.gather([path])
    return Page(report.page(runs, report.rows(runs)))


# Rows.


def test_errors_are_means_and_sample_deviations_over_seeds(tmp_path: Path) -> None:
    for seed, error in enumerate((2.0, 2.2, 2.7)):
        make_run(tmp_path / f"{seed}", error, seed=seed)
    (row,) = rows_in(tmp_path)
    assert row.error == pytest.approx(2.3)
    # Deviations from 2.3 are 0.3, 0.1, 0.4: the sum of their squares is 0.26.
    assert row.std == pytest.approx((0.26 / 2) ** 0.5)
    assert [member.seed for member in row.members] == [0, 1, 2]


def test_networks_trained_at_once_give_the_same_rows_as_one_by_one(
    tmp_path: Path,
) -> None:
    errors = {0.95: [1.5, 1.7, 1.9], 0.98: [2.0, 2.2, 2.7]}
    make_sweep(tmp_path / "at once" / "run", errors)
    for sparsity, of_sparsity in errors.items():
        for seed, error in enumerate(of_sparsity):
            make_run(
                tmp_path / "one by one" / f"{sparsity}-{seed}",
                error,
                seed=seed,
                sparsity=sparsity,
                test_error_last=error + 0.5,
            )
    figures = [
        [
            (row.sparsity, row.error, row.std, row.last_error, row.last_std)
            for row in rows_in(tmp_path / name)
        ]
        for name in ("at once", "one by one")
    ]
    assert figures[0] == figures[1]
    assert [round(row[1], 9) for row in figures[0]] == [1.7, 2.3]


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert rows_in(tmp_path)[0].std is None


def test_a_whole_number_of_connections_is_the_sparsity_asked_for(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "a", sparsity=0.98)
    make_run(tmp_path / "b", sparsity=1 - 5332 / 266_610, seed=1)
    assert len(rows_in(tmp_path)) == 1


def test_other_settings_are_another_row_which_names_them(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1, fields={"train.learning_rate": 0.01})
    rows = rows_in(tmp_path)
    assert [row.settings for row in rows] == ["", "train.learning_rate=0.01"]


def make_short_and_long(path: Path) -> Path:
    """Two sparsities, trained for 100 and for 1000 steps."""
    for sparsity, steps, error in (
        (0.9, 100, 9.5), (0.9, 1000, 3.0), (0.95, 100, 12.0), (0.95, 1000, 4.0)
    ):  # fmt: skip
        make_run(path / f"{sparsity}-{steps}", error, sparsity=sparsity,
                 fields={"train.steps": steps}, steps=steps)  # fmt: skip
    return path


def test_rows_that_differ_in_steps_alone_are_told_apart(tmp_path: Path) -> None:
    rows = rows_in(make_short_and_long(tmp_path))
    assert [(row.error, row.settings) for row in rows] == [
        (3.0, ""),  # the default is 1000 steps
        (4.0, ""),
        (9.5, "train.steps=100"),
        (12.0, "train.steps=100"),
    ]
    assert (
        "is 3.00% for SNIP at 90%, 4.00% for SNIP at 95%, 9.50% for SNIP at 90% "
        "(train.steps=100) and 12.00% for SNIP at 95% (train.steps=100)."
    ) in " ".join(report.analysis(rows))


def test_a_line_of_errors_connects_what_was_trained_for_as_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = next(iter(axes_drawn(make_short_and_long(tmp_path), monkeypatch).values()))
    assert [bars.get_label() for bars in axes.containers] == [
        "SNIP",
        "SNIP (train.steps=100)",
    ]
    assert [bars[0].get_ydata().tolist() for bars in axes.containers] == [
        [3.0, 4.0],
        [9.5, 12.0],
    ]


def test_a_schedule_is_nothing_to_what_is_not_trained(tmp_path: Path) -> None:
    for seed, every in enumerate((5, 25_000)):
        make_run(
            tmp_path / f"{every}",
            None,
            seed=seed,
            fields={"train.steps": 0, "train.decay_every": every},
            steps=0,
        )
    make_run(tmp_path / "trained", 2.0, fields={"train.decay_every": 5})
    rows = rows_in(tmp_path)
    assert {row.settings: len(row.members) for row in rows} == {
        "train.steps=0": 2,
        "train.decay_every=5": 1,
    }


def test_sparsities_are_told_apart_to_a_hundredth_of_a_percent(tmp_path: Path) -> None:
    make_run(tmp_path / "a", sparsity=0.998)
    make_run(tmp_path / "b", sparsity=0.9984, seed=1)
    make_run(tmp_path / "c", sparsity=0.99838, seed=2)  # a whole number kept
    rows = rows_in(tmp_path)
    assert [[m.seed for m in row.members] for row in rows] == [[0], [1, 2]]


@pytest.mark.parametrize("field", ["checkpoint_every", "steps_per_dispatch"])
def test_what_does_not_change_a_network_makes_no_row(
    field: str, tmp_path: Path
) -> None:
    for seed, value in enumerate((50, 100)):
        make_run(tmp_path / f"{seed}", seed=seed, fields={f"train.{field}": value})
    (row,) = rows_in(tmp_path)
    assert (len(row.members), row.settings) == (2, "")


def test_a_field_that_an_older_run_lacks_has_its_default(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    old = make_run(tmp_path / "b", seed=1) / rundir.CONFIG
    config = rundir.read_json(old)
    del config["prune"]["rounds"]
    rundir.write_json(old, config)
    assert len(rows_in(tmp_path)) == 1


def test_a_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 2.0)
    make_run(tmp_path / "b", 2.0)
    (row,) = rows_in(tmp_path)
    assert len(row.members) == 1
    assert len(report.gather([tmp_path, tmp_path / "a"])) == 2


def test_networks_without_an_error_are_left_out_of_the_mean_and_said(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "a", 2.0)
    make_run(tmp_path / "b", None, seed=1)
    (row,) = rows = rows_in(tmp_path)
    assert row.error == 2.0
    assert "1 of 2 networks have no test error" in " ".join(report.analysis(rows))


def test_the_published_figure_stands_beside_the_measured_one(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 2.9)
    (row,) = rows_in(tmp_path)
    assert row.published.error == 2.4
    assert row.difference == pytest.approx(0.5)


@pytest.mark.parametrize(
    "fields",
    [{"prune.select": "layerwise"}, {"prune.rounds": 5}, {"model.init": "ones"}],
)
def test_what_is_pruned_otherwise_has_no_published_figure(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "a", fields=fields)
    (row,) = rows_in(tmp_path)
    assert row.published is None
    ((name, value),) = fields.items()
    assert row.settings == f"{name}={value}"


@pytest.mark.parametrize(
    ("dataset", "model", "sparsity", "papers", "published"),
    [("mnist", "lenet_300_100", 0.98, 100, 2.4), ("cifar10", "vgg_d", 0.95, 128, 7.09)],
)
def test_only_the_papers_saliency_batch_has_its_figure(
    dataset: str,
    model: str,
    sparsity: float,
    papers: int,
    published: float,
    tmp_path: Path,
) -> None:
    for size in (1, 100, 128, 1000):
        make_run(
            tmp_path / f"{size}",
            dataset=dataset,
            model=model,
            sparsity=sparsity,
            fields={"prune.batch_size": size},
        )
    rows = rows_in(tmp_path)
    others = [size for size in (1, 100, 128, 1000) if size != papers]
    assert {row.settings: row.published and row.published.error for row in rows} == {
        "": published,
        **{f"prune.batch_size={size}": None for size in others},
    }
    text = " ".join(report.conclusion(rows))
    assert "Of 1 row with a published figure" in text


def test_the_loss_is_against_the_dense_network_trained_the_same_way(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "dense", 1.5, method="none", sparsity=0.0)
    make_run(tmp_path / "dense, of other fields of pruning", 1.7, method="none",
             sparsity=0.5, seed=1, fields={"prune.select": "layerwise"})  # fmt: skip
    make_run(tmp_path / "same", 2.6)
    make_run(tmp_path / "other", 3.0, fields={"train.steps": 5}, steps=5)
    dense, *pruned = rows_in(tmp_path)
    assert (dense.error, dense.loss) == (1.6, None)
    assert {row.error: row.loss for row in pruned} == {2.6: 1.0, 3.0: None}


def test_what_saliency_is_computed_on_is_nothing_to_the_dense_network(
    tmp_path: Path,
) -> None:
    for seed, scored in enumerate(("fan_in", "he")):
        make_run(tmp_path / f"dense {scored}", 1.0 + seed, method="none", seed=seed,
                 fields={"init.scored": scored})  # fmt: skip
    make_run(tmp_path / "snip", 2.6, fields={"init.scored": "xavier"})
    make_run(tmp_path / "trained", 2.7, fields={"init.trained": "xavier"})
    dense, *pruned = rows_in(tmp_path)
    assert (dense.error, dense.settings) == (1.5, "")
    assert {row.error: row.loss for row in pruned} == {
        2.6: pytest.approx(1.1),
        2.7: None,
    }


# Random labels.


def make_random_labels(path: Path) -> Path:
    """A dense network that learns them by heart, and two that do less and less."""
    curves = {0.0: [60.0, 10.0, 0.5], 0.9: [70.0, 30.0, 8.0], 0.98: [85.0, 80.0, 75.0]}
    for sparsity, errors in curves.items():
        run = make_run(
            path / f"random-{sparsity}",
            90.0 + sparsity,
            sparsity=sparsity,
            fields={"dataset.random_labels": True},
            steps=3,
            epochs=30.0,
        )
        lines = [
            {"step": step, "train_error": error, "train_loss": 1.0, "test_error": 90.5}
            for step, error in enumerate(errors, 1)
        ]
        (run / rundir.METRICS).write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_network_of_sparsity_zero_is_the_dense_one(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", 1.5, sparsity=0.0)
    make_run(tmp_path / "snip", 2.6)
    dense, pruned = rows_in(tmp_path)
    assert (dense.method, dense.published.error, dense.loss) == ("none", 1.7, None)
    assert pruned.loss == pytest.approx(1.1)
    assert "no dense network" not in " ".join(report.analysis([dense, pruned]))


def test_networks_on_random_labels_are_compared_by_training_error(
    tmp_path: Path,
) -> None:
    rows = rows_in(make_random_labels(tmp_path))
    assert [row.train_error for row in rows] == [0.5, 8.0, 75.0]
    text = " ".join(report.analysis(rows))
    labels = "(dataset.random_labels=True)"
    assert (
        "On LeNet-300-100 (MNIST) with random labels, which can only be learnt by "
        "heart, the mean training error before the last evaluation is 0.50% for dense "
        f"{labels}, 8.00% for SNIP at 90% {labels} (+7.50 points to dense) and 75.00% "
        f"for SNIP at 98% {labels} (+74.50 points to dense)." in text
    )
    assert "no dense network" not in text
    text += " ".join(report.conclusion(rows))
    assert (
        "On random labels, by training error against the dense network trained the "
        "same way, the largest loss of SNIP is +74.50 points (LeNet-300-100 on MNIST, "
        f"SNIP at 98% {labels}) and the smallest +7.50 points" in text
    )
    assert "90.00%" not in text
    assert "test error is" not in text


def test_random_labels_are_not_mixed_with_true_ones(tmp_path: Path) -> None:
    make_random_labels(tmp_path)
    make_run(tmp_path / "dense", 1.5, sparsity=0.0)
    make_run(tmp_path / "snip", 2.5)
    make_run(tmp_path / "random", 28.0, method="random")
    rows = rows_in(tmp_path)
    assert {row.error: row.loss for row in rows if not row.has_random_labels} == {
        1.5: None,
        2.5: 1.0,
        28.0: 26.5,
    }
    text = " ".join(report.analysis(rows) + report.conclusion(rows))
    assert "1.50% for dense, 2.50% for SNIP at 98% (+1.00 points to dense)" in text
    assert "lower error than random pruning in 1 of 1 comparison" in text


def test_the_training_error_on_random_labels_is_drawn_over_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((caption, lines),) = drawn_curves(
        make_random_labels(tmp_path), monkeypatch
    ).items()
    assert caption.startswith("Training error on random labels: LeNet-300-100 on MNIST")
    assert "learnt by heart" in caption
    assert lines == [
        [(10, 60.0), (20, 10.0), (30, 0.5)],
        [(10, 70.0), (20, 30.0), (30, 8.0)],
        [(10, 85.0), (20, 80.0), (30, 75.0)],
    ]
    axes = axes_drawn(tmp_path, monkeypatch)[caption]
    assert (axes.get_xlabel(), axes.get_ylim()[0]) == ("epoch", 0)


# Commands.


def parsed(command: str) -> dict[str, Any]:
    """The configuration that a command asks for, as train.py's flags read it."""
    python, script, *arguments = shlex.split(command, comments=True)
    assert (python, script) == ("python", "train.py")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    arguments[1] = str(ROOT / arguments[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])  # read by the flag
        values(sys.argv)
        return holder.value.to_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed": 3, "prune.sparsity": 0.5, "prune.select": "layerwise"},
        {"dataset.name": "mnist", "train.steps": 7, "prune.fresh_init": False},
        {"dataset.name": "a name; rm -rf", "train.learning_rate": 1e-4},
    ],
)
def test_a_reconstructed_command_asks_for_the_same_configuration(
    fields: dict[str, Any],
) -> None:
    config = dict(configs.fields(configs.default())) | fields
    command = report.command(config)
    assert dict(configs.fields(parsed(command))) == config


EXPERIMENTS = sorted(
    set((ROOT / "configs").glob("*.py")) - {ROOT / "configs/table1.py"}
)


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_the_config_that_fits_best_is_named(path: Path) -> None:
    config = dict(configs.fields(runpy.run_path(str(path))["get_config"]().to_dict()))
    assert parsed(report.command(config)) == parsed(
        f"python train.py --config configs/{path.name}"
    )
    assert "--config.train" not in report.command(config)


def test_a_reconstructed_command_says_so_and_seeds_are_one_command(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        make_run(tmp_path / f"{seed}", seed=seed)
    (row,) = rows_in(tmp_path)
    (command,) = report.commands(row)
    assert command.endswith(
        "--config.seed=0  # likewise seed 1, 2; reconstructed from config.json"
    )
    assert parsed(command)["dataset"]["name"] == "mnist"


@pytest.mark.parametrize(
    ("noted", "shown"),
    [
        (
            "/home/me/bin/python /home/me/snipjax/train.py --config "
            "/home/me/snipjax/configs/mnist_lenet300.py --workdir /tmp/x y=1",
            "python train.py --config configs/mnist_lenet300.py y=1",
        ),
        (
            "python train.py --config=/a/configs/b.py --workdir='/tmp/x y' "
            "--data_dir=/mnt/data/",
            "python train.py --config=configs/b.py --data_dir=data",
        ),
        (
            ".venv/bin/python train.py --config configs/b.py --config.a=1/2",
            ".venv/bin/python train.py --config configs/b.py --config.a=1/2",
        ),
    ],
)
def test_a_noted_command_is_shown_without_where_things_are(
    noted: str, shown: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", command=noted)
    assert report.commands(rows_in(tmp_path)[0]) == [shown]


# Sentences.


def test_the_conclusion_is_made_of_the_figures(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", 1.6, method="none", sparsity=0.0)
    make_run(tmp_path / "95", 1.75, sparsity=0.95)
    make_run(tmp_path / "98", 3.3)
    make_run(tmp_path / "random", 28.0, method="random")
    text = " ".join(report.conclusion(rows_in(tmp_path)))
    for sentence in (
        "rests on 4 trained networks: LeNet-300-100 on MNIST.",
        # 1.6 against 1.7, 1.75 against 1.6, 3.3 against 2.4
        "Of 3 rows with a published figure: 2 within 0.2 points, 2 within 0.5 points "
        "and 3 within 1.0 points of it.",
        "the farthest LeNet-300-100 on MNIST, SNIP at 98%, 3.30% against 2.4%, 0.90 "
        "points above.",
        "3 of these 3 were trained for fewer epochs than the paper's 250, the fewest "
        "being 2.5.",
        "the largest loss of SNIP is +1.70 points (LeNet-300-100 on MNIST, SNIP at "
        "98%) and the smallest +0.15 points (LeNet-300-100 on MNIST, SNIP at 95%); no "
        "worse than dense: 0 of 2 rows.",
        "the largest loss of random pruning is +26.40 points (LeNet-300-100 on MNIST, "
        "random pruning at 98%); no worse than dense: 0 of 1 row.",
        "SNIP has the lower error than random pruning in 1 of 1 comparison; the "
        "largest difference is 3.30% against 28.00%",
        "SNIP prunes most in Dense_1, of which it keeps 1%, and least in Dense_2, of "
        "which it keeps 50%.",
        "4 of 4 rows rest on a single seed",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (2.4, "2.40% against 2.4%, equal to it."),
        (2.404, "2.40% against 2.4%, equal to it."),
        (2.39, "2.39% against 2.4%, 0.01 points below."),
        (2.41, "2.41% against 2.4%, 0.01 points above."),
    ],
)
def test_the_published_error_is_above_below_or_met(
    error: float, words: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", error)
    assert words in " ".join(report.conclusion(rows_in(tmp_path)))


def test_the_fewest_epochs_of_all_rows_are_said(tmp_path: Path) -> None:
    for sparsity, epochs in ((0.95, 20.0), (0.98, 1.5)):
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity, epochs=epochs)
    make_run(tmp_path / "whole", 1.7, method="none", sparsity=0.0, epochs=250.0)
    assert (
        "2 of these 3 were trained for fewer epochs than the paper's 250, the fewest "
        "being 1.5."
    ) in " ".join(report.conclusion(rows_in(tmp_path)))


def test_what_was_trained_otherwise_than_the_papers_networks_is_said(
    tmp_path: Path,
) -> None:
    papers = {"dataset.name": "cifar10", "prune.batch_size": 128,
              "train.batch_size": 128, "train.decay_every": 30_000,
              "train.flip": True, "train.translate": 4}  # fmt: skip
    for name, fields in (
        ("vgg_d", {}),
        ("vgg_c", {"train.steps": 9, "train.eval_every": 3}),
        ("vgg_like", {"train.flip": False}),
    ):
        make_run(tmp_path / name, 9.0, dataset="cifar10", model=name, method="none",
                 sparsity=0.0, fields={**papers, **fields})  # fmt: skip
    for sparsity in (0.95, 0.98):
        fields = {"train.learning_rate": 0.05, "train.decay_every": 400}
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity, fields=fields)
    assert (
        "3 of these 5 were trained with other settings than the paper's: LeNet-300-100 "
        "on MNIST with train.decay_every=400, train.learning_rate=0.05; VGG-like on "
        "CIFAR-10 with train.flip=False."
    ) in " ".join(report.conclusion(rows_in(tmp_path)))


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((1.6, 2.3), "the largest loss of SNIP is +0.30 points ({98}) and the largest "
                     "gain 0.40 points ({95}); no worse than dense: 1 of 2 rows."),
        ((1.6, 1.9), "the smallest gain of SNIP is 0.10 points ({98}) and the largest "
                     "0.40 points ({95}); no worse than dense: 2 of 2 rows."),
        ((1.6,), "the smallest gain of SNIP is 0.40 points ({95}); no worse"),
        ((2.0, 2.3), "the largest loss of SNIP is +0.30 points ({98}) and the smallest "
                     "+0.00 points ({95}); no worse than dense: 1 of 2 rows."),
    ],
)  # fmt: skip
def test_what_pruning_gains_is_no_loss(
    errors: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "dense", 2.0, method="none", sparsity=0.0)
    for sparsity, error in zip((0.95, 0.98), errors):
        make_run(tmp_path / f"{sparsity}", error, sparsity=sparsity)
    for share in ("95", "98"):
        title = f"LeNet-300-100 on MNIST, SNIP at {share}%"
        words = words.replace(f"{{{share}}}", title)
    beginning = "Against the dense network trained the same way, "
    assert beginning + words in " ".join(report.conclusion(rows_in(tmp_path)))


def test_an_error_like_the_dense_networks_is_no_worse(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", 2.0, method="none", sparsity=0.0)
    make_run(tmp_path / "95", 2.0, sparsity=0.95)
    make_run(tmp_path / "98", 2.5)
    text = " ".join(report.conclusion(rows_in(tmp_path)))
    assert "no worse than dense: 1 of 2 rows." in text


def test_rivals_are_compared_at_as_many_steps_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "snip", 3.0)
    make_run(
        tmp_path / "random", 28.0, method="random", fields={"train.steps": 5}, steps=5
    )
    assert "At equal sparsity" not in " ".join(report.conclusion(rows_in(tmp_path)))
    make_run(
        tmp_path / "snip, shorter", 30.0, fields={"train.steps": 5}, steps=5, epochs=1.0
    )
    assert (
        "At equal sparsity, network and steps, SNIP has the lower error than random "
        "pruning in 0 of 1 comparison; the largest difference is 30.00% against 28.00%"
    ) in " ".join(report.conclusion(rows_in(tmp_path)))


def test_what_is_not_there_is_not_concluded(tmp_path: Path) -> None:
    make_run(tmp_path / "run", dataset="digits")
    text = " ".join(report.conclusion(rows_in(tmp_path)))
    assert "None of the rows has a published figure" in text
    assert "dense" not in text
    assert "random" not in text
    assert report.conclusion([]) == [
        "No run has a test error yet, so nothing can be concluded."
    ]


def test_snip_that_is_worse_is_said_to_be(tmp_path: Path) -> None:
    make_run(tmp_path / "snip", 30.0)
    make_run(tmp_path / "random", 28.0, method="random")
    text = " ".join(report.conclusion(rows_in(tmp_path)))
    assert "lower error than random pruning in 0 of 1 comparison" in text


def test_the_analysis_compares_with_dense_and_with_the_last_step(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "dense", 1.5, method="none", sparsity=0.0)
    make_run(tmp_path / "snip", 2.5, test_error_last=2.75)
    text = " ".join(report.analysis(rows_in(tmp_path)))
    assert (
        "On LeNet-300-100 (MNIST) the mean test error is 1.50% for dense and 2.50% for "
        "SNIP at 98% (+1.00 points to dense)." in text
    )
    assert "differs by at most 0.25 points" in text


def test_layer_densities_are_means_over_seeds_of_weights_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a", layers=layers_of((0.01, 0.1, 0.5)))
    make_run(tmp_path / "b", seed=1, layers=layers_of((0.03, 0.1, 0.7)))
    names, densities = zip(*report.layer_densities(rows_in(tmp_path)[0]))
    assert names == ("Dense_0", "Dense_1", "Dense_2")
    assert densities == pytest.approx((2.0, 10.0, 60.0))


@pytest.mark.parametrize(
    "names",
    [
        ["Conv_0", "Conv_1", "Conv_2", "Conv_10", "Dense_0"],
        ["Conv_0", "Block_0/Conv_0", "Block_0/shortcut", "Block_10/Conv_0", "Dense_0"],
        ["Dense_0", "cell/hi", "cell/if", "Dense_1"],
    ],
    ids=["convolutional", "residual", "recurrent"],
)
def test_layers_are_in_the_order_of_the_network(
    names: list[str], tmp_path: Path
) -> None:
    layers = [
        {"path": f"{name}/kernel", "shape": [2, 5], "kept": 1, "total": 10}
        for name in sorted(names)  # as pytrees have them
    ]
    make_run(tmp_path / "a", layers=layers)
    (row,) = rows_in(tmp_path)
    assert [name for name, _ in report.layer_densities(row)] == names


# The page and the Markdown.


def test_the_table_spells_its_columns_out_and_holds_the_figures(
    tmp_path: Path,
) -> None:
    make_sweep(tmp_path / "run", {0.98: [2.0, 2.2, 2.7]})
    page = page_of(tmp_path)
    header, figures, command = page.rows[:3]
    assert dict(zip(header, figures)) == {
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
        "Test error at the last step, standard deviation (points)": "0.36",
        "Training error before the last evaluation, mean (%)": "-",
        "Published test error (%)": "2.4 Lee et al. (2019)",
        "Measured less published (points)": "-0.10",
        "Measured less dense (points)": "-",
        "Training (epochs)": "2.5",
        "Training (steps)": "1,000",
    }
    assert command[0].startswith("python train.py --config configs/")
    labels = [a["data-label"] for tag, a in page.tags if "data-label" in a]
    assert labels[: len(header)] == header, "narrow screens show these instead"


def test_the_table_has_the_training_error_of_the_last_evaluation(
    tmp_path: Path,
) -> None:
    for seed, errors in enumerate(([50.0, 1.5], [60.0, 2.0])):
        run = make_run(tmp_path / "runs" / f"{seed}", seed=seed)
        lines = [
            {"step": step, "train_error": error} for step, error in enumerate(errors, 1)
        ]
        (run / rundir.METRICS).write_text("\n".join(map(json.dumps, lines)))
    name = "Training error before the last evaluation, mean (%)"
    header, figures = page_of(tmp_path).rows[:2]
    assert dict(zip(header, figures))[name] == "1.75"
    _, markdown = report.write([tmp_path], tmp_path / "report")
    header, _, figures = [
        [cell.strip() for cell in line.split("|")]
        for line in markdown.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ][:3]
    assert dict(zip(header, figures))[name] == "1.75"


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([3], "1 (3)"),
        ([0, 1], "2 (0, 1)"),
        ([0, 1, 2], "3 (0-2)"),
        ([0, 2, 3, 4, 7], "5 (0, 2-4, 7)"),
    ],
)
def test_seeds_are_listed_in_short(seeds: list[int], text: str, tmp_path: Path) -> None:
    for seed in seeds:
        make_run(tmp_path / f"{seed}", seed=seed)
    (row,) = rows_in(tmp_path)
    assert report.cells(row)[6].text == text


def test_magnitude_refers_to_who_pruned_by_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run", method="magnitude")
    (_, figures, *_) = page_of(tmp_path).rows
    assert figures[2] == "magnitude at initialization Han et al. (2015)"


def test_numbers_are_set_below_each_other(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    cells = [a for tag, a in page_of(tmp_path).tags if tag == "td"][:17]
    assert {a["data-label"] for a in cells if "class" not in a} == {
        *("Network", "Data set", "Method", "Seeds")
    }
    assert {a.get("class", "number") for a in cells} == {"number"}


def test_a_narrow_screen_has_each_row_as_a_list_of_names_and_cells(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "run")
    style = " ".join(page_of(tmp_path).text["style"].split())
    _, _, narrow = style.partition("@media (max-width: 1330px) {")
    for rule in (
        "thead { display: none; }",
        "td:not(.command)::before { content: attr(data-label);",
        "table, caption, tbody, td { display: block; }",
    ):
        assert rule in narrow
    _, _, narrowest = style.partition("@media (max-width: 720px) {")
    assert "figure.wide img { width: 720px; max-width: none; }" in narrowest
    assert "figure.wide { grid-column: 1 / -1; min-width: 0; overflow-x: auto; }" in (
        style
    )


def test_only_what_was_trained_counts_as_a_trained_network(tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep", {0.98: [2.0, 2.2, 2.7]}, device="TPU v5e")
    make_run(tmp_path / "pruned", None, fields={"train.steps": 0}, steps=0)
    about = "2 finished runs, 3 trained networks, 2 rows, made on TPU v5e and cpu."
    assert about in page_of(tmp_path).text["p"]


def test_published_methods_are_referenced(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = page_of(tmp_path)
    (dns,) = [row for row in page.rows if row[1:2] == ["DNS: Dynamic Network Surgery"]]
    assert dns == ["Guo et al. (2016)", "DNS: Dynamic Network Surgery", "magnitude",
                   "LeNet-300-100", "MNIST", "98.2", "2.0", "yes", "many", "yes", "no",
                   "yes"]  # fmt: skip
    assert ("a", {"href": "https://arxiv.org/abs/1608.04493"}) in page.tags


def test_analysis_is_a_paragraph_and_the_conclusion_comes_last(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = page_of(tmp_path)
    rows = rows_in(tmp_path)
    for sentence in report.analysis(rows) + report.conclusion(rows):
        assert sentence in page.text["p"]
        assert sentence not in page.text["caption"]
    assert page.text["body"].rstrip().endswith(report.conclusion(rows)[-1])
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")][-1] == "h2"
    assert page.text["h2"].endswith("Conclusion")


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    run = make_sweep(tmp_path / "run", {0.95: [1.6, 1.7], 0.98: [2.0, 2.2]})
    Figure().savefig(run / "densities.png")
    metrics = [
        {"step": step, "train_loss": 1 / step, "test_error": 90 / step, "seed": seed}
        for step in (10, 20)
        for seed in (0, 1)
    ]
    (run / rundir.METRICS).write_text("\n".join(map(json.dumps, metrics)))
    page = page_of(tmp_path)
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(images) == 5  # errors, densities, two of curves, and the run's own
    for source in images:
        kind, data = source.split(";base64,")
        start = {"data:image/svg+xml": b"<?xml", "data:image/png": b"\x89PNG"}[kind]
        assert base64.b64decode(data).startswith(start)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", page.text["style"])


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.7):
        run = make_run(
            tmp_path / f"a <b>bold</b> run {sparsity}",
            sparsity=sparsity,
            dataset=HOSTILE,
            model=HOSTILE + "\n\0\ud800",
            device=HOSTILE,
            command=HOSTILE,
            fields={"model.init": HOSTILE},
            layers=[
                {**layer, "path": HOSTILE + layer["path"]} for layer in layers_of()
            ],
        )
        (run / rundir.METRICS).write_text('{"step": 1, "test_error": 2}')
        Figure().savefig(run / "<i>.png")
    page = page_of(tmp_path)
    assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert page.rows[1][1] == HOSTILE
    runs = report.gather([tmp_path])
    table = [
        line
        for line in report.markdown(runs, report.rows(runs)).splitlines()
        if line.startswith("|")
    ]
    assert len(table) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    html, markdown = report.write([tmp_path], tmp_path / "report")
    assert html.exists()
    text = re.sub("`[^`\n]+`", "", markdown.read_text(encoding="utf-8"))
    assert not re.search(r"(?<!\\)<", text), "neither escaped nor code"


def test_markdown_has_the_same_figures_and_the_command(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 2.9, command="python train.py --config configs/x.py")
    runs = report.gather([tmp_path])
    header, _, line = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.markdown(runs, report.rows(runs)).splitlines()
        if line.startswith("|")
    ][:3]
    cells = dict(zip(header, line))
    assert cells["Test error, mean (%)"] == "2.90"
    assert cells["Published test error (%)"] == (
        "2.4 [Lee et al. (2019)](https://arxiv.org/abs/1810.02340)"
    )
    assert cells["Measured less published (points)"] == "+0.50"
    assert cells["Command"] == "`python train.py --config configs/x.py`"


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    make_sweep(tmp_path / "run", {0.95: [1.6, 1.7], 0.98: [2.0, 2.2]})
    runs = report.gather([tmp_path])
    assert report.page(runs, report.rows(runs)) == report.page(runs, report.rows(runs))


@pytest.mark.parametrize(
    "kept",
    [(0.0, 0.0, 0.0), (0.0, 0.1, 1.0), (0.5, 0.5, 0.5)],
    ids=["nothing kept", "a layer without any", "all alike"],
)
def test_every_density_is_drawn(kept: tuple[float, ...], tmp_path: Path) -> None:
    make_run(tmp_path / "a", layers=layers_of(kept))
    make_run(tmp_path / "b", model="lenet_5_caffe", layers=layers_of(kept))
    assert len(report.pictures(rows_in(tmp_path))) == 3


def test_every_seed_of_every_group_has_its_own_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_seed = {9: [9.0, 5.0], 10: [8.0, 4.0], 11: [7.0, 3.0]}
    run = make_sweep(tmp_path / "run", {0.98: [2.0, 2.2, 2.7]})
    result = rundir.read_json(run / rundir.RESULT)
    for member, seed in zip(result["members"], of_seed):
        member["seed"] = seed
    rundir.write_json(run / rundir.RESULT, result)
    write_groups(
        run, {"seeds-9-10": [[9.0, 8.0], [5.0, 4.0]], "seeds-11-11": [[7.0], [3.0]]}
    )
    ((caption, lines),) = drawn_curves(tmp_path, monkeypatch).items()
    assert caption.endswith("A line for every seed.")
    assert lines == [[(10, a), (20, b)] for a, b in of_seed.values()]
    (row,) = rows_in(tmp_path)
    for member in row.members:
        curve = [line["test_error"] for line in report.metrics_of(row.runs[0], member)]
        assert curve == of_seed[member.seed]


def test_errors_are_drawn_over_the_share_kept_with_the_published_ones_hollow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sparsity, errors in ((0.95, (1.7, 1.9)), (0.98, (2.5, 2.9))):
        for seed, error in enumerate(errors):
            make_run(
                tmp_path / f"{sparsity}-{seed}", error, sparsity=sparsity, seed=seed
            )
    make_run(tmp_path / "dense", 1.5, method="none", sparsity=0.0)
    axes = next(iter(axes_drawn(tmp_path, monkeypatch).values()))
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "5"]
    (measured,) = axes.containers
    assert measured[0].get_xdata() == pytest.approx([5, 2])
    assert measured[0].get_ydata() == pytest.approx([1.8, 2.7])
    # Of two errors, the deviation of a sample is their distance over the root of 2.
    (bars,) = measured[2]
    assert [y for _, y in bars.get_segments()[1]] == pytest.approx(
        [2.7 - 0.4 / 2**0.5, 2.7 + 0.4 / 2**0.5]
    )
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines["dense"].get_ydata()) == {1.5}
    published = lines["SNIP, published"]
    assert published.get_xdata() == pytest.approx([5, 2])
    assert list(published.get_ydata()) == [1.6, 2.4]
    assert (published.get_marker(), published.get_markerfacecolor()) == ("D", "none")
    assert published.get_linestyle() == "None"


def test_networks_are_compared_from_their_first_layer_to_their_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", layers=layers_of((0.02, 0.01, 0.5)))
    make_run(tmp_path / "b", model="lenet_5_caffe", layers=layers_of((0.5, 0.1)))
    axes = list(axes_drawn(tmp_path, monkeypatch).values())[-1]
    assert axes.get_xlabel() == "depth: first layer 0, last layer 100"
    assert [[*zip(*line.get_data())] for line in axes.lines] == [
        [(0, 2.0), (50, 1.0), (100, pytest.approx(50.0))],
        [(0, 50.0), (100, pytest.approx(10.0))],
    ]


def test_a_layer_of_which_nothing_is_kept_has_a_place_below_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", layers=layers_of((0.0, 0.02, 0.9)))
    (axes,) = axes_drawn(tmp_path, monkeypatch).values()
    assert axes.lines[0].get_ydata() == pytest.approx([0, 2, 90])
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    labels = [
        label
        for label in axes.get_yticklabels()
        if low <= label.get_position()[1] <= high
    ]
    assert [label.get_text() for label in labels] == ["0", "2", "10"]
    boxes = [label.get_window_extent() for label in labels]
    assert all(a.y1 < b.y0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize(("count", "named"), [(23, 23), (54, 27)])
def test_names_of_many_layers_do_not_lie_on_each_other(
    count: int, named: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [
        {"path": f"Block_{i}/Conv_0", "shape": [9, 9], "kept": 1 + i, "total": 99}
        for i in range(count - 1)
    ]
    layers.append({"path": "Dense_0", "shape": [9, 9], "kept": 90, "total": 99})
    make_run(tmp_path / "run", layers=layers)
    (axes,) = axes_drawn(tmp_path, monkeypatch).values()
    axes.figure.draw_without_rendering()
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    assert len(labels) == named
    ends = [axes.transData.transform((place, 0))[0] for place in axes.get_xticks()]
    for label, end in zip(labels, ends, strict=True):
        # The corner of the last letter: at its tick, but for the height of a letter.
        size = label.get_fontsize() * axes.figure.dpi / 72
        assert label.get_window_extent().x1 == pytest.approx(end, abs=size)
    # Between slanted lines of text there is the distance of the ticks times a sine.
    assert min(b - a for a, b in itertools.pairwise(ends)) * 3**0.5 / 2 > size


@pytest.mark.parametrize(("evaluations", "marker"), [(1, "o"), (2, "")])
def test_a_curve_of_one_evaluation_is_a_mark(
    evaluations: int, marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    lines = [
        json.dumps({"step": step, "train_loss": 2 / step, "test_error": 9 / step})
        for step in range(1, evaluations + 1)
    ]
    (run / rundir.METRICS).write_text("\n".join(lines))
    curves = [
        axes.lines
        for axes in axes_drawn(tmp_path, monkeypatch).values()
        if axes.get_xlabel() == "step"
    ]
    assert [[line.get_marker() for line in lines] for lines in curves] == [
        [marker],
        [marker],
    ]


# Pictures in the directories.


def make_grid(path: Path, error: float | None, metrics: str) -> Path:
    """Writes a sweep of two classes with pictures in its directory and a run's."""
    for number in (0, 1):
        run = make_run(
            path / f"prune.batch_class={number}",
            error,
            fields={"prune.batch_class": number},
        )
        (run / rundir.METRICS).write_text(metrics)
    for name in ("curves.png", "first_layer.png"):
        Figure().savefig(run / name)
    fields = {"vary": ("prune.batch_class=0,1",)}
    config = config_of(fields, "mnist", "lenet_300_100", "snip")
    rundir.write_json(path / rundir.CONFIG, config)
    for name in ("curves.png", "errors.png", "first_layers.png"):
        Figure().savefig(path / name)
    return path


def own_pictures(path: Path) -> list[str]:
    """Descriptions of the pictures in the directories, in the order of the page."""
    html, _ = report.write([path], path.parent / "report")
    tags = Page(html.read_text(encoding="utf-8")).tags
    return [a["alt"] or "" for tag, a in tags if ".png of " in (a.get("alt") or "")]


def test_a_sweeps_own_pictures_have_a_place(tmp_path: Path) -> None:
    sweep = make_grid(tmp_path / "classes", 2.0, '{"step": 1, "test_error": 2}')
    assert own_pictures(sweep) == [
        "curves.png of classes",
        "errors.png of classes",
        "first_layers.png of classes",
        "curves.png of classes/prune.batch_class=1",
        "first_layer.png of classes/prune.batch_class=1",
    ]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "Pictures of each sweep" in page.text["h2"]
    assert (
        "Connections kept of every input pixel: the lighter, the more, by "
        "prune.batch_class=0,1." in page.text["figcaption"]
    )


def test_a_sweeps_wide_picture_has_a_line_for_itself(tmp_path: Path) -> None:
    sweep = make_grid(tmp_path / "classes", 2.0, '{"step": 1, "test_error": 2}')
    Figure(figsize=(9, 4)).savefig(sweep / "curves.png")
    html, _ = report.write([sweep], tmp_path / "report")
    tags = Page(html.read_text(encoding="utf-8")).tags
    wide = [
        image["alt"]
        for (_, place), (_, image) in itertools.pairwise(tags)
        if place.get("class") == "wide"
    ]
    assert wide == ["curves.png of classes"]


def test_what_was_not_trained_has_no_curves_and_no_errors(tmp_path: Path) -> None:
    sweep = make_grid(tmp_path / "classes", None, "")
    assert own_pictures(sweep) == [
        "first_layers.png of classes",
        "first_layer.png of classes/prune.batch_class=1",
    ]


def test_a_run_given_alone_has_no_pictures_of_others(tmp_path: Path) -> None:
    sweep = make_grid(tmp_path / "classes", 2.0, '{"step": 1, "test_error": 2}')
    assert own_pictures(sweep / "prune.batch_class=1") == [
        "curves.png of prune.batch_class=1",
        "first_layer.png of prune.batch_class=1",
    ]


# Unfinished and damaged runs.


def test_an_unfinished_run_is_listed_with_how_far_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "done")
    make_unfinished(tmp_path / "begun")
    make_unfinished(
        tmp_path / "half",
        '{"step": 250, "test_error": 4.5}\n{"step": 500, "test_error": 3.25}\n{"st',
    )
    runs = report.gather([tmp_path])
    name = tmp_path.name
    assert report.unfinished(runs) == [
        [f"{name}/begun", "0", "1000", "-"],
        [f"{name}/half", "500", "1000", "3.25"],
    ]
    rows = page_of(tmp_path).rows
    assert [f"{name}/half", "500", "1000", "3.25"] in rows


def test_many_seeds_are_as_far_as_the_group_that_is_trained(tmp_path: Path) -> None:
    run = make_unfinished(tmp_path / "run")
    write_groups(
        run,
        {"seeds-9-10": [[9.0, 8.0], [5.0, 4.0]], "seeds-11-12": [[7.0, 6.0]]},
    )
    # At step 10 the four seeds have 9, 8, 7 and 6.
    assert report.unfinished(report.gather([run])) == [["run", "10", "1000", "7.50"]]


def test_unfinished_runs_alone_make_a_page(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "begun")
    assert "nothing can be concluded" in page_of(tmp_path).text["p"]


def test_a_damaged_picture_or_line_costs_only_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Figure().savefig(run / "whole.png")
    data = (run / "whole.png").read_bytes()
    (run / "cut.png").write_bytes(data[: len(data) // 2])
    (run / "no picture.png").write_text("hello")
    (run / rundir.METRICS).write_bytes(
        b'{"step": 1, "test_error": 9}\nnot JSON\n[1]\n{"step": "x"}\n\xff\xfe\n'
        + b"[" * 100_000
        + b'\n{"step": 2, "test_error": null}\n{"step": 3, "test_error": 4}\n'
    )
    page = page_of(tmp_path)
    assert "cut.png is damaged" in page.text["p"]
    assert "no picture.png is damaged" in page.text["p"]
    assert "whole.png of" in " ".join(a.get("alt") or "" for _, a in page.tags)
    assert [line["step"] for line in report.read_run(run).metrics] == [1, 2, 3]


def damage(name: str, text: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (make_run(path / "run") / name).write_text(text)
        return path / "run"

    return make


def nested(start: str, depth: int) -> str:
    return start * depth + "1" + "}" * depth


def test_a_field_that_is_nested_is_of_another_program(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", fields={"train.steps": [[1]]})
    with pytest.raises(report.NotARunError, match="not a configuration of snipjax"):
        report.read_run(run)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "nowhere", "nowhere' is not a directory; give run"),
        (lambda path: path, "there is no run in"),
        (damage(rundir.RESULT, '{"cut'), "result.json' is damaged"),
        (damage(rundir.CONFIG, '{"cut'), "config.json' is damaged"),
        (damage(rundir.RESULT, "[]"), "not a JSON object"),
        (damage(rundir.RESULT, "{}"), "field 'method' is missing"),
        (damage(rundir.RESULT, '{"members": []}'), "field 'members' is not a list"),
        (damage(rundir.CONFIG, '{"hidden_size": 3}'), "not a configuration of snipjax"),
        (damage(rundir.CONFIG, "[" * 100_000), "nested too deeply"),
        (damage(rundir.RESULT, "[" * 100_000), "nested too deeply"),
        (damage(rundir.CONFIG, '{"dataset": {"name": []}}'), "not a configuration"),
        (damage(rundir.CONFIG, nested('{"dataset":', 800)), "not a configuration"),
    ],
)
def test_what_is_no_run_is_said_in_a_line(
    make: Callable[[Path], Path],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make(tmp_path)
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert str(path) in line
    assert not (tmp_path / "out.html").exists()


def test_a_damaged_field_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=[{"path": "x"}])
    with pytest.raises(ValueError, match="field 'layers' is not a list of layers"):
        report.read_run(run)


@pytest.mark.parametrize(
    ("kept", "total"), [(9, 4), (0, -1), (-1, 4), (float("inf"), 4), ("9", 4)]
)
def test_a_layer_keeps_no_more_than_it_has(
    kept: Any, total: int, tmp_path: Path
) -> None:
    layer = {"path": "Dense_0/kernel", "shape": [2, 2], "kept": kept, "total": total}
    run = make_run(tmp_path / "run", layers=[layer])
    with pytest.raises(ValueError, match=r"result.json.*field 'layers'"):
        report.read_run(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", 7),
        ("sparsity", -0.1),
        ("test_error", -5),
        ("test_error", 100.1),
        ("test_error_last", 101),
    ],
)
def test_a_share_and_an_error_are_within_their_bounds(
    field: str, value: float, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", **{"sparsity": 0.5, field: value})
    with pytest.raises(ValueError, match=rf"result.json.*field '{field}' is {value:g}"):
        report.read_run(run)


def test_the_least_and_the_largest_error_are_within_bounds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0, test_error_last=100.0)
    (member,) = report.read_run(run).members
    assert (member.test_error, member.test_error_last) == (0.0, 100.0)


@pytest.mark.parametrize("name", [rundir.CONFIG, rundir.RESULT])
@pytest.mark.parametrize("text", ['{"study": 1}', '{"cut', "[" * 100_000, "\0", ""])
def test_what_is_found_beside_runs_and_is_none_is_left_out_with_a_warning(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "good")
    other = damage(name, text)(tmp_path / "runs" / "other")
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "left out: " in line
    assert str(other) in line
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "report.md").exists()


def test_runs_are_read_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        """Like os.walk, on a file system that lists the last name first."""
        entries = sorted(Path(top).iterdir(), reverse=True)
        names = [entry.name for entry in entries if entry.is_dir()]
        yield str(top), names, [e.name for e in entries if not e.is_dir()]
        for name in names:
            yield from walk(Path(top, name))

    for name in ("b/2", "a", "c", "b/1"):
        make_run(tmp_path / name)
    monkeypatch.setattr("os.walk", walk)
    names = [run.name.partition("/")[2] for run in report.gather([tmp_path])]
    assert names == ["a", "b/1", "b/2", "c"]


def test_a_sweep_whose_file_is_damaged_still_has_its_runs(tmp_path: Path) -> None:
    sweep = make_grid(tmp_path / "classes", 2.0, "")
    (sweep / rundir.CONFIG).write_text('{"cut')
    with pytest.warns(UserWarning, match=r"left out: .*classes/config.json"):
        runs = report.gather([tmp_path])
    assert [run.path.name for run in runs] == [
        "prune.batch_class=0",
        "prune.batch_class=1",
    ]


def test_where_all_is_left_out_it_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [damage(rundir.RESULT, '{"cut')(tmp_path / "runs" / name) for name in "ab"]
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    for run, warning in zip(runs, warnings, strict=True):
        assert f"left out: '{run}" in warning
    assert "that a report can show" in error
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_read_costs_its_run(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "other") / rundir.RESULT).unlink()
    (tmp_path / "other" / rundir.RESULT).mkdir()
    with pytest.warns(UserWarning, match=r"left out: .*other"):
        (run,) = report.gather([tmp_path])
    assert run.path == tmp_path / "good"


OF_SEEDS = ("activation_variance", "gradient_variance", "density")


def signal_of(**values: Any) -> dict[str, Any]:
    """As ``signal.json`` has it: of two seeds and two layers."""
    fields = {"layers": ["Dense_0", "Dense_1"], "rank_correlation": [0.1, None]}
    return fields | {name: [[0.5, 0.25], [0.4, 0.2]] for name in OF_SEEDS} | values


def make_signals(path: Path, *names: str) -> list[report.Run]:
    """Runs of as many initializations, with their signals."""
    for name in names:
        run = make_run(path / name, fields={"init.scored": name})
        (run / signals.FILE).write_text(json.dumps(signal_of()))
    return report.gather([path])


def test_signals_of_initializations_are_drawn_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_signals(tmp_path, "he", "xavier")
    assert runs[0].signal.layers == ("Dense_0", "Dense_1")
    ((uri, caption),) = report.signal_pictures(runs)
    assert base64.b64decode(uri.partition(",")[2])[:4] == b"\x89PNG"
    assert "LeNet-300-100" in caption
    assert uri in report.page(runs, report.rows(runs))
    together: list[list[str]] = []
    monkeypatch.setattr(plots, "signals", lambda named, _: together.append([*named]))
    report.signal_pictures(runs)
    assert together == [["he", "xavier"]]


def test_a_signal_that_cannot_be_drawn_is_named_and_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_signals(tmp_path, "fan_in", "he", "xavier")
    drawn: list[list[str]] = []

    def draw(named: dict[str, Any], file: Any) -> None:
        if "he" in named:
            raise OverflowError("no axis for this")
        drawn.append([*named])

    monkeypatch.setattr(plots, "signals", draw)
    with pytest.warns(UserWarning, match=r"he/signal.json.*no axis for this") as caught:
        pictures = report.signal_pictures(runs)
    assert len(caught) == len(pictures) == 1
    assert drawn[-1] == ["fan in", "xavier"]
    with pytest.warns(UserWarning, match=r"he/signal.json"):
        assert report.signal_pictures(report.gather([tmp_path / "he"])) == []


@pytest.mark.parametrize(
    "values",
    [
        {"activation_variance": [[[0.5, 0.25]]]},
        {"activation_variance": [[[0.5, 0.25]]] * 2},
        {"gradient_variance": [0.5, 0.25]},
        {"density": [0.5, 0.25]},
        {"rank_correlation": [[0.1, 0.2], [0.1, 0.2]]},
        {"gradient_variance": [[0.5, 0.25]]},
        {"activation_variance": [[], []]},
        {"density": 0.5},
        {"layers": ["Dense_0"]},
        {"layers": [], "rank_correlation": [], **{name: [[]] for name in OF_SEEDS}},
        {"layers": 3},
        {"density": "x"},
    ],
    ids=str,
)
def test_a_signal_is_of_layers_and_as_many_seeds(values: dict[str, Any]) -> None:
    assert signals.from_json(signal_of()).density.shape == (2, 2)
    with pytest.raises(ValueError, match=r"it is (not )?a signal"):
        signals.from_json(signal_of(**values))


def test_a_damaged_signal_costs_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "signal.json").write_text('{"layers": 3}')
    with pytest.warns(UserWarning, match=r"left out: .*signal.json"):
        (gathered,) = report.gather([run])
    assert gathered.signal is None
    assert report.signal_pictures([gathered]) == []


def test_the_command_line_writes_both_files_and_needs_no_jax(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = (
        "import sys; from snipjax import report; "
        "code = report.main(sys.argv[1:]); assert 'jax' not in sys.modules; "
        "sys.exit(code)"
    )
    arguments = ["run", "--out", "new/page.html"]
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "page.html",
        "page.md",
    }
