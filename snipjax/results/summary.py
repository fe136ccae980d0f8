"""The opening of a report: what was trained, how well, and what went wrong."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from snipjax.results.rows import Row, by_network
from snipjax.results.words import (
    between,
    counted,
    kind,
    label,
    listed,
    method_name,
    on_data,
    plain,
    ranges,
    share,
    signed,
    title,
)

CAPTION = "Errors of each method at its least and at its greatest sparsity."
_NETWORKS = 3  # networks and data sets that are named
_LINES = 8


def sentences(table: pd.DataFrame, repeated: int = 0, unfinished: int = 0) -> list[str]:
    """Returns a few sentences that tell the result of all rows of a table.

    Networks have a column ``finite`` where it is known whether their losses were.
    ``repeated`` networks are left out of the table, since it has their seed;
    ``unfinished`` runs have no result.
    """
    rows = list(table.itertuples())
    if not rows:
        return ["No network is finished yet.", *_unfinished(unfinished)]
    failures = [*_not_finite(rows), *_without_error(rows), *_unfinished(unfinished)]
    return [
        _trained(rows),
        *_best([row for row in rows if not row.random_labels]),
        *(failures or ["Every run is finished, and every loss was finite."]),
        *_repeated(repeated),
    ]


def lines(table: pd.DataFrame) -> list[Mapping[str, str]]:
    """Returns a line for each method on each network, if these are several and few."""
    methods: dict[tuple[str, ...], list[Row]] = {}
    for row in table.itertuples():
        if not row.random_labels:
            methods.setdefault((row.model, row.dataset, kind(row)), []).append(row)
    if not 1 < len(methods) <= _LINES:
        return []
    has_several = len({place[:2] for place in methods}) > 1
    return [_line(rows, has_several) for rows in methods.values()]


def count_trained(networks: pd.DataFrame) -> int:
    return int((networks["steps"] > 0).sum()) if len(networks) else 0


def not_finite(row: Row) -> str:
    """Returns the seeds of a row whose loss was not finite, e.g. ``seeds 0-2``."""
    seeds = _not_finite_seeds(row)
    noun = "seed" if len(seeds) == 1 else "seeds"
    return f"{noun} {ranges(seeds)}" if seeds else ""


def mark(row: Row) -> str:
    """Returns a remark beside an error that comes of a loss that was not finite."""
    seeds = not_finite(row)
    return f" (loss not finite: {seeds})" if seeds else ""


def _line(rows: Sequence[Row], has_several: bool) -> dict[str, str]:
    ends = sorted(rows, key=lambda row: row.sparsity)
    ends = [ends[0], *ends[1:][-1:]]

    def span(texts: Iterable[str]) -> str:
        return " to ".join(dict.fromkeys(texts))

    return {
        **({"Network": on_data(rows[0])} if has_several else {}),
        "Method": kind(rows[0]),
        "Sparsity (%)": span(share(row.sparsity) for row in ends),
        "Test error (%)": span(plain(row.error) + mark(row) for row in ends),
        "Measured less dense (points)": span(signed(row.loss) for row in ends),
        "Seeds of each": between(len(row.networks) for row in rows),
    }


def _trained(rows: Sequence[Row]) -> str:
    count = sum(count_trained(row.networks) for row in rows)
    places = [*dict.fromkeys(map(on_data, rows))]
    more = len(places) - _NETWORKS
    shown = places[:_NETWORKS] + ([f"{more} more"] if more > 0 else [])
    methods = [method_name(row.method) for row in rows if row.method != "none"]
    how = ["dense"] if any(row.method == "none" for row in rows) else []
    how += [f"pruned by {listed(methods)}"] if methods else []
    return (
        f"{counted(count, 'network')} {'was' if count == 1 else 'were'} trained: "
        f"{listed(shown)}, {' and '.join(how)}."
    )


def _best(rows: Sequence[Row]) -> Iterable[str]:
    """Tells the least error on each of the first networks, beside the dense one."""
    for group in by_network(row for row in rows if row.error >= 0)[:_NETWORKS]:
        pruned = [row for row in group if row.method != "none"]
        best = min(pruned or group, key=lambda row: row.error)
        if not pruned:
            yield f"{on_data(best)}, dense, has an error of {best.error:.2f}%."
        elif math.isnan(best.loss):
            yield (
                f"The least error of a pruned {on_data(best)} is {best.error:.2f}% "
                f"({label(best)}); no dense network was trained the same way."
            )
        else:
            side = "more" if best.loss > 0 else "less"
            yield (
                f"The least error of a pruned {on_data(best)} is {best.error:.2f}% "
                f"({label(best)}), {abs(best.loss):.2f} points {side} than dense."
            )


def _not_finite_seeds(row: Row) -> list[int]:
    networks = row.networks
    if "finite" not in networks:
        return []
    return [int(seed) for seed in networks["seed"][~networks["finite"]]]


def _not_finite(rows: Sequence[Row]) -> Iterable[str]:
    named = [f"{title(row)}, {seeds}" for row in rows if (seeds := not_finite(row))]
    if named:
        count = sum(len(_not_finite_seeds(row)) for row in rows)
        yield (
            f"The loss of {counted(count, 'network')} was not finite "
            f"({'; '.join(named)}), and the error says nothing of the method."
        )


def _without_error(rows: Sequence[Row]) -> Iterable[str]:
    errors = pd.concat([row.networks["test_error"] for row in rows])
    if count := int(errors.isna().sum()):
        yield f"Without a test error: {counted(count, 'network')}."


def _unfinished(count: int) -> Iterable[str]:
    if count:
        yield f"Unfinished, and listed below: {counted(count, 'run')}."


def _repeated(count: int) -> Iterable[str]:
    if count:
        yield (
            "A seed that was trained twice with the same settings counts once; left "
            f"out: {counted(count, 'network')}."
        )
