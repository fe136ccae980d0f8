"""Writes the report of runs: ``python -m snipjax.report RUNS... [--out report]``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m snipjax.report",
        description="Gathers runs into one HTML page and a Markdown file.",
    )
    parser.add_argument(
        "runs", nargs="+", help="run directories, or directories that hold some"
    )
    parser.add_argument(
        "--out", default="report", help="the files to write, less .html and .md"
    )
    arguments = parser.parse_args(argv)
    try:
        from snipjax.results.page import report
    except ModuleNotFoundError as error:
        print(
            f"snipjax.report: needs {error.name}: pip install 'snipjax[train]'",
            file=sys.stderr,
        )
        return 2
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        try:
            html, markdown = report(arguments.runs, arguments.out)
        except (ValueError, OSError) as error:
            print(f"snipjax.report: {error}", file=sys.stderr)
            return 2
    print(f"wrote {html} and {markdown}")
    return 0


def _say_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    print(f"snipjax.report: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
