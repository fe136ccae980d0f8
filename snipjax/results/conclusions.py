"""Sentences about the tables, each computed from the figures of a table's rows."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from snipjax.results import published
from snipjax.results.rows import by_network, layer_densities, one_per_network
from snipjax.results.words import (
    agree,
    counted,
    dataset_name,
    label,
    listed,
    method_name,
    network_name,
    on_data,
    percent,
    points,
    share,
    signed,
    title,
)

Row = Any  # of snipjax.results.rows.aggregate's table, as itertuples gives it


def analysis(table: pd.DataFrame) -> list[str]:
    """Returns sentences on single rows and networks."""
    rows = list(table.itertuples())
    by_heart = [row for row in rows if row.random_labels and _is(row.train_error)]
    measured = _with_labels(rows)
    sentences = [
        f"On {_with_data(group[0])} the mean test error is "
        f"{listed(_error_and_loss(row, row.error) for row in group)}."
        for group in by_network(measured)
    ]
    sentences += [
        f"On {_with_data(group[0])} with random labels, which can only be learnt by "
        "heart, the mean training error before the last evaluation is "
        f"{listed(_error_and_loss(row, row.train_error) for row in group)}."
        for group in by_network(by_heart)
    ]
    pruned = [row for row in measured + by_heart if row.method != "none"]
    if lost := [row for row in pruned if not _is(row.loss)]:
        sentences.append(
            f"{counted(lost, 'pruned row')} {agree(lost, 'has', 'have')} no dense "
            "network trained the same way to be compared with."
        )
    if gaps := [row for row in measured if _is(row.last_error)]:
        row = max(gaps, key=lambda row: abs(row.error - row.last_error))
        sentences.append(
            "Between the checkpoint chosen on validation and the last step the mean "
            f"test error differs by at most {points(abs(row.error - row.last_error))} "
            f"({title(row)})."
        )
    if spread := [row for row in measured if _is(row.std)]:
        row = max(spread, key=lambda row: row.std)
        sentences.append(
            f"The largest standard deviation over seeds is {points(row.std)} "
            f"({title(row)}, {counted(row.networks, 'seed')})."
        )
    errors = [error for row in rows for error in row.networks["test_error"]]
    if without := sum(map(math.isnan, errors)):
        sentences.append(
            f"{without} of {len(errors)} networks have no test error, and means are "
            "over the others: they were not evaluated, or did not learn."
        )
    return sentences


def conclusion(table: pd.DataFrame) -> list[str]:
    """Returns sentences on all rows together."""
    rows = [row for row in table.itertuples() if _is(row.error)]
    if not rows:
        return ["No run has a test error yet, so nothing can be concluded."]
    networks = sum(len(row.networks) for row in rows)
    single = [row for row in rows if len(row.networks) == 1]
    with_labels = _with_labels(rows)
    same = "the dense network trained the same way,"
    sentences = [
        f"The table rests on {counted(networks, 'trained network')}: "
        f"{listed(map(on_data, rows))}.",
        *against_published(rows),
        *_against_dense(with_labels, f"Against {same}"),
        *_against_dense(
            [row for row in rows if row.random_labels],
            f"On random labels, by training error against {same}",
        ),
        *_against_rivals(with_labels),
        *layer_sentences(table[table["error"].notna()]),
    ]
    if single:
        sentences.append(
            f"{len(single)} of {counted(rows, 'row')} "
            f"{agree(single, 'rests', 'rest')} on a single seed, and so "
            f"{agree(single, 'says', 'say')} nothing of the spread."
        )
    return sentences


def against_published(rows: Sequence[Row]) -> list[str]:
    """Returns sentences that compare rows with the published figures."""
    compared = [row for row in rows if _is(row.difference)]
    if not compared:
        return ["None of the rows has a published figure to be compared with."]
    within = [
        f"{sum(abs(row.difference) <= bound + 1e-9 for row in compared)} within "
        f"{bound} points"
        for bound in (0.2, 0.5, 1.0)
    ]
    far, near = (of(compared, key=lambda row: abs(row.difference)) for of in (max, min))
    sentences = [
        f"Of {counted(compared, 'row')} with a published figure: {listed(within)} of "
        "it.",
        f"The closest is {title(near)}, {_beside_published(near)}"
        + ("" if far is near else f"; the farthest {title(far)}")
        + ("." if far is near else f", {_beside_published(far)}."),
    ]
    epochs = [row.networks["epochs"].min() for row in compared]
    short = [value for value in epochs if value < published.EPOCHS]
    if short:
        sentences.append(
            f"{len(short)} of these {len(compared)} {agree(short, 'was', 'were')} "
            f"trained for fewer epochs than the paper's {published.EPOCHS}, the fewest "
            f"being {min(short):g}."
        )
    if otherwise := [row for row in compared if row.training]:
        how = dict.fromkeys(f"{on_data(row)} with {row.training}" for row in otherwise)
        sentences.append(
            f"{len(otherwise)} of these {len(compared)} "
            f"{agree(otherwise, 'was', 'were')} trained with other settings than the "
            f"paper's: {'; '.join(how)}."
        )
    return sentences


def layer_sentences(table: pd.DataFrame) -> list[str]:
    """Returns sentences on where SNIP prunes least and most, one for every network."""
    sentences = []
    for row in one_per_network(table):
        densities = layer_densities(row)
        if row.method == "snip" and len(densities) > 1:
            most, least = (
                of(densities, key=densities.__getitem__) for of in (min, max)
            )
            sentences.append(
                f"On {_with_data(row)} at {share(row.sparsity)}%, SNIP prunes most in "
                f"{most}, of which it keeps {densities[most]:.3g}%, and least in "
                f"{least}, of which it keeps {densities[least]:.3g}%."
            )
    return sentences


def paragraphs_of_table_1(rows: Sequence[Row]) -> list[str]:
    """Returns paragraphs on each network, on published figures, and on costs.

    The rows of table 1 have a ``cost`` in dense trainings.
    """
    if not rows:
        return ["Nothing is measured yet."]
    single = "All rests on a single seed, and says nothing of the spread."
    is_single = max(len(row.networks) for row in rows) == 1
    paragraphs = [
        *map(_on_a_network, by_network(rows)),
        [*against_published(rows), *_against_line(rows)],
        [*_costs(rows), *([single] if is_single else [])],
    ]
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def line_to_beat(dataset: str, network: str) -> dict[float, float]:
    """Returns the published errors of sparse momentum on a network, by sparsity.

    Example:
      >>> line_to_beat("mnist", "lenet_5_caffe")
      {0.98: 0.76, 0.99: 0.83}
    """
    place = dataset, network, "Sparse momentum"
    return {
        row.sparsity: row.error
        for row in published.ROWS
        if (row.dataset, row.network, row.method) == place
    }


def _is(value: float) -> bool:
    return not math.isnan(value)


def _with_labels(rows: Iterable[Row]) -> list[Row]:
    """Returns rows with a test error that says something of the training."""
    return [row for row in rows if _is(row.error) and not row.random_labels]


def _with_data(row: Row) -> str:
    return f"{network_name(row.model)} ({dataset_name(row.dataset)})"


def _error_and_loss(row: Row, error: float) -> str:
    loss = f" ({signed(row.loss)} points to dense)" if _is(row.loss) else ""
    return f"{percent(error)} for {label(row)}{loss}"


def _beside_published(row: Row) -> str:
    distance = points(abs(row.difference))
    side = f"{distance} {'above' if row.difference > 0 else 'below'}"
    if distance == points(0.0):
        side = "equal to it"
    return f"{percent(row.error)} against {row.published}%, {side}"


def _against_dense(rows: Sequence[Row], beginning: str) -> list[str]:
    sentences = []
    compared = [row for row in rows if _is(row.loss)]
    for method in dict.fromkeys(row.method for row in compared):
        group = [row for row in compared if row.method == method]
        worst, best = (of(group, key=lambda row: row.loss) for of in (max, min))
        equal = sum(row.loss <= 0 for row in group)
        if worst.loss < 0:
            gain = points(-worst.loss)
            extremes = f"the smallest gain of {method_name(method)} is {gain}"
        else:
            loss = f"{signed(worst.loss)} points"
            extremes = f"the largest loss of {method_name(method)} is {loss}"
        extremes += f" ({title(worst)})"
        if best is not worst:
            other = f"the smallest {signed(best.loss)} points"
            if best.loss < 0:
                gain = "" if worst.loss < 0 else "gain "
                other = f"the largest {gain}{points(-best.loss)}"
            extremes += f" and {other} ({title(best)})"
        sentences.append(
            f"{beginning} {extremes}; no worse than dense: {equal} of "
            f"{counted(group, 'row')}."
        )
    return sentences


def _against_rivals(rows: Sequence[Row]) -> list[str]:
    """Compares SNIP with each method at the same sparsity of the same network."""

    def place(row: Row) -> tuple[Any, ...]:
        return row.dataset, row.model, row.asked, row.networks["steps"].iloc[0]

    snip: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.method == "snip":
            snip.setdefault(place(row), row)  # the one with the fewest settings first
    sentences = []
    for method in dict.fromkeys(row.method for row in rows):
        pairs = [
            (snip[place(row)], row)
            for row in rows
            if row.method == method and place(row) in snip
        ]
        if method in ("snip", "none") or not pairs:
            continue
        lower = sum(ours.error < theirs.error for ours, theirs in pairs)
        ours, theirs = max(pairs, key=lambda pair: abs(pair[0].error - pair[1].error))
        sentences.append(
            f"At equal sparsity, network and steps, SNIP has the lower error than "
            f"{method_name(method)} in {lower} of {counted(pairs, 'comparison')}; the "
            f"largest difference is {percent(ours.error)} against "
            f"{percent(theirs.error)} ({title(ours)})."
        )
    return sentences


def _on_a_network(rows: Sequence[Row]) -> list[str]:
    name = network_name(rows[0].model)
    dense = next((row for row in rows if row.method == "none"), None)
    pruned = [row for row in rows if row.method != "none"]
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
    for ours in (row for row in pruned if row.method == "snip" and _is(row.published)):
        # Those pruned at least as much, as SNIP's rivals at less have it easier.
        rivals = [
            row
            for row in pruned
            if row.method != "snip" and row.asked >= ours.asked - 5e-4
        ]
        lower = [row for row in rivals if row.error < ours.error]
        if rivals:
            sentences.append(
                f"{title(ours)} has {percent(ours.error)}; of {counted(rivals, 'row')} "
                f"of other methods pruned at least as much, {_number(lower)} "
                f"{agree(lower, 'has', 'have')} a lower error"
                + (f" ({listed(map(_brief, lower))})." if lower else ".")
            )
    return sentences


def _against_line(rows: Sequence[Row]) -> list[str]:
    """Compares rows with sparse momentum, at the sparsities where it is published."""
    pairs = [
        (row, theirs)
        for row in rows
        if (theirs := line_to_beat(row.dataset, row.model).get(row.asked)) is not None
    ]
    if not pairs:
        return []
    below = [row for row, theirs in pairs if row.error < theirs]
    near, theirs = min(pairs, key=lambda pair: pair[0].error - pair[1])
    return [
        f"At the sparsities where sparse momentum is published, {_number(below)} of "
        f"{counted(pairs, 'row')} {agree(below, 'is', 'are')} below its line"
        + (f" ({listed(map(title, below))})" if below else "")
        + f"; against it the best is {title(near)}, {percent(near.error)} "
        f"against its {theirs}% ({points(abs(near.error - theirs))} "
        f"{'below' if near.error < theirs else 'above'})."
    ]


def _costs(rows: Sequence[Row]) -> list[str]:
    costed = [row for row in rows if _is(row.cost) and row.method != "none"]
    if not costed:
        return []
    cheap, dear = (of(costed, key=lambda row: row.cost) for of in (min, max))
    sentence = f"The cheapest is {title(cheap)}, {cheap.cost:.2f} dense trainings"
    if dear is not cheap:
        sentence += f", and the dearest {title(dear)}, {dear.cost:.2f}"
    return [f"{sentence}."]


def _number(rows: Sequence[Row]) -> str:
    return str(len(rows) or "none")


def _brief(row: Row) -> str:
    return f"{method_name(row.method)} at {share(row.asked)}%"


def _figure(row: Row) -> str:
    return f"{percent(row.error)} ({_brief(row)})"
