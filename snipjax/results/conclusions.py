"""Sentences about the tables, each computed from the figures of their rows."""

import math
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from snipjax.results import published
from snipjax.results.rows import (
    COLUMNS,
    Row,
    by_network,
    layer_densities,
    one_per_network,
)
from snipjax.results.summary import count_trained
from snipjax.results.words import (
    counted,
    label,
    listed,
    method_name,
    on_data,
    share,
    title,
)


def conclusion(table: pd.DataFrame) -> list[str]:
    rows = [row for row in table.itertuples() if not math.isnan(row.error)]
    if not rows:
        return ["No run has a test error yet, so nothing can be concluded."]
    networks = sum(map(count_trained, table["networks"]))
    measured = [row for row in rows if not row.random_labels]
    return [
        f"The table rests on {counted(networks, 'trained network')}: "
        f"{listed(map(on_data, table.itertuples()))}.",
        *against_published(rows),
        *_against_dense(measured, "test"),
        *_against_dense([row for row in rows if row.random_labels], "training"),
        *_against_rivals(measured),
        *layer_sentences(table[table["error"].notna()]),
        *_without_dense(rows),
        *_on_seeds([*table.itertuples()]),
    ]


def against_published(rows: Sequence[Row]) -> list[str]:
    compared = [row for row in rows if not math.isnan(row.difference)]
    if not compared:
        return ["None of the rows has a published figure to be compared with."]
    near = sum(abs(row.difference) <= 0.5 + 1e-9 for row in compared)
    difference = _span(compared, lambda row: row.difference, "+.2f", "points")
    sentences = [
        f"Within 0.5 points of the published figure: {near} of "
        f"{counted(compared, 'row')}; the measured error less the published one is "
        f"{difference}."
    ]
    epochs = [row.networks["epochs"].min() for row in compared]
    if short := [value for value in epochs if value < published.EPOCHS]:
        sentences.append(
            f"Trained for fewer epochs than the paper's {published.EPOCHS}: "
            f"{len(short)} of these {len(compared)}, the fewest {min(short):g}."
        )
    if others := [row for row in compared if row.training]:
        how = dict.fromkeys(f"{on_data(row)} with {row.training}" for row in others)
        sentences.append(
            f"Trained with other settings than the paper's: {len(others)} of these "
            f"{len(compared)}, {'; '.join(how)}."
        )
    return sentences


def layer_sentences(table: pd.DataFrame) -> list[str]:
    """Returns sentences on where SNIP prunes least and most, one for every network."""
    sentences = []
    for row in one_per_network(table):
        densities = layer_densities(row)
        if row.method == "snip" and len(densities) > 1:
            most, least = (
                pick(densities, key=densities.__getitem__) for pick in (min, max)
            )
            sentences.append(
                f"{title(row)}, prunes most in {most}, keeping {densities[most]:.3g}%, "
                f"and least in {least}, keeping {densities[least]:.3g}%."
            )
    return sentences


def on_table_1(rows: Sequence[Row]) -> list[str]:
    """Returns sentences on each network of table 1, on published figures, on costs.

    Its rows have a ``cost`` in dense trainings.
    """
    if not rows:
        return ["Nothing is measured yet."]
    every, rows = rows, [row for row in rows if not math.isnan(row.error)]
    costed = [row for row in rows if row.method != "none" and row.cost >= 0]
    costs = _span(costed, lambda row: row.cost, ".2f", "dense trainings")
    return [
        *(sentence for group in by_network(rows) for sentence in _on_a_network(group)),
        *against_published(rows),
        *([f"The cost of a method is {costs}."] if costed else []),
        *_on_seeds(every),
    ]


def line_to_beat(dataset: str, network: str) -> dict[float, float]:
    """Returns the published errors of sparse momentum on a network, by sparsity.

    >>> line_to_beat("mnist", "lenet_5_caffe")
    {0.98: 0.76, 0.99: 0.83}
    """
    place = dataset, network, "Sparse momentum"
    return {
        row.sparsity: row.error
        for row in published.ROWS
        if (row.dataset, row.network, row.method) == place
    }


def _span(
    rows: Sequence[Row], value: Callable[[Row], float], form: str, unit: str
) -> str:
    """Returns the least and the largest value, each with the title of its row."""
    ends = [pick(rows, key=value) for pick in (min, max)] if rows else []
    texts = [f"{value(row):{form}} {unit} ({title(row)})" for row in ends]
    return " to ".join(dict.fromkeys(texts))


def _in_parentheses(names: Sequence[str]) -> str:
    return f" ({listed(names)})" if names else ""


