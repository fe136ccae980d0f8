"""Finished cells that a table leaves out, and why."""

from pathlib import Path

from ml_collections import ConfigDict

from snipjax.results.report.wording import listed
from snipjax.studies.table1 import config as configs
from snipjax.studies.table1 import files
from snipjax.studies.table1.cell import Cell

_SHOWN = 5  # cells of a reason


def reasons(config: ConfigDict, workdir: Path) -> dict[str, list[str]]:
    """Returns which finished cells were made with other settings, by the difference.

    Args:
      config: like :func:`snipjax.studies.table1.default`'s.
      workdir: directory of the table.

    Raises:
      ValueError: if a ``cell.json`` is damaged.
    """
    found: dict[str, list[str]] = {}
    for cell, differing in differences(config, workdir).items():
        if differing:
            found.setdefault(listed(differing), []).append(cell.name)
    return found


def differences(config: ConfigDict, workdir: Path) -> dict[Cell, list[str]]:
    """Returns what each finished cell was made with that is otherwise here.

    Arguments and errors are those of :func:`reasons`; nothing is otherwise of the cells
    that the table has.
    """
    return {
        cell: configs.differing_settings(
            config, cell, files.read(workdir / cell.name)["settings"]
        )
        for cell in files.finished(workdir)
    }


def sentence(reasons: dict[str, list[str]]) -> str:
    """Returns them in a line.

    Example:
      >>> sentence({"config.lwc.rounds=4, not 2": ["lenet_300_100-lwc-0.9-seed0"]})
      'left out of the table: lenet_300_100-lwc-0.9-seed0, made with
       config.lwc.rounds=4, not 2'
    """
    parts = []
    for reason, names in reasons.items():
        more = len(names) - _SHOWN
        shown = [*names[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
        parts.append(f"{listed(shown)}, made with {reason}")
    return f"left out of the table: {'; '.join(parts)}"
