"""Columns, captions and entries of table 1, whatever it is written in."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from snipjax.results import published
from snipjax.results.report.titles import DATASETS
from snipjax.results.report.wording import between, listed, plain, signed
from snipjax.studies.table1 import config as configs
from snipjax.studies.table1.aggregation import Row, own_figures

SPARSITY, ERROR, DEVIATION = "Sparsity", "Test error, mean", "Standard deviation"
PUBLISHED, COST = "Published test error", "Training cost"
_PER_NETWORK = (
    f"{SPARSITY} (%)",
    f"{ERROR} (%)",
    f"{DEVIATION} (points)",
    f"{PUBLISHED} (%)",
    f"{COST} (dense trainings)",
)
_BEFORE = ("Reference", "Method", "Criterion")
_AFTER = (
    "Needs pretraining",
    "Number of prunings",
    "Additional hyperparameters",
    "Augments the training objective",
    "Depends on the architecture",
)
LEGEND = (
    (
        "Criterion",
        "what decides which connections go; connection sensitivity is the change of "
        "the loss per connection, at initialization.",
    ),
    (
        f"{SPARSITY} (%)",
        "the share of weights and biases that are pruned, here those of the "
        "publications.",
    ),
    (
        f"{ERROR} (%)",
        "measured, of the checkpoint chosen on validation data, mean over seeds. The "
        "smallest of the pruning methods is in bold, and so is the smallest published "
        "one; sparsities differ, and so a smallest error is not all.",
    ),
    (
        f"{DEVIATION} (points)",
        "over seeds, of a sample (n - 1), in percentage points; - for a single seed.",
    ),
    (
        f"{PUBLISHED} (%)",
        "as the SNIP paper's table 1 has it, of the best checkpoint on test data for "
        "Dense and SNIP.",
    ),
    (
        f"{COST} (dense trainings)",
        "measured seconds of training and pruning, pretraining included, in those of "
        "training the dense network with the same seed on the same machine; compiling "
        "and evaluating are left out. Seconds are of wall time: costs can be compared "
        "only if all runs had the machine alike, as when nothing else ran on it. The "
        "published table has no such column.",
    ),
    ("Needs pretraining", "is a dense network trained before any connection goes."),
    (
        "Number of prunings",
        "counted while running: how often connections were removed.",
    ),
    (
        "Additional hyperparameters",
        "counted: the fields of the method's section of the configuration, with which "
        "it was run; for SNIP one more if it trains any of the networks at another "
        "learning rate than the dense one.",
    ),
    (
        "Augments the training objective",
        "does the method train another objective than the network's loss.",
    ),
    (
        "Depends on the architecture",
        "do its rules or settings differ with the layers, as published.",
    ),
)
DETAIL_COLUMNS = (
    "Network",
    "Method",
    "Sparsity (%)",
    "Connections kept",
    "Seeds",
    "Test error, mean (%)",
    "Standard deviation (points)",
    "Test error at the last step, mean (%)",
    "Published test error (%)",
    "Measured less published (points)",
    "Number of prunings",
    "Training (steps)",
    "Training and pruning (seconds)",
    "Training cost (dense trainings)",
)
DETAIL_CAPTION = (
    "Every network, method and sparsity that was run. Steps and seconds (of "
    "wall time) are those of pretraining, training and pruning together, the mean over "
    "seeds."
)


class Column(NamedTuple):
    """A column of table 1: of a network, or of the method."""

    network: str  # its published name, or ""
    name: str

    @property
    def full_name(self) -> str:
        """What it is called where no network stands above it."""
        return f"{self.network}: {self.name}" if self.network else self.name


class Entry(NamedTuple):
    """Text of a table, with a link behind it, and whether it is a column's smallest."""

    text: str
    link: str = ""
    is_best: bool = False


def networks(table: Iterable[Row]) -> list[str]:
    """Returns the networks of a table in their order."""
    return list(dict.fromkeys(row.network for row in table))


def columns(table: Sequence[Row]) -> list[Column]:
    """Returns the columns of table 1."""
    return [
        *(Column("", name) for name in _BEFORE),
        *(
            Column(published.NETWORKS[network], name)
            for network in networks(table)
            for name in _PER_NETWORK
        ),
        *(Column("", name) for name in _AFTER),
    ]


def lines(table: Sequence[Row]) -> list[list[Entry]]:
    """Returns the entries of table 1, a line for each published sparsity of a method.

    The first published sparsity of each network stands in a method's first line, and
    so on, as in the paper.
    """
    names = networks(table)
    best = {
        (network, of): _smallest(row for row in table if row.network == network)(of)
        for network in names
        for of in (_error, _published)
    }
    found = []
    for method in dict.fromkeys(row.method for row in table):
        of_networks = [
            [
                row
                for row in table
                if (row.method, row.network) == (method, network) and row.is_in_paper
            ]
            for network in names
        ]
        for number in range(max(map(len, of_networks))):
            pair = [
                rows[number] if number < len(rows) else None for rows in of_networks
            ]
            found.append(_line(pair, best))
    return found


def detail_lines(table: Sequence[Row]) -> list[list[str]]:
    """Returns the second table: a line for each row, grouped by network."""
    return [
        [
            published.NETWORKS[row.network],
            row.described.name,
            percent(row.sparsity),
            *(_between(row.values("kept")),),
            str(len(row.results)),
            error_text(row),
            plain(row.std),
            plain(row.last_error),
            str(row.published.error) if row.published else "-",
            signed(difference(row)),
            _between(row.values("prunes")),
            _mean_text(row.values("steps")),
            _mean_text(row.values("seconds")),
            plain(row.cost),
        ]
        for network in networks(table)
        for row in table
        if row.network == network
    ]


