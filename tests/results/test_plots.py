"""Every picture is drawn, without a warning, of whatever a run can give."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from snipjax import initializers, masks
from snipjax.results import plots, published
from snipjax.studies.table1 import aggregation, output

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_draws(path: Path, draw: Callable[..., None], *arguments: Any) -> None:
    draw(*arguments, path)
    assert path.read_bytes().startswith(PNG)
    image = matplotlib.image.imread(path)
    assert image.min() < 0.5 < image.max(), "the picture is empty"


def row(step: int, loss: float | None, error: float) -> dict[str, Any]:
    names = ("train", "val", "test")
    return {"step": step} | {
        f"{name}_{kind}": value
        for name in names
        for kind, value in (("loss", loss), ("error", error))
    }


@pytest.mark.parametrize(
    "metrics",
    [
        [row(10, 2.3, 90.0), row(20, 0.1, 5.0)],
        [row(10, 2.3, 90.0)],
        [row(10, 2.3, 90.0), row(20, None, 90.0)],
        [row(10, None, 90.0)],
        [row(10, 0.0, 0.0)],
        [],
    ],
    ids=["two", "one", "then diverged", "diverged", "perfect", "none"],
)
def test_training_curves(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    assert_draws(tmp_path / "curves.png", plots.training_curves, metrics)


def markers_drawn(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[..., None], rows: Any
) -> list[list[str]]:
    """Markers of the lines of each of a picture's axes."""
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: figures.append(figure)
    )
    draw(rows, Path("unwritten"))
    (figure,) = figures
    return [[line.get_marker() for line in axes.lines] for axes in figure.axes]


@pytest.mark.parametrize(
    ("metrics", "marker"),
    [
        ([row(10, 2.3, 90.0)], "o"),
        ([row(10, 2.3, 90.0), row(20, 0.1, 5.0)], ""),
    ],
    ids=["one", "two"],
)
def test_a_curve_of_one_evaluation_is_a_mark(
    metrics: list[dict[str, Any]], marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run = markers_drawn(monkeypatch, plots.training_curves, metrics)
    assert of_run == [[marker] * 3] * 2  # on training, validation and test data
    named = {"a": metrics, "b": []}
    of_sweep = markers_drawn(monkeypatch, plots.compared_curves, named)
    assert of_sweep == [[marker]] * 2


def test_an_evaluation_without_an_error_is_no_point_of_a_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [row(10, 2.3, 90.0), {**row(20, None, 5.0), "train_error": None}]
    of_sweep = markers_drawn(monkeypatch, plots.compared_curves, {"a": rows})
    assert of_sweep == [["o"], [""]]


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).exponential(size=1000),
        np.array([0.0, 0.0, 1.0]),
        np.array([1e-45, 1e-3, 1.0], np.float32),
        np.ones(5),
        np.zeros(5),
    ],
    ids=["exponential", "one positive", "denormal", "equal", "zero"],
)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_saliency_histogram(
    scores: np.ndarray, threshold: float, tmp_path: Path
) -> None:
    assert_draws(tmp_path / "saliency.png", plots.saliency_histogram, scores, threshold)


@pytest.mark.parametrize("layers", [1, 32])
@pytest.mark.parametrize("kept", [0, 3, 10])
def test_layer_densities(layers: int, kept: int, tmp_path: Path) -> None:
    summary = masks.Summary(
        masks.Row(f"Conv_{i}/kernel", (2, 5), kept, 10, kept / 10)
        for i in range(layers)
    )
    assert_draws(tmp_path / "densities.png", plots.layer_densities, summary)


@pytest.mark.parametrize("kept", [np.eye(28), np.zeros((5, 5)), np.ones((1, 1))])
def test_first_layer(kept: np.ndarray, tmp_path: Path) -> None:
    assert_draws(tmp_path / "first_layer.png", plots.first_layer, kept)


