"""Every picture is drawn, without a warning, of anything that a run can give."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from snipjax.initializers import Signal
from snipjax.results import figures, reading

ERROR = {"test_error": "test error (%)"}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the place of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: figures.append(figure)
    )
    return figures


def assert_draws(path: Path, draw: Callable[..., None], *args: Any) -> None:
    draw(*args, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(path)
    assert image.min() < 0.5 < image.max(), "the picture is empty"


def points(line: Line2D) -> list[tuple[float, float]]:
    pairs = zip(line.get_xdata(), line.get_ydata())
    return [(round(float(x), 6), round(float(y), 6)) for x, y in pairs]


def metrics(*rows: tuple[int, float | None, float | None]) -> pd.DataFrame:
    """Returns evaluations with the same loss and error on all data."""
    return reading.tidy(
        {"step": step, "seeds": [0]}
        | {
            f"{split}_{kind}": [value]
            for split in ("train", "val", "test")
            for kind, value in (("loss", loss), ("error", error))
        }
        for step, loss, error in rows
    )


ROWS = {
    "two": [(10, 2.3, 90.0), (20, 0.1, 5.0)],
    "one": [(10, 2.3, 90.0)],
    "then diverged": [(10, 2.3, 90.0), (20, None, 90.0)],
    "diverged": [(10, None, 90.0)],
    "perfect": [(10, 0.0, 0.0)],
    "none": [],
}


@pytest.mark.parametrize("name", ["then diverged", "diverged", "perfect", "none"])
def test_training_curves(name: str, tmp_path: Path) -> None:
    draw = figures.training_curves
    assert_draws(tmp_path / "curves.png", draw, metrics(*ROWS[name]))


@pytest.mark.parametrize("names", [ROWS, ["diverged", "none"]], ids=["all", "nothing"])
def test_compared_curves(names: Any, tmp_path: Path) -> None:
    named = {name: metrics(*ROWS[name]) for name in names}
    assert_draws(tmp_path / "compared.png", figures.compared_curves, named, ERROR)


def test_training_curves_are_means_over_the_seeds(
    drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [{"seeds": [0, 1], "step": 5, "test_error": [3.0, 5.0]}]
    figures.training_curves(reading.tidy(rows), tmp_path)
    _, errors = drawn[0].axes
    assert [points(line) for line in errors.lines] == [[(5, 4)]]


def test_a_curve_of_one_evaluation_is_a_mark(
    drawn: list[Figure], tmp_path: Path
) -> None:
    two = metrics((10, 2.3, 90.0), (20, 0.1, 5.0))
    named = {"one": metrics((10, 2.3, 90.0)), "none": metrics()}
    named |= {f"two {i}": two for i in range(30)}
    figures.compared_curves(named, ERROR, tmp_path)
    one, *others = drawn[0].axes[0].lines
    assert (one.get_marker(), others[0].get_marker()) == ("o", "")
    colors = {tuple(np.ravel(line.get_color())) for line in others}
    assert len(colors) == 30  # told apart, though there are fewer named colors


def test_every_seed_has_its_own_curve_and_missing_errors_are_no_points(
    drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [
        {"seeds": [0, 1], "step": 10, "test_error": [9.0, 8.0]},
        {"seeds": [0, 1], "step": 20, "test_error": [5.0, None]},
    ]
    named = {"run": reading.tidy(rows)}
    figures.compared_curves(named, ERROR, tmp_path, steps_per_epoch=5)
    (axes,) = drawn[0].axes
    assert [points(line) for line in axes.lines] == [[(2, 9), (4, 5)], [(2, 8)]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "test error (%)")
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["run"]


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).exponential(size=1000),
        np.array([1e-45, 1e-3, 1.0], np.float32),
        np.ones(5),
        np.zeros(5),
    ],
    ids=["exponential", "denormal", "equal", "zero"],
)
def test_saliency_histogram(scores: np.ndarray, tmp_path: Path) -> None:
    draw = figures.saliency_histogram
    assert_draws(tmp_path / "saliency.png", draw, scores, float(scores.max()) / 2)


def test_first_layers_say_what_white_means_in_each(
    drawn: list[Figure], tmp_path: Path
) -> None:
    counts = {"sparsity 0.9, dense": np.full((2, 2), 300.0), "he": np.eye(2) / 8}
    figures.first_layers({**counts, "none": np.zeros((2, 2))}, tmp_path)
    dense, he, _ = drawn[0].axes
    assert (dense.get_title(), he.get_title()) == ("sparsity 0.9\ndense", "he")
    assert (dense.get_xlabel(), he.get_xlabel()) == ("white: 300", "white: 0.125")
    assert he.images[0].get_clim() == (0.0, 0.125)
    assert all(spine.get_visible() for spine in dense.spines.values())  # on white too


def signal(layers: int, seeds: int, fill: float | None = None) -> Signal:
    generator = np.random.default_rng(layers)

    def values(*shape: int) -> np.ndarray:
        if fill is not None:
            return np.full(shape, fill, np.float32)
        return generator.lognormal(-3, 2, shape).astype(np.float32)

    return Signal(
        tuple(f"Conv_{i}" for i in range(layers)),
        activation_variance=values(seeds, layers),
        gradient_variance=1e-6 * values(seeds, layers),
        density=np.minimum(values(seeds, layers), 1),
        rank_correlation=np.minimum(values(layers), 1),
    )


def test_signals(tmp_path: Path) -> None:
    fills = {"he": None, r"_$\frac{": 0.0, "nan": np.nan, "infinite": np.inf}
    named = {name: signal(3, 2, fill) for name, fill in fills.items()}
    assert_draws(tmp_path / "signals.png", figures.signals, named)


def test_signals_beyond_what_float32_adds_up(
    drawn: list[Figure], tmp_path: Path
) -> None:
    widest = signal(3, 4)
    widest.activation_variance[:] = 3e38  # a float32, unlike the sum of four
    widest.gradient_variance[:] = [1e-45, 1.0, 1e38]
    figures.signals({"he": widest}, tmp_path)
    activations, gradients, *_ = drawn[0].axes
    assert activations.lines[0].get_xdata() == pytest.approx([3e38] * 3)
    assert activations.get_xlim() == pytest.approx((1e38, 1e39))
    assert gradients.get_xlim() == pytest.approx((1e-45, 1e39))


def test_a_picture_that_fails_warns_and_costs_itself(tmp_path: Path) -> None:
    named = {"he": signal(2, 1), "xavier": signal(3, 1)}
    with pytest.warns(UserWarning, match=r"'signals' was not drawn: .*one model"):
        figures.draw(figures.signals, named, tmp_path / "signals.png")


def test_errors_by_density_have_published_ones_hollow(
    drawn: list[Figure], tmp_path: Path
) -> None:
    figures.errors_by_density(
        {"SNIP": [(0.05, 2.1, 0.1), (0.02, 3.0, 0.2)], "LWC": [(0.1, 1.9, 0.0)]},
        tmp_path,
        published={"SNIP": [(0.05, 1.6), (0.02, 2.4)]},
        dense={"Dense": 1.7},
        to_beat=[(0.05, 1.53), (0.02, 1.99)],
    )
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    means = {bars.get_label(): bars[0] for bars in axes.containers}
    assert points(means["SNIP"]) == [(2, 3.0), (5, 2.1)]
    assert points(means["LWC"]) == [(10, 1.9)]
    (bars,) = axes.containers[0][2]
    ends = [[(2, 2.8), (2, 3.2)], [(5, 2.0), (5, 2.2)]]
    np.testing.assert_allclose(bars.get_segments(), ends)
    hollow = [line for line in axes.lines if line.get_markersize() == 10]
    assert [points(line) for line in hollow] == [[(5, 1.6)], [(2, 2.4)]]
    assert {line.get_markerfacecolor() for line in hollow} == {"none"}
    (to_beat,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert points(to_beat) == [(2, 1.99), (5, 1.53)]
    (dense,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(dense.get_ydata()) == [1.7, 1.7]


def test_networks_are_compared_from_their_first_layer_to_their_last(
    drawn: list[Figure], tmp_path: Path
) -> None:
    named = {"a": [2.0, 1.0, 50.0], "b": [50.0, 10.0], "c": [3.0]}
    figures.densities_by_depth(named, tmp_path)
    assert [points(line) for line in drawn[0].axes[0].lines] == [
        [(0, 2), (50, 1), (100, 50)],
        [(0, 50), (100, 10)],
        [(0, 3)],
    ]


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0), (0.0, 10.0, 100.0)])
def test_every_density_is_drawn(shares: tuple[float, ...], tmp_path: Path) -> None:
    named = {"a": dict(zip("xyz", shares))}
    assert_draws(tmp_path / "densities.png", figures.densities_by_layer, named)