def difference(row: Row) -> float | None:
    """Returns measured less published error, in percentage points."""
    if row.error is None or row.published is None:
        return None
    return row.error - row.published.error


def caption(config: ConfigDict, table: Sequence[Row]) -> str:
    """Returns what table 1 is of: data, training, seeds, and whether it is complete."""
    dataset = DATASETS.get(config.dataset.name, config.dataset.name)
    steps = [
        f"{training['steps']:,} steps of {published.NETWORKS[name]} at a learning rate "
        f"of {training['learning_rate']:g}"
        for name in networks(table)
        for training in [configs.training(config, name, "dense")]
    ]
    seeds = [len(row.results) for row in table if row.results]
    plural = "" if set(seeds) == {1} else "s"
    sentences = [
        f"Pruning LeNets on {dataset}: measured, and published beside. A dense "
        f"training is {listed(steps)}; figures are means over "
        f"{between(seeds or [0])} seed{plural}."
    ]
    sentences += [
        f"SNIP trains {published.NETWORKS[name]} at {rate:g}."
        for name in networks(table)
        if (rate := config[name].snip_learning_rate) != config[name].learning_rate
    ]
    if config.quick:
        shares = [
            f"1/{configs.QUICK[name]} of the steps of {published.NETWORKS[name]}"
            for name in networks(table)
        ]
        sentences.append(
            f"Quick form, {listed(shares)}: the errors show that the methods run, not "
            "how good they are."
        )
    cells = sum(row.cells for row in table)
    done = sum(len(row.results) for row in table)
    failed = sum(len(row.failures) for row in table)
    if done < cells:
        sentences.append(
            f"{done} of {cells} cells are finished"
            + (f", {failed} failed" if failed else "")
            + "; - stands where there is nothing yet."
        )
    return " ".join(sentences)


def notes(table: Sequence[Row]) -> list[str]:
    """Returns figures that only some methods have, and why cells failed."""
    found = []
    for row in table:
        figures = [
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in own_figures(row).items()
        ]
        if figures:
            found.append(f"{label(row)}, at the end: {listed(figures)}.")
        found += [
            f"{label(row)} failed: {message}" for message in dict.fromkeys(row.failures)
        ]
    return found


def label(row: Row) -> str:
    """Returns what a row is of, e.g. ``SNIP on LeNet-5-Caffe at 98%``."""
    sparsity = "" if row.method == "dense" else f" at {percent(row.wanted)}%"
    return f"{row.described.name} on {published.NETWORKS[row.network]}{sparsity}"


def percent(sparsity: float) -> str:
    """Returns a sparsity in percent, to four digits or as many as keep it below 100.

    Example:
      >>> percent(0.98199), percent(0.99999)
      ('98.2', '99.999')
    """
    text = f"{100 * sparsity:.4g}"
    return text if text != "100" else f"{100 * sparsity:.7g}"


def csv_lines(table: Sequence[Row]) -> list[list[str]]:
    """Returns the first table's head and lines, with a column for every mark in it."""
    head: list[str] = []
    entries = lines(table)
    body: list[list[str]] = [[] for _ in entries]
    for place, column in enumerate(columns(table)):
        is_marked = column.name.startswith((ERROR, PUBLISHED))
        head += [column.full_name, f"{column.full_name}, smallest"][: 1 + is_marked]
        for texts, line in zip(body, entries):
            mark = "yes" if line[place].is_best else "no"
            texts += [line[place].text, mark][: 1 + is_marked]
    return [head, *body]


def error_text(row: Row | None) -> str:
    """Returns the mean error, ``failed`` or a dash."""
    if row is None or row.error is None:
        return "failed" if row is not None and row.failures else "-"
    return plain(row.error)


def _line(
    pair: Sequence[Row | None], best: dict[tuple[str, Callable], str | None]
) -> list[Entry]:
    rows = [row for row in pair if row is not None]
    method, results = rows[0].described, [row for row in rows if row.results]
    prunes = [value for row in rows for value in row.values("prunes")]
    is_dense = rows[0].method == "dense"
    entries = [
        Entry(method.reference, method.link),
        Entry(f"{method.name}: {method.full_name}"),
        Entry(method.criterion),
    ]
    for row in pair:
        if row is None:
            entries += [Entry("-")] * len(_PER_NETWORK)
            continue
        entries += [
            Entry("-" if is_dense else percent(row.sparsity)),
            _marked(row, _error, best, error_text(row)),
            Entry(plain(row.std)),
            _marked(row, _published, best, _published(row) or "-"),
            Entry(plain(row.cost)),
        ]
    return [
        *entries,
        Entry(method.pretraining),
        Entry("-" if is_dense or not results else _between(prunes)),
        Entry("-" if is_dense else str(max(row.hyperparameters for row in rows))),
        Entry(method.objective),
        Entry(method.constraints),
    ]


def _error(row: Row) -> str | None:
    return None if row.error is None else plain(row.error)


def _published(row: Row) -> str | None:
    return str(row.published.error) if row.published else None


def _smallest(rows: Iterable[Row]) -> Callable[[Callable], str | None]:
    """The smallest figure as it is printed, of pruned networks of the paper's rows."""
    pruned = [row for row in rows if row.method != "dense" and row.is_in_paper]

    def smallest(of: Callable[[Row], str | None]) -> str | None:
        return min(filter(None, map(of, pruned)), key=float, default=None)

    return smallest


def _marked(
    row: Row,
    of: Callable[[Row], str | None],
    best: dict[tuple[str, Callable], str | None],
    text: str,
) -> Entry:
    smallest = best[row.network, of]
    is_best = row.method != "dense" and smallest is not None and text == smallest
    return Entry(text, is_best=is_best)


def _between(values: Sequence[float]) -> str:
    return between(values) if values else "-"


def _mean_text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    value = sum(values) / len(values)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
