"""What the figures say: every sentence is computed from the table."""

from collections.abc import Sequence
from typing import Any

from snipjax.results import published
from snipjax.results.report.aggregation import Row, by_network, members_of
from snipjax.results.report.layers import layer_densities, one_per_network
from snipjax.results.report.titles import (
    dataset_name,
    method_name,
    network_name,
    row_label,
    sparsity_text,
    title,
)
from snipjax.results.report.wording import (
    agree,
    counted,
    in_points,
    listed,
    percent,
    signed,
)


def analysis(table: Sequence[Row]) -> list[str]:
    """Returns sentences on single rows and networks, computed from the table."""
    by_heart = [
        row for row in table if row.has_random_labels and row.train_error is not None
    ]
    measured = _with_labels(table)
    sentences = [_against_dense(rows) for rows in by_network(measured).values()]
    sentences += [_learnt_by_heart(rows) for rows in by_network(by_heart).values()]
    lost = [
        row for row in measured + by_heart if row.loss is None and row.method != "none"
    ]
    if lost:
        sentences.append(
            f"{counted(lost, 'pruned row')} {agree(lost, 'has', 'have')} no dense "
            "network trained the same way to be compared with."
        )
    gaps = [
        (abs(row.error - row.last_error), row)
        for row in measured
        if row.last_error is not None
    ]
    if gaps:
        gap, row = max(gaps, key=lambda pair: pair[0])
        sentences.append(
            "Between the checkpoint chosen on validation and the last step the mean "
            f"test error differs by at most {in_points(gap)} ({title(row)})."
        )
    spread = [row for row in measured if row.std is not None]
    if spread:
        row = max(spread, key=lambda row: row.std)
        sentences.append(
            f"The largest standard deviation over seeds is {in_points(row.std)} "
            f"({title(row)}, {counted(row.members, 'seed')})."
        )
    without = sum(member.test_error is None for row in table for member in row.members)
    if without:
        sentences.append(
            f"{without} of {sum(len(row.members) for row in table)} networks have no "
            "test error, and means are over the others: they were not evaluated, or "
            "did not learn."
        )
    return sentences


def conclusion(table: Sequence[Row]) -> list[str]:
    """Returns sentences on all rows together, computed from the table."""
    measured = [row for row in table if row.error is not None]
    if not measured:
        return ["No run has a test error yet, so nothing can be concluded."]
    sentences = [
        f"The table rests on {counted(members_of(measured), 'trained network')}: "
        f"{listed(map(_on_data, measured))}."
    ]
    sentences += _published_sentences(measured)
    sentences += _dense_sentences(
        _with_labels(measured),
        "Against the dense network trained the same way,",
    )
    sentences += _dense_sentences(
        [row for row in table if row.has_random_labels],
        "On random labels, by training error against the dense network trained the "
        "same way,",
    )
    sentences += _rival_sentences(_with_labels(measured))
    sentences += layer_sentences(measured)
    single = [row for row in measured if len(row.members) == 1]
    if single:
        sentences.append(
            f"{len(single)} of {counted(measured, 'row')} "
            f"{agree(single, 'rests', 'rest')} on a single seed, and so "
            f"{agree(single, 'says', 'say')} nothing of the spread."
        )
    return sentences


def _on_data(row: Row) -> str:
    return f"{network_name(row)} on {dataset_name(row)}"


def _with_labels(table: Sequence[Row]) -> list[Row]:
    """Rows with a test error that says something of what was learnt."""
    return [row for row in table if row.error is not None and not row.has_random_labels]


def _published_sentences(measured: Sequence[Row]) -> list[str]:
    compared = [row for row in measured if row.difference is not None]
    if not compared:
        return ["None of the rows has a published figure to be compared with."]
    within = [
        f"{sum(abs(row.difference) <= bound + 1e-9 for row in compared)} within "
        f"{bound} points"
        for bound in (0.2, 0.5, 1.0)
    ]
    sentences = [
        f"Of {counted(compared, 'row')} with a published figure: "
        f"{listed(within)} of it."
    ]
    far = max(compared, key=lambda row: abs(row.difference))
    near = min(compared, key=lambda row: abs(row.difference))
    sentences.append(
        f"The closest is {title(near)}, {_beside_published(near)}"
        + (
            f"; the farthest {title(far)}, {_beside_published(far)}."
            if far is not near
            else "."
        )
    )
    short = [
        row for row in compared if min(m.epochs for m in row.members) < published.EPOCHS
    ]
    if short:
        sentences.append(
            f"{len(short)} of these {len(compared)} {agree(short, 'was', 'were')} "
            f"trained for fewer epochs than the paper's {published.EPOCHS}, the fewest "
            f"being "
            f"{min(m.epochs for m in members_of(short)):g}."
        )
    otherwise = [row for row in compared if row.training]
    if otherwise:
        how = (f"{_on_data(row)} with {row.training}" for row in otherwise)
        sentences.append(
            f"{len(otherwise)} of these {len(compared)} "
            f"{agree(otherwise, 'was', 'were')} trained with other settings than the "
            f"paper's: {'; '.join(dict.fromkeys(how))}."
        )
    return sentences