def test_first_layer_shows_where_connections_are(tmp_path: Path) -> None:
    path = tmp_path / "first_layer.png"
    plots.first_layer(np.array([[0, 9], [0, 9]]), path)
    image = matplotlib.image.imread(path)[..., 0]
    middle = image[image.shape[0] // 2]
    left, right = middle[: len(middle) // 4], middle[len(middle) // 2 :]
    assert left[len(left) // 2] == 0.0  # black: nothing is kept
    assert right.max() == 1.0


def signal(layers: int, seeds: int, fill: float | None = None) -> initializers.Signal:
    generator = np.random.default_rng(layers)

    def values(*shape: int) -> np.ndarray:
        if fill is not None:
            return np.full(shape, fill, np.float32)
        return generator.lognormal(-3, 2, shape).astype(np.float32)

    return initializers.Signal(
        tuple(f"Conv_{i}" for i in range(layers)),
        activation_variance=values(seeds, layers),
        gradient_variance=1e-6 * values(seeds, layers),
        density=np.minimum(values(seeds, layers), 1),
        rank_correlation=np.minimum(values(layers), 1),
    )


@pytest.mark.parametrize("layers", [1, 16])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("fill", [None, 0.0, np.nan, np.inf])
def test_signals(layers: int, seeds: int, fill: float | None, tmp_path: Path) -> None:
    named = {"he": signal(layers, seeds), "xavier": signal(layers, seeds, fill)}
    assert_draws(tmp_path / "signals.png", plots.signals, named)


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_signals_without_a_positive_number(fill: float, tmp_path: Path) -> None:
    named = {"he": signal(3, 2, fill)}
    assert_draws(tmp_path / "signals.png", plots.signals, named)


def test_signals_beyond_what_float32_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = signal(3, 4)
    widest.activation_variance[:] = 3e38  # which is a float32, unlike four of them
    widest.gradient_variance[:] = [1e-45, 1.0, 1e38]
    assert_draws(tmp_path / "signals.png", plots.signals, {"he": widest})
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: figures.append(figure)
    )
    plots.signals({"he": widest}, tmp_path / "signals.png")
    activations, gradients, *_ = figures[0].axes
    assert activations.lines[0].get_xdata() == pytest.approx([3e38] * 3)
    assert activations.get_xlim() == pytest.approx((1e38, 1e39))
    assert gradients.get_xlim() == pytest.approx((1e-45, 1e39))


def test_names_of_layers_are_not_formulas(tmp_path: Path) -> None:
    named = {"he": signal(2, 1)._replace(layers=(r"$\frac{", "$x^{$"))}
    assert_draws(tmp_path / "signals.png", plots.signals, named)


def test_signals_leave_out_recurrent_cells(tmp_path: Path) -> None:
    unseen = signal(4, 2)
    unseen.activation_variance[:, 1:3] = np.nan
    unseen.gradient_variance[:, 1:3] = np.nan
    assert_draws(tmp_path / "signals.png", plots.signals, {"he": unseen})


@pytest.mark.parametrize("named", [{}, {"he": signal(2, 1), "xavier": signal(3, 1)}])
def test_signals_of_one_model(named: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one model"):
        plots.signals(named, tmp_path / "signals.png")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, in the place of a file."""
    drawn: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    return drawn


def points(line: Line2D) -> list[tuple[float, float]]:
    pairs = zip(line.get_xdata(), line.get_ydata())
    return [(round(float(x), 6), round(float(y), 6)) for x, y in pairs]


def measured(axes: Axes) -> dict[str, Line2D]:
    """Lines of means, by the names of their methods."""
    return {bars.get_label(): bars[0] for bars in axes.containers}


def alone(axes: Axes) -> list[Line2D]:
    """Marks without a line; those of deviations and of the legend have no part."""
    lines = [line for line in axes.lines if len(line.get_xdata())]
    within = [line for bars in axes.containers for line in (bars[0], *bars[1])]
    return [
        line for line in lines if line not in within and line.get_linestyle() == "None"
    ]


def lines_of(axes: Axes, style: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_linestyle() == style]


def test_a_frontier_is_of_densities_with_what_is_published_hollow(
    figures: list[Figure], tmp_path: Path
) -> None:
    plots.frontier(
        {"SNIP": [(0.05, 2.1, 0.1), (0.02, 3.0, 0.2)], "LWC": [(0.1, 1.9, 0.0)]},
        {"SNIP": [(0.05, 1.6), (0.02, 2.4)], "OBD": [(0.08, 2.0)]},
        ("to beat", [(0.05, 1.53), (0.02, 1.99)]),
        1.7,
        tmp_path,
    )
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    means = measured(axes)
    assert points(means["SNIP"]) == [(2, 3.0), (5, 2.1)]
    assert points(means["LWC"]) == [(10, 1.9)]
    (bars,) = axes.containers[0][2]
    ends = [[(2, 2.8), (2, 3.2)], [(5, 2.0), (5, 2.2)]]
    np.testing.assert_allclose(bars.get_segments(), ends)
    hollow = alone(axes)
    assert [points(line) for line in hollow] == [[(5, 1.6)], [(2, 2.4)], [(8, 2.0)]]
    assert {line.get_markerfacecolor() for line in hollow} == {"none"}
    assert all(line.get_markerfacecolor() != "none" for line in means.values())
    for style in (Line2D.get_marker, Line2D.get_color):
        own = style(means["SNIP"])
        assert [style(line) == own for line in hollow] == [True, True, False]
    (to_beat,) = lines_of(axes, ":")
    assert points(to_beat) == [(2, 1.99), (5, 1.53)]
    (dense,) = lines_of(axes, "--")
    assert list(dense.get_ydata()) == [1.7, 1.7]
    assert [text.get_text() for text in figures[0].legends[0].texts] == [
        *("SNIP", "LWC", "OBD, published", "published", "to beat", "Dense")
    ]


def row_of_table_1(
    method: str, sparsity: float, errors: tuple[float, ...], **fields: Any
) -> aggregation.Row:
    results = [{"measured_sparsity": sparsity, "test_error": x} for x in errors]
    fields = {"network": "lenet_300_100", "published": None, **fields}
    return aggregation.Row(
        dataset="mnist",
        method=method,
        wanted=sparsity,
        hyperparameters=0,
        cells=len(errors),
        results=tuple(results),
        costs=(),
        failures=(),
        **fields,
    )


def test_the_frontier_of_table_1_has_what_both_papers_published(
    figures: list[Figure], tmp_path: Path
) -> None:
    def found(method: str, sparsity: float) -> published.Row | None:
        return published.find("mnist", "lenet_300_100", method, sparsity)

    table = [
        row_of_table_1("dense", 0.0, (1.6, 1.8), published=found("dense", 0.0)),
        row_of_table_1("lwc", 0.917, (), published=found("lwc", 0.917)),
        row_of_table_1("snip", 0.9, (1.4,)),
        row_of_table_1("snip", 0.95, (2.0, 2.4), published=found("snip", 0.95)),
        row_of_table_1("snip", 0.99, (0.9,), network="lenet_5_caffe"),
    ]
    output._draw_frontier(table, "lenet_300_100", tmp_path)
    (axes,) = figures[0].axes
    means = measured(axes)
    assert list(means) == ["SNIP"]
    assert points(means["SNIP"]) == [(5, 2.2), (10, 1.4)]
    # As the SNIP paper prints them, and Dettmers and Zettlemoyer.
    assert [points(line) for line in alone(axes)] == [[(8.3, 1.6)], [(5, 1.6)]]
    (to_beat,) = lines_of(axes, ":")
    assert points(to_beat) == [(2, 1.99), (5, 1.53)]
    (dense,) = lines_of(axes, "--")
    assert list(dense.get_ydata()) == pytest.approx([1.7, 1.7])


def test_first_layers_say_what_white_is_in_each(
    figures: list[Figure], tmp_path: Path
) -> None:
    counts = {"sparsity 0.9, dense": np.full((2, 2), 300.0), "he": np.eye(2) / 8}
    plots.first_layers(counts, tmp_path / "first_layers.png")
    dense, he = figures[0].axes
    assert (dense.get_title(), he.get_title()) == ("sparsity 0.9\ndense", "he")
    assert (dense.get_xlabel(), he.get_xlabel()) == ("white: 300", "white: 0.125")
    assert he.images[0].get_clim() == (0.0, 0.125)
    assert all(spine.get_visible() for spine in dense.spines.values())  # on white too
