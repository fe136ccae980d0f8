"""Runs the command line: ``python -m snipjax.results.report``."""

import sys

from snipjax.results.report.command_line import main

if __name__ == "__main__":
    sys.exit(main())
