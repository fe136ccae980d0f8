"""Rows of the table: networks that differ only in their seed.

A row knows its means and deviations, the settings that tell it from others, and the
published figure and the dense network it is compared with.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from snipjax import config as configs
from snipjax.results import published
from snipjax.results.report.runs import Member, Run, metrics_of
from snipjax.results.report.values import finite, flag_value, printable


class Row(NamedTuple):
    """Networks that differ only in their seed: a row of the table.

    Errors are means over the seeds in percent, deviations those of a sample (n - 1)
    in percentage points; None where there are too few.
    """

    dataset: str
    model: str
    method: str
    settings: str  # what tells it from the default or from other rows
    sparsity: float
    members: list[Member]  # by seed
    runs: list[Run]  # of the members
    error: float | None
    std: float | None
    last_error: float | None
    last_std: float | None
    published: published.Row | None
    training: str  # settings of it unlike the paper's, but for how long it took
    dense: float | None  # error of the dense network trained the same way
    train_error: float | None  # over the steps before the last evaluation
    dense_train_error: float | None

    @property
    def has_random_labels(self) -> bool:
        """Whether the training labels say nothing, so that test errors do not."""
        return self.runs[0].config["dataset.random_labels"] is True

    @property
    def difference(self) -> float | None:
        """Measured less published error, in percentage points."""
        return _less(self.error, self.published.error if self.published else None)

    @property
    def loss(self) -> float | None:
        """Error less that of the dense network, in percentage points.

        On random labels it is the training error, for the test error is of guessing.
        """
        if self.has_random_labels:
            return _less(self.train_error, self.dense_train_error)
        return _less(self.error, self.dense)


_OF_A_MEMBER = ("seed", "seeds", "prune.sparsity")
_IN_COLUMNS = ("dataset.name", "model.name", "prune.method", *_OF_A_MEMBER)
_WITHOUT_EFFECT = (
    *("train.checkpoint_every", "train.steps_per_dispatch"),
    *("seeds", "seeds_at_once", "signal_seeds", "vary"),
)
_METHOD_ORDER = ("none", "snip")
# What the paper does otherwise on CIFAR-10 than the default has it, which is its
# protocol on MNIST. It computes saliency of a training batch.
_ON_CIFAR10 = {
    "prune.batch_size": "128",
    "train.batch_size": "128",
    "train.decay_every": "30000",
    "train.flip": "True",
    "train.translate": "4",
}
# The number of steps is said in epochs.
_NOT_OPTIMIZATION = ("train.steps", "train.eval_every", "train.remat")


def rows(runs: Iterable[Run]) -> list[Row]:
    """Returns the rows of the table: networks that differ only in their seed.

    The published figure is given where pruning, network and data are as in the paper,
    which the configuration's defaults are, but that saliency is of 128 examples on
    CIFAR-10; how it was trained is not asked. A seed that occurs twice counts once.
    """
    groups: dict[tuple[Any, ...], dict[int, tuple[Member, Run]]] = {}
    for run in runs:
        for member in run.members:
            # A whole number of connections is kept: 0.98 may be 0.980004.
            named = (member.dataset, member.model, member.method)
            key = *named, round(member.sparsity, 4), _settings(run, member)
            groups.setdefault(key, {}).setdefault(member.seed, (member, run))
    table = [
        _row(key, [seeds[seed] for seed in sorted(seeds)], list(groups))
        for key, seeds in groups.items()
    ]
    dense = {
        (row.dataset, row.model, _training(key[-1])): row
        for key, row in zip(groups, table)
        if row.method == "none"
    }
    table = [
        _beside_dense(row, dense.get((row.dataset, row.model, _training(key[-1]))))
        for key, row in zip(groups, table)
    ]
    return sorted(table, key=_order)


def _beside_dense(row: Row, dense: Row | None) -> Row:
    if row.method == "none" or dense is None:
        return row
    return row._replace(dense=dense.error, dense_train_error=dense.train_error)


def _settings(run: Run, member: Member) -> tuple[tuple[str, str], ...]:
    """Fields that tell rows apart and have no column, as pairs of name and value."""
    return tuple(
        (printable(name), printable(flag_value(value)))
        for name, value in sorted(run.config.items())
        if name not in _IN_COLUMNS + _WITHOUT_EFFECT
        and not (member.method == "none" and _is_of_pruning(name))
        and not (run.config["train.steps"] == 0 and _is_of_the_schedule(name))
    )


def _training(settings: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in settings if not _is_of_pruning(pair[0]))


def _is_of_pruning(name: str) -> bool:
    """Whether a field has no effect on a dense network."""
    return name.startswith("prune.") or name == "init.scored"


def _is_of_the_schedule(name: str) -> bool:
    """Whether a field has no effect on a network that is not trained."""
    return name.startswith("train.") and name != "train.steps"


def _row(
    key: tuple[Any, ...],
    group: Sequence[tuple[Member, Run]],
    keys: Sequence[tuple[Any, ...]],
) -> Row:
    dataset, model, method, sparsity, settings = key
    default = {
        name: flag_value(value) for name, value in configs.fields(configs.default())
    }
    if dataset == "cifar10":
        default |= _ON_CIFAR10
    changed = [(name, value) for name, value in settings if value != default.get(name)]
    unlike_paper = {
        name
        for name, _ in changed
        if not name.startswith("train.") and name != "model.dtype"
    }
    others = [dict(other[-1]) for other in keys if other[:3] == key[:3]]
    varied = {
        name
        for name, value in changed
        if any(other.get(name) != value for other in others)
    }
    errors = [member.test_error for member, _ in group]
    last_errors = [member.test_error_last for member, _ in group]
    return Row(
        dataset=dataset,
        model=model,
        method=method,
        settings=_listed(pair for pair in changed if pair[0] in unlike_paper | varied),
        sparsity=sparsity,
        members=[member for member, _ in group],
        runs=[run for _, run in group],
        error=_mean(errors),
        std=_std(errors),
        last_error=_mean(last_errors),
        last_std=_std(last_errors),
        published=None
        if unlike_paper
        else published.find(dataset, model, method, sparsity),
        training=_listed(
            pair
            for pair in changed
            if pair[0] not in unlike_paper and pair[0] not in _NOT_OPTIMIZATION
        ),
        dense=None,
        train_error=_mean(_train_error(member, run) for member, run in group),
        dense_train_error=None,
    )


def _listed(settings: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings)


def _train_error(member: Member, run: Run) -> float | None:
    """A network's training error at the last evaluation, which its result has not."""
    lines = metrics_of(run, member)
    return finite(lines[-1].get("train_error")) if lines else None


def _order(row: Row) -> tuple[Any, ...]:
    def place(name: str, names: Iterable[str]) -> tuple[int, str]:
        names = list(names)
        return (names.index(name) if name in names else len(names), name)

    return (
        place(row.model, published.NETWORKS),
        row.dataset,
        place(row.method, _METHOD_ORDER),
        row.settings,
        row.sparsity,
    )


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _std(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def members_of(table: Iterable[Row]) -> list[Member]:
    """Returns the networks of all rows."""
    return [member for row in table for member in row.members]


def by_network(table: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Groups rows by model and data set, in the order of the table."""
    networks: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        networks.setdefault((row.model, row.dataset), []).append(row)
    return networks