def _beside_published(row: Row) -> str:
    distance = in_points(abs(row.difference))
    side = f"{distance} {'above' if row.difference > 0 else 'below'}"
    if distance == in_points(0.0):
        side = "equal to it"
    return f"{percent(row.error)} against {row.published.error}%, {side}"


def _dense_sentences(table: Sequence[Row], beginning: str) -> list[str]:
    sentences = []
    compared = [row for row in table if row.loss is not None]
    for method in dict.fromkeys(row.method for row in compared):
        rows_of = [row for row in compared if row.method == method]
        worst = max(rows_of, key=lambda row: row.loss)
        best = min(rows_of, key=lambda row: row.loss)
        equal = [row for row in rows_of if row.loss <= 0]
        extremes = f"{_extreme(worst, method_name(worst))} ({title(worst)})"
        if best is not worst:
            extremes += f" and {_other_extreme(best, worst)} ({title(best)})"
        sentences.append(
            f"{beginning} {extremes}; no worse than dense: {len(equal)} of "
            f"{counted(rows_of, 'row')}."
        )
    return sentences


def _extreme(worst: Row, name: str) -> str:
    """The most that a method loses, or the least that it gains if it never loses."""
    if worst.loss < 0:
        return f"the smallest gain of {name} is {in_points(-worst.loss)}"
    return f"the largest loss of {name} is {signed(worst.loss)} points"


def _other_extreme(best: Row, worst: Row) -> str:
    if best.loss >= 0:
        return f"the smallest {signed(best.loss)} points"
    return f"the largest {'' if worst.loss < 0 else 'gain '}{in_points(-best.loss)}"


def _rival_sentences(measured: Sequence[Row]) -> list[str]:
    """SNIP against every other method at the same sparsity of the same network."""

    def place(row: Row) -> tuple[Any, ...]:
        return row.dataset, row.model, row.sparsity, row.members[0].steps

    snip: dict[tuple[Any, ...], Row] = {}
    for row in measured:
        if row.method == "snip":
            snip.setdefault(place(row), row)  # the one with the fewest settings first
    sentences = []
    for method in dict.fromkeys(row.method for row in measured):
        pairs = [
            (snip[place(row)], row)
            for row in measured
            if row.method == method and place(row) in snip
        ]
        if method in ("snip", "none") or not pairs:
            continue
        lower = sum(ours.error < theirs.error for ours, theirs in pairs)
        ours, theirs = max(pairs, key=lambda pair: abs(pair[0].error - pair[1].error))
        sentences.append(
            f"At equal sparsity, network and steps, SNIP has the lower error than "
            f"{method_name(theirs)} in {lower} of {counted(pairs, 'comparison')}; the "
            f"largest difference is {percent(ours.error)} against "
            f"{percent(theirs.error)} ({title(ours)})."
        )
    return sentences


def layer_sentences(table: Sequence[Row]) -> list[str]:
    """Returns where SNIP prunes least and most: a sentence for every network."""
    sentences = []
    for row in one_per_network(table):
        densities = dict(layer_densities(row))
        if row.method != "snip" or len(densities) < 2:
            continue
        most = min(densities, key=densities.__getitem__)
        least = max(densities, key=densities.__getitem__)
        sentences.append(
            f"On {network_name(row)} ({dataset_name(row)}) at {sparsity_text(row)}, "
            f"SNIP prunes most in {most}, of which it keeps {densities[most]:.3g}%, "
            f"and least in {least}, of which it keeps {densities[least]:.3g}%."
        )
    return sentences


def _against_dense(network_rows: Sequence[Row]) -> str:
    first = network_rows[0]
    parts = [_error_and_loss(row, row.error) for row in network_rows]
    return (
        f"On {network_name(first)} ({dataset_name(first)}) the mean test error is "
        f"{listed(parts)}."
    )


def _learnt_by_heart(network_rows: Sequence[Row]) -> str:
    first = network_rows[0]
    parts = [_error_and_loss(row, row.train_error) for row in network_rows]
    return (
        f"On {network_name(first)} ({dataset_name(first)}) with random labels, which "
        "can only be learnt by heart, the mean training error before the last "
        f"evaluation is {listed(parts)}."
    )


def _error_and_loss(row: Row, error: float) -> str:
    loss = f" ({signed(row.loss)} points to dense)" if row.loss is not None else ""
    return f"{percent(error)} for {row_label(row)}{loss}"
