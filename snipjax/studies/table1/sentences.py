"""What table 1 says: every sentence is computed from its figures."""

from collections.abc import Sequence

from snipjax.results import published
from snipjax.results.report.wording import (
    agree,
    counted,
    in_points,
    listed,
    percent,
    signed,
)
from snipjax.studies.table1.aggregation import Row
from snipjax.studies.table1.tables import difference, label, networks


def analysis(table: Sequence[Row]) -> list[str]:
    """Returns paragraphs: on each network, on what is published, and on costs."""
    measured = [row for row in table if row.error is not None]
    if not measured:
        return ["Nothing is measured yet."]
    paragraphs = [
        _of_network([row for row in measured if row.network == network])
        for network in networks(measured)
    ]
    paragraphs += [
        [*_against_published(measured), *_against_line(measured)],
        _costs(measured),
    ]
    if max(len(row.results) for row in measured) == 1:
        paragraphs[-1].append(
            "All rests on a single seed, and says nothing of the spread."
        )
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _of_network(rows: Sequence[Row]) -> list[str]:
    name = published.NETWORKS[rows[0].network]
    dense = next((row for row in rows if row.method == "dense"), None)
    pruned = [row for row in rows if row.method != "dense"]
    if not pruned:
        return []
    best, worst = (of(pruned, key=lambda row: row.error) for of in (min, max))
    sentence = f"On {name} the smallest error of a pruned network is {_figure(best)}"
    if worst is not best:
        sentence += f" and the largest {_figure(worst)}"
    if dense is not None:
        near = [row for row in pruned if row.error <= dense.error + 0.5]
        sentence += (
            f"; dense it is {percent(dense.error)}, and {_number(near)} of "
            f"{counted(pruned, 'pruned row')} {agree(near, 'is', 'are')} at most 0.5 "
            "points above it"
        )
    sentences = [f"{sentence}."]
    for ours in (row for row in pruned if row.method == "snip" and row.is_in_paper):
        # Those pruned at least as much, as SNIP's rivals at less have it easier.
        rivals = [
            row
            for row in pruned
            if row.method != "snip" and row.wanted >= ours.wanted - 5e-4
        ]
        if rivals:
            lower = [row for row in rivals if row.error < ours.error]
            sentences.append(
                f"{label(ours)} has {percent(ours.error)}; of {counted(rivals, 'row')} "
                f"of other methods pruned at least as much, {_number(lower)} "
                f"{agree(lower, 'has', 'have')} a lower error"
                + (f" ({listed(map(_brief, lower))})." if lower else ".")
            )
    return sentences


def _against_published(measured: Sequence[Row]) -> list[str]:
    compared = [row for row in measured if difference(row) is not None]
    if not compared:
        return ["None of the rows has a published figure to be compared with."]
    within = [
        f"{sum(abs(difference(row)) <= bound + 1e-9 for row in compared)} within "
        f"{bound} points"
        for bound in (0.2, 0.5, 1.0)
    ]
    far = max(compared, key=lambda row: abs(difference(row)))
    return [
        f"Of {counted(compared, 'row')} with a published figure, {listed(within)} of "
        f"it; the farthest is {label(far)}, {percent(far.error)} against "
        f"{far.published.error}% ({signed(difference(far))} points)."
    ]


def _costs(measured: Sequence[Row]) -> list[str]:
    costed = [row for row in measured if row.cost is not None and row.method != "dense"]
    if not costed:
        return []
    cheap, dear = (of(costed, key=lambda row: row.cost) for of in (min, max))
    sentence = f"The cheapest is {label(cheap)}, {cheap.cost:.2f} dense trainings"
    if dear is not cheap:
        sentence += f", and the dearest {label(dear)}, {dear.cost:.2f}"
    return [f"{sentence}."]


def _against_line(measured: Sequence[Row]) -> list[str]:
    """Against sparse momentum, at the sparsities where it is published."""
    pairs = [
        (row, theirs)
        for row in measured
        if (theirs := to_beat(row.dataset, row.network).get(row.wanted)) is not None
    ]
    if not pairs:
        return []
    below = [(row, theirs) for row, theirs in pairs if row.error < theirs]
    near, theirs = min(pairs, key=lambda pair: pair[0].error - pair[1])
    return [
        f"At the sparsities where sparse momentum is published, {_number(below)} of "
        f"{counted(pairs, 'row')} {agree(below, 'is', 'are')} below its line"
        + (f" ({listed(label(row) for row, _ in below)})" if below else "")
        + f"; against it the best is {label(near)}, {percent(near.error)} "
        f"against its {theirs}% ({in_points(abs(near.error - theirs))} "
        f"{'below' if near.error < theirs else 'above'})."
    ]


def to_beat(dataset: str, network: str) -> dict[float, float]:
    """Returns sparse momentum's published errors of a network, by sparsity.

    Example:
      >>> to_beat("mnist", "lenet_5_caffe")
      {0.98: 0.76, 0.99: 0.83}
    """
    return {
        row.sparsity: row.error
        for row in published.ROWS
        if (row.dataset, row.network, row.method)
        == (dataset, network, "Sparse momentum")
    }


def _number(rows: Sequence[object]) -> str:
    return str(len(rows) or "none")


def _brief(row: Row) -> str:
    return f"{row.described.name} at {100 * row.wanted:.4g}%"


def _figure(row: Row) -> str:
    return f"{percent(row.error)} ({_brief(row)})"
