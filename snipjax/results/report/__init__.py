"""A report of many runs: one HTML page that needs no other file, and Markdown.

python -m snipjax.results.report RUNS... [--out report]

RUNS are run directories, or directories that hold some. Measured errors stand beside
the published ones of :mod:`snipjax.results.published`; every sentence of the analysis and the
conclusion is computed from the table's figures.
"""

from snipjax.results.report.aggregation import Row, rows
from snipjax.results.report.command_line import main
from snipjax.results.report.drawing import pictures, signal_pictures
from snipjax.results.report.files import write
from snipjax.results.report.html_page import page
from snipjax.results.report.layers import layer_densities
from snipjax.results.report.markdown_page import markdown
from snipjax.results.report.runs import (
    Layer,
    Member,
    NotARunError,
    Run,
    Sweep,
    find_runs,
    gather,
    gather_sweeps,
    members,
    metrics_of,
    read_run,
)
from snipjax.results.report.sentences import analysis, conclusion, layer_sentences
from snipjax.results.report.tables import Cell, cells, published_cells, unfinished
from snipjax.results.report.titles import title
from snipjax.results.report.train_commands import command, commands

__all__ = [
    "Cell",
    "Layer",
    "Member",
    "NotARunError",
    "Row",
    "Run",
    "Sweep",
    "analysis",
    "cells",
    "command",
    "commands",
    "conclusion",
    "find_runs",
    "gather",
    "gather_sweeps",
    "layer_densities",
    "layer_sentences",
    "main",
    "markdown",
    "members",
    "metrics_of",
    "page",
    "pictures",
    "published_cells",
    "read_run",
    "rows",
    "signal_pictures",
    "title",
    "unfinished",
    "write",
]
