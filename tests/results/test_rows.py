"""Networks that differ only in their seed are a row, about which sentences speak."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from absl import flags
from ml_collections import config_flags

from snipjax import config as configs
from snipjax import results
from snipjax.results import words
from snipjax.results.commands import command, commands
from snipjax.results.conclusions import analysis, conclusion
from snipjax.results.rows import layer_densities
from tests.results.runs import layers, make_run

ROOT = Path(__file__).parents[2]


def rows(path: Path) -> list[Any]:
    return list(table(path).itertuples())


def table(path: Path) -> pd.DataFrame:
    return results.aggregate(results.read(path))


def text(path: Path) -> str:
    return " ".join(analysis(table(path)) + conclusion(table(path)))


# Rows.


def test_errors_are_means_and_sample_deviations_over_seeds(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 2.0)
    make_run(tmp_path / "b", 2.2, 2.7, seed=1)
    (row,) = rows(tmp_path)
    assert row.error == pytest.approx(2.3)
    # Deviations from 2.3 are 0.3, 0.1, 0.4: the sum of their squares is 0.26.
    assert row.std == pytest.approx((0.26 / 2) ** 0.5)
    assert list(row.networks["seed"]) == [0, 1, 2]


def test_one_seed_has_no_deviation_and_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 2.0)
    make_run(tmp_path / "b", 2.0)
    (row,) = rows(tmp_path)
    assert len(row.networks) == 1
    assert pd.isna(row.std)


def test_a_whole_number_of_connections_is_the_sparsity_asked_for(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1, network={"sparsity": 1 - 5332 / 266_610})
    make_run(tmp_path / "c", sparsity=0.9804)
    assert [len(row.networks) for row in rows(tmp_path)] == [2, 1]


def make_short_and_long(path: Path) -> Path:
    """Two sparsities, trained for 100 and for 1000 steps."""
    for sparsity, steps, error in (
        (0.9, 100, 9.5), (0.9, 1000, 3.0), (0.95, 100, 12.0), (0.95, 1000, 4.0)
    ):  # fmt: skip
        make_run(path / f"{sparsity}-{steps}", error, sparsity=sparsity,
                 fields={"train.steps": steps}, network={"steps": steps})  # fmt: skip
    return path


def test_rows_that_differ_in_a_setting_name_it(tmp_path: Path) -> None:
    make_short_and_long(tmp_path)
    assert [(row.error, row.settings) for row in rows(tmp_path)] == [
        (3.0, ""),  # the default is 1000 steps
        (4.0, ""),
        (9.5, "train.steps=100"),
        (12.0, "train.steps=100"),
    ]
    assert (
        "is 3.00% for SNIP at 90%, 4.00% for SNIP at 95%, 9.50% for SNIP at 90% "
        "(train.steps=100) and 12.00% for SNIP at 95% (train.steps=100)."
    ) in text(tmp_path)


def test_a_schedule_is_nothing_to_an_untrained_network(tmp_path: Path) -> None:
    for seed, every in enumerate((5, 25_000)):
        fields = {"train.steps": 0, "optimizer.decay_every": every}
        make_run(tmp_path / f"{every}", None, seed=seed, fields=fields)
    make_run(tmp_path / "trained", 2.0, fields={"optimizer.decay_every": 5})
    assert {row.settings: len(row.networks) for row in rows(tmp_path)} == {
        "train.steps=0": 2,
        "optimizer.decay_every=5": 1,
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("train.checkpoint_every", (50, 100)),
        ("train.steps_per_dispatch", (50, 100)),
        ("prune.pretrained", ("runs/a", "runs/b")),
        ("lwc.rounds", (2, 3)),  # of another method
    ],
)
def test_fields_without_effect_make_no_row(
    field: str, values: tuple[Any, ...], tmp_path: Path
) -> None:
    for seed, value in enumerate(values):
        make_run(tmp_path / f"{seed}", seed=seed, fields={field: value})
    (row,) = rows(tmp_path)
    assert (len(row.networks), row.settings) == (2, "")


def test_the_settings_of_a_rival_make_a_row_with_its_published_figure(
    tmp_path: Path,
) -> None:
    for rounds in (3, 4):
        make_run(tmp_path / f"{rounds}", method="lwc", sparsity=0.917,
                 fields={"lwc.rounds": rounds})  # fmt: skip
    found = {row.settings: row.published for row in rows(tmp_path)}
    assert found == {"": 1.6, "lwc.rounds=3": 1.6}


@pytest.mark.parametrize(
    "fields",
    [{"prune.select": "layerwise"}, {"prune.rounds": 5}, {"init.scored": "he"}],
)
def test_pruning_unlike_the_papers_has_no_published_figure(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "papers", 2.9)
    make_run(tmp_path / "other", fields=fields)
    ((name, value),) = fields.items()
    papers, other = rows(tmp_path)
    assert papers.published == 2.4
    assert papers.difference == pytest.approx(0.5)
    assert pd.isna(other.published)
    assert other.settings == f"{name}={value}"


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
    for size in (100, 128):
        make_run(
            tmp_path / f"{size}",
            dataset=dataset,
            model=model,
            sparsity=sparsity,
            fields={"prune.batch_size": size},
        )
    found = {row.settings: row.published for row in rows(tmp_path)}
    other = f"prune.batch_size={228 - papers}"
    assert found == {"": published, other: pytest.approx(float("nan"), nan_ok=True)}
    assert "Of 1 row with a published figure" in text(tmp_path)


def test_the_loss_is_against_the_dense_network_trained_the_same_way(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "dense", 1.5, method="none")
    make_run(tmp_path / "dense, of other fields of pruning", 1.7, method="none",
             seed=1, fields={"prune.select": "layerwise", "init.scored": "he",
                             "prune.sparsity": 0.5, "lwc.rounds": 2})  # fmt: skip
    make_run(tmp_path / "same", 2.6)
    make_run(tmp_path / "other", 3.0, fields={"train.steps": 5})
    make_run(tmp_path / "trained", 4.0, fields={"init.trained": "xavier"})
    dense, *pruned = rows(tmp_path)
    assert (dense.error, dense.settings) == (1.6, "")
    assert pd.isna(dense.loss)
    losses = {row.error: row.loss for row in pruned}
    assert losses.pop(2.6) == pytest.approx(1.0)
    assert all(map(pd.isna, losses.values()))
    assert "2 pruned rows have no dense network" in text(tmp_path)


def test_a_network_of_sparsity_zero_is_the_dense_one(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", 1.5, sparsity=0.0)
    make_run(tmp_path / "snip", 2.6)
    dense, pruned = rows(tmp_path)
    assert (dense.method, dense.published) == ("none", 1.7)
    assert pruned.loss == pytest.approx(1.1)
    assert "no dense network" not in text(tmp_path)


def test_layer_densities_are_means_over_seeds_of_weights_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a", network={"layers": layers((0.01, 0.1, 0.5))})
    make_run(tmp_path / "b", seed=1, network={"layers": layers((0.03, 0.1, 0.7))})
    (row,) = rows(tmp_path)
    expected = {"Dense_0": 2.0, "Dense_1": 10.0, "Dense_2": 60.0}
    assert layer_densities(row) == pytest.approx(expected)


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
    found = [
        {"path": f"{name}/kernel", "shape": [2, 5], "kept": 1, "total": 10}
        for name in sorted(names)  # as pytrees have them
    ]
    make_run(tmp_path / "a", network={"layers": found})
    (row,) = rows(tmp_path)
    assert list(layer_densities(row)) == names


# Random labels.


def make_random_labels(path: Path) -> Path:
    """A dense network that learns them by heart, and two that do less and less."""
    for sparsity, error in {0.0: 0.5, 0.9: 8.0, 0.98: 75.0}.items():
        make_run(
            path / f"random-{sparsity}",
            90.0 + sparsity,
            sparsity=sparsity,
            fields={"dataset.random_labels": True},
            network={"train_error": error},
        )
    return path


def test_networks_on_random_labels_are_compared_by_training_error(
    tmp_path: Path,
) -> None:
    said = text(make_random_labels(tmp_path))
    labels = "(dataset.random_labels=True)"
    assert (
        "On LeNet-300-100 (MNIST) with random labels, which can only be learnt by "
        "heart, the mean training error before the last evaluation is 0.50% for dense "
        f"{labels}, 8.00% for SNIP at 90% {labels} (+7.50 points to dense) and 75.00% "
        f"for SNIP at 98% {labels} (+74.50 points to dense)." in said
    )
    assert (
        "On random labels, by training error against the dense network trained the "
        "same way, the largest loss of SNIP is +74.50 points (LeNet-300-100 on MNIST, "
        f"SNIP at 98% {labels}) and the smallest +7.50 points" in said
    )
    for words_of in ("no dense network", "90.00%", "test error is"):
        assert words_of not in said


def test_random_labels_are_not_mixed_with_true_ones(tmp_path: Path) -> None:
    make_random_labels(tmp_path)
    make_run(tmp_path / "dense", 1.5, sparsity=0.0)
    make_run(tmp_path / "snip", 2.5)
    make_run(tmp_path / "random", 28.0, method="random")
    said = text(tmp_path)
    assert "1.50% for dense, 2.50% for SNIP at 98% (+1.00 points to dense)" in said
    assert "lower error than random pruning in 1 of 1 comparison" in said


# Sentences.


def test_the_conclusion_is_made_of_the_figures(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", 1.6, method="none")
    make_run(tmp_path / "95", 1.75, sparsity=0.95)
    make_run(tmp_path / "98", 3.3)
    make_run(tmp_path / "random", 28.0, method="random")
    said = " ".join(conclusion(table(tmp_path)))
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
        assert sentence in said


def test_the_analysis_compares_with_dense_and_with_the_last_step(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "dense", 1.5, method="none")
    make_run(tmp_path / "snip", 2.4, 2.6, network={"test_error_last": 2.75})
    make_run(tmp_path / "lost", None, seed=2)
    said = " ".join(analysis(table(tmp_path)))
    assert (
        "On LeNet-300-100 (MNIST) the mean test error is 1.50% for dense and 2.50% for "
        "SNIP at 98% (+1.00 points to dense)." in said
    )
    assert "differs by at most 0.25 points" in said
    assert "deviation over seeds is 0.14 points (LeNet-300-100 on MNIST, SNIP" in said
    assert "1 of 4 networks have no test error" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (2.404, "2.40% against 2.4%, equal to it."),
        (2.39, "2.39% against 2.4%, 0.01 points below."),
        (2.41, "2.41% against 2.4%, 0.01 points above."),
    ],
)
def test_the_published_error_is_above_below_or_met(
    error: float, said: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", error)
    assert said in text(tmp_path)


def test_the_fewest_epochs_of_all_rows_are_said(tmp_path: Path) -> None:
    for sparsity, epochs in ((0.95, 20.0), (0.98, 1.5)):
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity, epochs=epochs)
    make_run(tmp_path / "whole", 1.7, method="none", epochs=250.0)
    assert (
        "2 of these 3 were trained for fewer epochs than the paper's 250, the fewest "
        "being 1.5."
    ) in text(tmp_path)


def test_training_otherwise_than_the_papers_is_said(tmp_path: Path) -> None:
    papers = {"prune.batch_size": 128, "train.batch_size": 128,
              "optimizer.decay_every": 30_000, "train.flip": True,
              "train.translate": 4}  # fmt: skip
    for name, fields in (
        ("vgg_d", {}),
        ("vgg_c", {"train.steps": 9, "train.eval_every": 3}),
        ("vgg_like", {"train.flip": False}),
    ):
        make_run(tmp_path / name, 9.0, dataset="cifar10", model=name, method="none",
                 fields={**papers, **fields})  # fmt: skip
    for sparsity in (0.95, 0.98):
        fields = {"optimizer.learning_rate": 0.05, "optimizer.decay_every": 400}
        make_run(tmp_path / f"{sparsity}", sparsity=sparsity, fields=fields)
    assert (
        "3 of these 5 were trained with other settings than the paper's: LeNet-300-100 "
        "on MNIST with optimizer.decay_every=400, optimizer.learning_rate=0.05; "
        "VGG-like on CIFAR-10 with train.flip=False."
    ) in text(tmp_path)


@pytest.mark.parametrize(
    ("errors", "said"),
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
def test_a_gain_by_pruning_is_no_loss(
    errors: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "dense", 2.0, method="none")
    for sparsity, error in zip((0.95, 0.98), errors):
        make_run(tmp_path / f"{sparsity}", error, sparsity=sparsity)
    for share in ("95", "98"):
        title = f"LeNet-300-100 on MNIST, SNIP at {share}%"
        said = said.replace(f"{{{share}}}", title)
    beginning = "Against the dense network trained the same way, "
    assert beginning + said in text(tmp_path)


def test_rivals_are_compared_at_as_many_steps_alone(tmp_path: Path) -> None:
    few = {"fields": {"train.steps": 5}, "network": {"steps": 5}}
    make_run(tmp_path / "snip", 3.0)
    make_run(tmp_path / "random", 28.0, method="random", **few)
    assert "At equal sparsity" not in text(tmp_path)
    make_run(tmp_path / "snip, shorter", 30.0, epochs=1.0, **few)
    assert (
        "At equal sparsity, network and steps, SNIP has the lower error than random "
        "pruning in 0 of 1 comparison; the largest difference is 30.00% against 28.00%"
    ) in text(tmp_path)


def test_nothing_is_concluded_from_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "run", dataset="digits")
    said = " ".join(conclusion(table(tmp_path)))
    assert "None of the rows has a published figure" in said
    assert "dense" not in said
    assert "random" not in said
    empty = results.aggregate(pd.DataFrame())
    assert conclusion(empty) == [
        "No run has a test error yet, so nothing can be concluded."
    ]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([3], "3"),
        ([0, 1], "0, 1"),
        ([0, 1, 2], "0-2"),
        ([0, 2, 3, 4, 7], "0, 2-4, 7"),
    ],
)
def test_seeds_are_listed_in_short(seeds: list[int], said: str) -> None:
    assert words.ranges(seeds) == said


# Commands.


def parsed(line: str) -> dict[str, Any]:
    """The configuration that a command asks for, as train.py's flags read it."""
    python, script, *arguments = shlex.split(line, comments=True)
    assert (python, script) == ("python", "train.py")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    arguments[1] = str(ROOT / arguments[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])  # read by the flag
        values(sys.argv)
        return dict(configs.fields(holder.value.to_dict()))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed": 3, "prune.sparsity": 0.5, "prune.select": "layerwise"},
        {"dataset.name": "mnist", "train.steps": 7, "prune.fresh_init": False},
        {"dataset.name": "a name; rm -rf", "optimizer.learning_rate": 1e-4},
    ],
)
def test_a_reconstructed_command_asks_for_the_same_configuration(
    fields: Mapping[str, Any],
) -> None:
    config = dict(configs.fields(configs.default())) | dict(fields)
    assert parsed(command(config)) == config


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "configs").glob("*.py")} - {ROOT / "configs/table1.py"})
)
def test_the_config_that_fits_best_is_named(path: Path) -> None:
    config = parsed(f"python train.py --config configs/{path.name}")
    line = command(config)
    assert parsed(line) == config
    assert "--config.train" not in line


def test_a_reconstructed_command_says_so_and_seeds_are_one_command(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        make_run(tmp_path / f"{seed}", seed=seed)
    (line,) = commands(rows(tmp_path)[0])
    assert line.endswith(
        "--config.seed=0  # likewise seed 1, 2; reconstructed from config.json"
    )
    assert parsed(line)["dataset.name"] == "mnist"


def test_one_command_of_several_runs_is_shown_as_it_is(tmp_path: Path) -> None:
    noted = "python train.py --config configs/table1.py --config.seeds=2"
    for seed in range(2):
        make_run(tmp_path / f"{seed}", seed=seed, command=noted)
    assert commands(rows(tmp_path)[0]) == [noted]


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
def test_a_noted_command_is_shown_without_places(
    noted: str, shown: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", command=noted)
    assert commands(rows(tmp_path)[0]) == [shown]