def _against_dense(rows: Sequence[Row], kind: str) -> list[str]:
    compared = [row for row in rows if not math.isnan(row.loss)]
    sentences = []
    for method in dict.fromkeys(row.method for row in compared):
        group = [row for row in compared if row.method == method]
        loss = _span(group, lambda row: row.loss, "+.2f", "points")
        equal = sum(row.loss <= 0 for row in group)
        labels = " on random labels" if kind == "training" else ""
        sentences.append(
            f"The {kind} error of {method_name(method)}{labels} less the error of the "
            f"dense network trained the same way is {loss}; no worse than dense: "
            f"{equal} of {counted(group, 'row')}."
        )
    return sentences


def _without_dense(rows: Sequence[Row]) -> Iterable[str]:
    """Counts the pruned rows without a dense network trained the same way."""
    pruned = [row for row in rows if row.method != "none"]
    if lost := [
        row
        for row in pruned
        if math.isnan(row.dense_train_error if row.random_labels else row.dense)
    ]:
        yield (
            "Without a dense network trained the same way to be compared with: "
            f"{len(lost)} of {counted(pruned, 'pruned row')}."
        )


def _on_seeds(rows: Sequence[Row]) -> Iterable[str]:
    """Says how far the means of rows can be relied on."""
    known = [row for row in rows if not math.isnan(row.error)]
    if spread := [row for row in known if row.std >= 0 and not row.random_labels]:
        widest = max(spread, key=lambda row: row.std)
        seeds = counted(int(widest.networks["test_error"].count()), "seed")
        yield (
            f"The largest standard deviation over seeds is {widest.std:.2f} points "
            f"({title(widest)}, {seeds})."
        )
    if single := [row for row in known if math.isnan(row.std)]:
        yield (
            "Resting on a single seed, which says nothing of the spread: "
            f"{len(single)} of {counted(known, 'row')}."
        )
    errors = pd.concat([row.networks["test_error"] for row in rows])
    if without := int(errors.isna().sum()):
        yield (
            f"{without} of {counted(errors, 'network')} have no test error; means are "
            "over the others."
        )


def _against_rivals(rows: Sequence[Row]) -> list[str]:
    """Compares SNIP with each method at the same sparsity of the same network."""
    place = ["dataset", "model", "asked", "steps"]
    table = pd.DataFrame(rows, columns=["Index", *COLUMNS])
    table["steps"] = [networks["steps"].iloc[0] for networks in table["networks"]]
    snip = table[table["method"] == "snip"].drop_duplicates(place)
    rivals = table[~table["method"].isin(["snip", "none"])]
    pairs = rivals.merge(snip, on=place, suffixes=("", "_of_snip"))
    return [
        "At equal sparsity, network and steps, SNIP has the lower error than "
        f"{method_name(method)} in {(own['error_of_snip'] < own['error']).sum()} of "
        f"{counted(own, 'comparison')}."
        for method, own in pairs.groupby("method", sort=False)
    ]


def _on_a_network(rows: Sequence[Row]) -> Iterable[str]:
    pruned = [row for row in rows if row.method != "none"]
    if not pruned:
        return
    errors = _span(pruned, lambda row: row.error, ".2f", "%").replace(" %", "%")
    yield f"The error of a pruned network is {errors}."
    for dense in (row for row in rows if row.method == "none"):
        near = sum(row.error <= dense.error + 0.5 for row in pruned)
        yield (
            f"The dense network has {dense.error:.2f}%, and {near} of "
            f"{counted(pruned, 'pruned row')} at most 0.5 points more."
        )
    for ours in (row for row in pruned if row.method == "snip" and row.published > 0):
        # Rivals that are pruned less have it easier.
        rivals = [row for row in pruned if row.method != "snip"]
        rivals = [row for row in rivals if row.asked >= ours.asked - 5e-4]
        lower = [label(row) for row in rivals if row.error < ours.error]
        yield (
            f"Pruned at least as much as SNIP at {share(ours.asked)}%, which has "
            f"{ours.error:.2f}%: {counted(rivals, 'row')} of other methods, "
            f"{len(lower)} with a lower error{_in_parentheses(lower)}."
        )
    line = line_to_beat(rows[0].dataset, rows[0].model)
    if shared := [row for row in pruned if row.asked in line]:
        below = [title(row) for row in shared if row.error < line[row.asked]]
        yield (
            "Below the published line of sparse momentum: "
            f"{len(below)} of {counted(shared, 'row')} at its sparsities"
            f"{_in_parentheses(below)}."
        )
