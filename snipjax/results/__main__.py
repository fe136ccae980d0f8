"""Writes the report of runs: ``python -m snipjax.results RUNS... [--out report]``."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from snipjax.results.page import report


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the command line's runs; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m snipjax.results",
        description="Gathers runs into one HTML page and a Markdown table.",
    )
    parser.add_argument(
        "runs", nargs="+", help="run directories, or directories that hold some"
    )
    parser.add_argument(
        "--out",
        default="report",
        help="the files to write, less .html and .md, or a directory for them "
        "(default: report)",
    )
    arguments = parser.parse_args(argv)
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            html, markdown = report(arguments.runs, arguments.out)
        except (ValueError, OSError) as error:
            failure = error
    for warning in caught:
        _say_in_a_line(f"warning: {warning.message}")
    if failure:
        _say_in_a_line(str(failure))
        return 2
    print(f"wrote {html} and {markdown}")
    return 0


def _say_in_a_line(text: str) -> None:
    print(f"snipjax.results: {' '.join(text.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
