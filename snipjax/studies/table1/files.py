"""The directory of a cell: what it came to, its mask and its parameters as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np

import snipjax
from snipjax import experiment, masks, methods, training
from snipjax._src import trees
from snipjax.experiment import Parts
from snipjax.studies.table1 import faults
from snipjax.studies.table1.cell import Cell, named
from snipjax.studies.table1.config import is_known
from snipjax.training import rundir

# Not result.json, which is what a report takes for a single run's.
CELL, FAILURE, MASK, PARAMS = "cell.json", "failure.json", "mask.npz", "params.npz"


def write(
    directory: Path,
    cell: Cell,
    parts: Parts,
    outcome: methods.Outcome,
    settings: Mapping[str, Any],
    **others: Any,
) -> None:
    """Writes an outcome; ``cell.json`` last, which says that the cell is finished.

    Args:
      directory: of the cell; made if it is not there.
      cell: which one.
      parts: of its experiment.
      outcome: of the method.
      settings: what it depends on, of :func:`snipjax.studies.table1.config.settings`.
      **others: values to be kept with it.
    """
    directory.mkdir(exist_ok=True)
    experiment.save_mask(outcome.mask, directory / MASK)
    experiment.save_mask(outcome.params, directory / PARAMS)
    rundir.write_json(
        directory / CELL,
        {**summary(cell, parts, outcome), "settings": dict(settings), **others},
    )
    (directory / FAILURE).unlink(missing_ok=True)


def summary(cell: Cell, parts: Parts, outcome: methods.Outcome) -> dict[str, Any]:
    """Returns what a cell came to, as ``cell.json`` holds it; errors in percent."""
    params, mask, history = outcome
    rows = masks.summary(mask)
    params = masks.apply(mask, params)
    val_error, test_error = (
        experiment.rounded(100 * float(_evaluate(parts, params, examples).error))
        for examples in (parts.validation, parts.test)
    )
    history_rows = [
        {name: _plain(value) for name, value in row.items()} for row in history.rows
    ]
    return {
        **cell._asdict(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "prunable": sum(row.total for row in rows),
        "kept": sum(row.kept for row in rows),
        "measured_sparsity": masks.sparsity(mask),
        "test_error": test_error,
        "test_error_last": last_row(history_rows).get("test_error"),
        "val_error": val_error,
        "prunes": int(history.prunes),
        "steps": int(history.steps),
        "seconds": float(history.seconds),
        "history": history_rows,
        "params_sha256": experiment.digest(params),
        "snipjax": snipjax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def last_row(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the evaluation after the last step of training, ``{}`` if there is none.

    What follows it without a step, as when a network is quantised, is another network;
    but where nothing is trained after pruning, it is the last evaluation.
    """
    if not history:
        return {}
    final = history[-1].get("sparsity")
    trained = [
        row for row in history if row["step"] > 0 and row.get("sparsity") == final
    ]
    return trained[-1] if trained else history[-1]


def write_failure(directory: Path, error: Exception) -> None:
    """Notes that a cell failed, and why."""
    directory.mkdir(exist_ok=True)
    lines = [line.strip() for line in str(error).strip().splitlines()]
    message = f"{type(error).__name__}: {' '.join(lines)[:500]}"
    rundir.write_json(directory / FAILURE, {"message": message})


def finished(workdir: Path) -> list[Cell]:
    """Returns the cells that are finished, whatever they were made with.

    Directories that are not named as a cell are the user's own.
    """
    cells = (named(path.parent.name) for path in workdir.glob(f"*/{CELL}"))
    return sorted(cell for cell in cells if cell is not None and is_known(cell))


def read(directory: Path) -> dict[str, Any] | None:
    """Returns what a cell came to; None if it is not finished.

    Raises:
      ValueError: if the file is damaged, or of another cell than the directory.
    """
    path = directory / CELL
    if not path.exists():
        return None
    result = rundir.read_json(path, _remedy(directory))
    if fault := faults.of_result(result, directory.name):
        raise _damaged(path, fault)
    return result


def read_failure(directory: Path) -> str | None:
    """Returns why a cell failed; None if it did not, or is finished since.

    Raises:
      ValueError: if the file is damaged.
    """
    path = directory / FAILURE
    if not path.exists() or (directory / CELL).exists():
        return None
    failure = rundir.read_json(path, _remedy(directory))
    if not (isinstance(failure, dict) and isinstance(failure.get("message"), str)):
        raise _damaged(path, "it has no message")
    return failure["message"]


def read_outcome(directory: Path, like: chex.ArrayTree) -> methods.Outcome:
    """Returns the outcome that :func:`write` wrote.

    Args:
      directory: of the cell, finished.
      like: parameters of the network, of which structure and shapes are taken.

    Raises:
      ValueError: if the files are damaged, of another network, or not those that were
        written with ``cell.json``, which has the digest of the parameters kept.
    """
    result = read(directory)
    history = methods.History(
        tuple(result["history"]), result["prunes"], result["steps"], result["seconds"]
    )
    params, mask = (_read_tree(directory / name, like) for name in (PARAMS, MASK))
    if experiment.digest(masks.apply(mask, params)) != result.get("params_sha256"):
        fault = f"what {MASK} keeps of it has not the params_sha256 of {CELL}"
        raise _damaged(directory / PARAMS, fault)
    return methods.Outcome(params, mask, history)


def _read_tree(path: Path, like: chex.ArrayTree) -> chex.ArrayTree:
    wanted = dict(trees.named_leaves(like))
    try:
        with np.load(path) as arrays:
            leaves = [arrays[name] for name in wanted]
    except Exception as error:  # a damaged archive raises anything
        raise _damaged(path, error) from None
    for (name, leaf), found in zip(wanted.items(), leaves):
        is_scalar = path.name == MASK and not found.shape  # where nothing is pruned
        if found.shape != leaf.shape and not is_scalar:
            raise _damaged(path, f"{name} is {found.shape}, not {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), jax.device_put(leaves))


def _remedy(directory: Path) -> str:
    return f"remove '{directory}', and this one cell is run again"


def _damaged(path: Path, fault: object) -> ValueError:
    return ValueError(f"'{path}' is damaged ({fault}); {_remedy(path.parent)}")


def _evaluate(
    parts: Parts, params: chex.ArrayTree, examples: training.Batch
) -> training.Metrics:
    # Compiled once for all cells of a network, which have these in common.
    return _jitted_evaluate(
        params, {}, examples, model=parts.model, preprocess=parts.preprocess
    )


_jitted_evaluate = jax.jit(training.evaluate, static_argnames=("model", "preprocess"))


def _plain(value: Any) -> Any:
    """A value of a history's row as JSON takes it, which has no NaN."""
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if np.ndim(value) == 0:
        return experiment.rounded(float(value))
    return [_plain(item) for item in np.asarray(value).tolist()]
