"""Every method on a model, a loss and data that are none of this library's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
import pytest

from snipjax import masks, methods
from snipjax.methods import Outcome, Problem

pytestmark = pytest.mark.filterwarnings("error", "ignore:.*no connection")

# Settings, phases after dense training, and steps in them.
METHODS: dict[Callable[..., Outcome], tuple[Any, list[str], int]] = {
    methods.lwc: (methods.LWC(rounds=2), ["retrain 1", "retrain 2"], 30),
    methods.dns: (methods.DNS(), ["surgery", "recovery"], 75),
    methods.lc: (methods.LC(iterations=5, learning=0.2), ["learning-compression"], 60),
    methods.sws: (
        methods.SWS(num_components=3, initial_std=0.3),
        ["sws", "quantized"],
        30,
    ),
    methods.sparse_vd: (methods.SparseVD(share=1.0), ["sparse_vd"], 60),
    methods.obd: (
        methods.OBD(rounds=2, num_batches=4),
        ["retrain 1", "retrain 2"],
        30,
    ),
    methods.lobs: (
        methods.LOBS(rounds=2, num_batches=4, block=0.6),
        ["prune 1", "retrain 1", "prune 2", "retrain 2"],
        30,
    ),
}
HYPERPARAMETERS = {
    methods.LWC: 4,
    methods.DNS: 8,
    methods.LC: 6,
    methods.SWS: 12,
    methods.SparseVD: 5,
    methods.OBD: 5,
    methods.LOBS: 7,
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
    # Better than no network.
    if is_exact:
        loss = regression.evaluate(params)["val"].loss
        assert loss < jnp.mean(regression.train["y"] ** 2)


def test_dense_training_learns_and_chooses_by_validation(
    regression: Problem, trained: Outcome
) -> None:
    rows = trained.history.rows
    assert [row["step"] for row in rows] == [20, 40, 60]
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
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"sparsity is {sparsity}"):
            method(regression, sparsity, pretrained=trained)


@pytest.mark.parametrize(
    "settings", HYPERPARAMETERS, ids=lambda settings: settings.__name__
)
def test_hyperparameters_are_the_fields_of_frozen_dataclasses(settings: Any) -> None:
    fields = dataclasses.fields(settings)
    assert len(fields) == HYPERPARAMETERS[settings]
    assert settings(**dataclasses.asdict(settings())) == settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings(), fields[0].name, 1)


OUT_OF_RANGE = [
    (methods.LWC, {"rounds": 0}),
    (methods.LWC, {"rounds": 2.5}),
    (methods.LWC, {"retraining": 0.0}),
    (methods.LWC, {"retraining": float("nan")}),
    (methods.LWC, {"learning_rate": 0.0}),
    (methods.LWC, {"decays": -1}),
    (methods.DNS, {"surgery": 0.0}),
    (methods.DNS, {"recovery": -1.0}),
    (methods.DNS, {"gamma": -1.0}),
    (methods.DNS, {"power": float("inf")}),
    (methods.DNS, {"lower": 0.0}),
    (methods.DNS, {"upper": 0.8}),
    (methods.DNS, {"upper": float("nan")}),
    (methods.DNS, {"learning_rate": -0.1}),
    (methods.DNS, {"decays": 0.5}),
    (methods.LC, {"iterations": 0}),
    (methods.LC, {"learning": 0.0}),
    (methods.LC, {"pull": 0.0}),
    (methods.LC, {"growth": 0.9}),
    (methods.LC, {"learning_rate": float("nan")}),
    (methods.LC, {"decays": 1.0}),
    (methods.SWS, {"share": 0.0}),
    (methods.SWS, {"num_components": 2}),
    (methods.SWS, {"zero_proportion": 1.0}),
    (methods.SWS, {"strength": -1.0}),
    (methods.SWS, {"initial_std": 0.0}),
    (methods.SWS, {"zero_shape": 0.0}),
    (methods.SWS, {"zero_rate": -1.0}),
    (methods.SWS, {"shape": float("nan")}),
    (methods.SWS, {"rate": 0.0}),
    (methods.SWS, {"learning_rate": 0.0}),
    (methods.SWS, {"means_learning_rate": float("inf")}),
    (methods.SWS, {"mixture_learning_rate": 0.0}),
    (methods.SparseVD, {"share": 0.0}),
    (methods.SparseVD, {"warm_up": 1.5}),
    (methods.SparseVD, {"learning_rate": -1e-3}),
    (methods.SparseVD, {"initial_log_variance": float("inf")}),
    (methods.SparseVD, {"threshold": float("nan")}),
    (methods.OBD, {"num_batches": 0}),
    (methods.OBD, {"rounds": 2.0}),
    (methods.LOBS, {"num_batches": 1.5}),
    (methods.LOBS, {"block": 0.0}),
    (methods.LOBS, {"block": 1.0}),
    (methods.LOBS, {"damping": 0.0}),
    (methods.LOBS, {"retraining": 0.0}),
]


@pytest.mark.parametrize(("settings", "field"), OUT_OF_RANGE)
def test_a_field_out_of_range_is_named(settings: Any, field: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be .* e.g. "):
        settings(**field)
