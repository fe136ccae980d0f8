"""The files of a report."""

from collections.abc import Sequence
from pathlib import Path

from snipjax.results.report.aggregation import rows
from snipjax.results.report.html_page import page
from snipjax.results.report.markdown_page import markdown
from snipjax.results.report.runs import gather, gather_sweeps


def write(paths: Sequence[Path | str], out: Path | str = "report") -> tuple[Path, Path]:
    """Gathers runs, and writes the page and the Markdown.

    Args:
      paths: run directories, or directories that hold some.
      out: the files without their suffixes, or a directory for ``report.html`` and
        ``report.md``.

    Returns:
      The paths of the HTML page and the Markdown file.

    Raises:
      ValueError: as :func:`snipjax.results.report.gather` does.

    Example:
      >>> write(["runs"], "runs/report")  # doctest: +SKIP
      (PosixPath('runs/report.html'), PosixPath('runs/report.md'))
    """
    paths = [Path(path) for path in paths]
    runs, sweeps = gather(paths), gather_sweeps(paths)
    table = rows(runs)
    out = Path(out)
    out = out / "report" if out.is_dir() else out
    out.parent.mkdir(parents=True, exist_ok=True)
    out = out.with_suffix("") if out.suffix in (".html", ".md") else out
    files = out.with_name(out.name + ".html"), out.with_name(out.name + ".md")
    texts = page(runs, table, sweeps), markdown(runs, table)
    for file, text in zip(files, texts):
        file.write_text(text, encoding="utf-8")
    return files
