"""Every method on a model, a loss and data that are none of this library's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, methods
from snipjax.methods import Outcome, Problem

pytestmark = pytest.mark.filterwarnings("error", "ignore:.*no connection")

# Settings, phases after dense training, and steps in them.
METHODS: dict[Callable[..., Outcome], tuple[Any, list[str], int]] = {
    methods.lwc: (methods.LWC(rounds=2), ["retrain 1", "retrain 2"], 40),
    methods.dns: (methods.DNS(), ["surgery", "recovery"], 100),
    methods.lc: (methods.LC(iterations=4, learning=0.25), ["learning-compression"], 80),
    methods.sws: (
        methods.SWS(num_components=3, initial_std=0.3),
        ["sws", "quantized"],
        40,
    ),
    methods.sparse_vd: (methods.SparseVD(share=1.0), ["sparse_vd"], 80),
    methods.obd: (methods.OBD(rounds=2, num_batches=4), ["retrain 1", "retrain 2"], 40),
    methods.lobs: (
        methods.LOBS(rounds=2, num_batches=4),
        ["prune 1", "retrain 1", "prune 2", "retrain 2"],
        40,
    ),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_prunes_a_network_of_the_users_own(
    method: Callable[..., Outcome], regression: Problem, trained: Outcome
) -> None:
    settings, phases, steps = METHODS[method]
    params, mask, history = method(regression, 0.6, settings, trained)
    total = 8 * 6 + 8 + 8
    kept = sum(row.kept for row in masks.summary(mask))
    is_exact = method not in (methods.sws, methods.sparse_vd)
    assert kept == round(0.4 * total) if is_exact else 0 < kept <= round(0.4 * total)
    assert not mask["scale"].ndim
    chex.assert_trees_all_equal(params, masks.apply(mask, params))

    rows = history.rows[len(trained.history.rows) :]
    assert history.rows == (*trained.history.rows, *rows)
    assert list(dict.fromkeys(row["phase"] for row in rows)) == phases
    assert history.steps == trained.history.steps + steps
    assert history.seconds > trained.history.seconds
    assert history.prunes >= (2 if "retrain 2" in phases else 1)
    assert rows[-1]["sparsity"] == masks.sparsity(mask)
    if "retrain 1" in phases:
        (first,) = {row["sparsity"] for row in rows if row["phase"] == "retrain 1"}
        assert first == pytest.approx(1 - 0.4**0.5, abs=0.02)
    if method is methods.lobs:
        assert history.prunes == 4  # two blocks of 30% in each round
        for row in (row for row in rows if row["phase"].startswith("prune")):
            for name in ("layer_{}/layers/0", "layer_{}/layers/1", "output_{}"):
                error, bound = row[name.format("error")], row[name.format("bound")]
                assert 0 < error <= bound
    # Better than no network.
    if is_exact:
        loss = regression.evaluate(params)["val"].loss
        assert loss < jnp.mean(regression.train["y"] ** 2)


def test_dense_training_learns_and_chooses_by_validation(
    regression: Problem, trained: Outcome
) -> None:
    rows = trained.history.rows
    assert [row["step"] for row in rows] == [20, 40, 60, 80]
    assert rows[-1]["train_error"] is None  # for the loss says none
    least = min(row["val_error"] for row in rows)
    error = regression.evaluate(trained.params)["val"].error
    assert least == pytest.approx(100 * float(error), rel=1e-4)
    assert masks.sparsity(trained.mask) == 0


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_wrong_sparsity_or_start_is_refused(
    method: Callable[..., Outcome], regression: Problem, trained: Outcome
) -> None:
    other = trained._replace(params={**trained.params, "scale": jnp.ones(2)})
    with pytest.raises(ValueError, match="pretrained is of another network: 'scale'"):
        method(regression, 0.5, pretrained=other)
    with pytest.raises(ValueError, match=r"sparsity is 1\.0"):
        method(regression, 1.0, pretrained=trained)


@pytest.mark.parametrize(
    ("attribute", "value", "problem"),
    [
        ("eval_every", 0, "problem.eval_every is 0; .* at least 1"),
        ("batch_size", 2.5, "problem.batch_size is 2.5"),
        ("optimizer", optax.sgd(0.1), "pass the function that makes one"),
        (
            "evaluate",
            lambda params: {"test": 1.0},
            'evaluate returns test; return .*"val"',
        ),
    ],
)
def test_a_problem_that_cannot_be_is_refused(
    attribute: str, value: Any, problem: str, regression: Problem
) -> None:
    with pytest.raises(ValueError, match=problem):
        methods.lwc(regression._replace(**{attribute: value}), 0.5)


OUT_OF_RANGE = {
    methods.LWC: "rounds=0 rounds=2.5 retraining=0.0 retraining=nan decays=-1",
    methods.DNS: "gamma=-1.0 power=inf lower=0.0 upper=0.8 upper=nan decays=0.5",
    methods.LC: "iterations=0 learning=0.0 pull=0.0 growth=0.9 decays=1.0",
    methods.SWS: "num_components=2 zero_proportion=0.0 zero_proportion=1.0 "
    "strength=-1.0 initial_std=0.0 shape=nan means_learning_rate=inf",
    methods.SparseVD: "warm_up=1.5 learning_rate=-0.1 initial_log_variance=inf "
    "threshold=nan",
    methods.OBD: "num_batches=0 rounds=2.0 learning_rate=0.0",
    methods.LOBS: "num_batches=1.5 block=0.0 block=1.0 damping=0.0",
}


@pytest.mark.parametrize("settings", OUT_OF_RANGE, ids=lambda x: x.__name__)
def test_hyperparameters_have_bounds(settings: Any) -> None:
    for name, text in (item.split("=") for item in OUT_OF_RANGE[settings].split()):
        value = float(text) if text.strip("-")[1:] else int(text)
        with pytest.raises(ValueError, match=f"^{name} is {text}; .* e.g. "):
            settings(**{name: value})


def test_hyperparameters_are_numbers() -> None:
    for value in ("1", True):
        with pytest.raises(ValueError, match=f"^rounds is {value!r}; "):
            methods.LWC(rounds=value)
    assert methods.LWC(rounds=np.int64(3)).rounds == 3


# The number of fields, and values out of range.
HYPERPARAMETERS = {
    methods.LWC: (4, "rounds=0 rounds=2.5 retraining=0.0 retraining=nan decays=-1"),
    methods.DNS: (8, "gamma=-1.0 power=inf lower=0.0 upper=0.8 upper=nan decays=0.5"),
    methods.LC: (6, "iterations=0 learning=0.0 pull=0.0 growth=0.9 decays=1.0"),
    methods.SWS: (
        12,
        "num_components=2 zero_proportion=0.0 zero_proportion=1.0 strength=-1.0 "
        "initial_std=0.0 shape=nan means_learning_rate=inf",
    ),
    methods.SparseVD: (
        5,
        "warm_up=1.5 learning_rate=-0.1 initial_log_variance=inf threshold=nan",
    ),
    methods.OBD: (5, "num_batches=0 rounds=2.0 learning_rate=0.0"),
    methods.LOBS: (7, "num_batches=1.5 block=0.0 block=1.0 damping=0.0"),
}


@pytest.mark.parametrize("settings", HYPERPARAMETERS, ids=lambda x: x.__name__)
def test_hyperparameters_are_fields_of_frozen_dataclasses_with_bounds(
    settings: Any,
) -> None:
    number, out_of_range = HYPERPARAMETERS[settings]
    fields = dataclasses.fields(settings)
    assert len(fields) == number
    assert settings(**dataclasses.asdict(settings())) == settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings(), fields[0].name, 1)
    for name, text in (item.split("=") for item in out_of_range.split()):
        value = float(text) if text.strip("-")[1:] else int(text)
        with pytest.raises(ValueError, match=f"^{name} is {text}; .* e.g. "):
            settings(**{name: value})
    for name, value in ((fields[0].name, "1"), (fields[0].name, True)):
        with pytest.raises(ValueError, match=f"^{name} is {value!r}; "):
            settings(**{name: value})
    assert methods.LWC(rounds=np.int64(3)).rounds == 3
