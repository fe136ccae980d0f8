"""Pictures that runs and sweeps drew themselves, as HTML."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from snipjax.results.report.drawing import data_uri
from snipjax.results.report.html_parts import figure, paragraph, wide_figure
from snipjax.results.report.runs import Run, Sweep
from snipjax.results.report.values import printable

_OF_SWEEPS = {
    "errors.png": "Test error against the share of connections kept",
    "curves.png": "Error on training and on test data over the steps",
    "first_layers.png": "Connections kept of every input pixel: the lighter, the more",
}


def run_gallery(run: Run) -> str:
    """Returns the pictures in a run's directory, folded; nothing if there is none."""
    paths = _with_points(run.path, [run])
    figures = "".join(_figures(paths, {}, run.name))
    if not figures:
        return ""
    return (
        f"<details><summary>{html.escape(run.name)}</summary>"
        f'<div class="figures">{figures}</div></details>'
    )


def sweep_gallery(sweep: Sweep, runs: Sequence[Run]) -> str:
    """Returns the pictures in a sweep's directory, which have its runs side by side.

    Signals are left out where runs have them, which the report draws itself.
    """
    top = sweep.path.resolve()
    within = [run for run in runs if run.path.resolve().is_relative_to(top)]
    are_drawn = any(run.signal for run in within)
    paths = [
        path
        for path in _with_points(sweep.path, within)
        if not (path.name == "signals.png" and are_drawn)
    ]
    captions = {
        name: f"{caption}, by {', '.join(sweep.varied)}."
        for name, caption in _OF_SWEEPS.items()
    }
    figures = "".join(_figures(paths, captions, sweep.name))
    if not figures:
        return ""
    return f'<h3>{html.escape(sweep.name)}</h3><div class="figures">{figures}</div>'


def _with_points(directory: Path, runs: Sequence[Run]) -> list[Path]:
    """Pictures in a directory of runs, but those of something that the runs lack."""
    lacking = set()
    if not any(line["step"] > 0 for run in runs for line in run.metrics):
        lacking.add("curves.png")
    if all(m.test_error is None for run in runs for m in run.members):
        lacking.add("errors.png")
    return [
        path for path in sorted(directory.glob("*.png")) if path.name not in lacking
    ]


def _figures(paths: Sequence[Path], captions: Mapping[str, str], of: str) -> list[str]:
    """Pictures with captions, their names if need be; a damaged one costs itself."""
    figures = []
    for path in paths:
        name = printable(path.name)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                is_wide = image.width > 1.5 * image.height and path.name in captions
                image.verify()
            uri = data_uri(path.read_bytes(), "image/png")
        except Exception:  # whatever a decoder ends in
            figures.append(paragraph(f"{name} is damaged and left out."))
            continue
        place = wide_figure if is_wide else figure
        figures.append(place(uri, captions.get(path.name, name), f"{name} of {of}"))
    return figures
