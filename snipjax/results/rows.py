"""Rows of the tables: networks that differ only in their seed, over all seeds."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from snipjax._src.text import natural_order
from snipjax.build import ENDS_AT_SPARSITY, METHODS
from snipjax.results import published
from snipjax.results.words import flag_value
from snipjax.schema import FIELDS

Row = Any  # of the table, as itertuples gives it
Settings = tuple[tuple[str, str], ...]
KEY = ["dataset", "model", "method", "asked", "settings"]
COLUMNS = (
    *KEY,
    *("sparsity", "error", "std", "last_error", "last_std", "train_error"),
    *("published", "reference", "link", "training", "random_labels"),
    *("dense", "dense_train_error", "difference", "loss", "networks"),
)
RIVALS = tuple(name for name in published.NAMES if name not in ("none", "snip"))
_IN_COLUMNS = ("dataset.name", "model.name", "prune.method", "prune.sparsity", "seed")
_WITHOUT_EFFECT = (
    *("train.checkpoint_every", "train.steps_per_dispatch", "prune.pretrained"),
    "prune.effective",
    *("seeds", "seeds_at_once", "signal_seeds", "vary"),
)
_TRAINING = ("train", "optimizer", *RIVALS)  # sections
_MOVES = "optimizer.sparse."  # the optimizer that moves the mask: about pruning
_OF_A_DENSE_START = ("prune.method", "prune.prunable", "prune.exclude")
_ON_MNIST = {field.name: flag_value(field.default) for field in FIELDS}
# The paper computes saliency on a training batch, of 128 examples on CIFAR-10.
_ON_CIFAR10 = {
    **_ON_MNIST,
    "prune.batch_size": "128",
    "train.batch_size": "128",
    "optimizer.decay_every": "30000",
    "train.flip": "True",
    "train.translate": "4",
}
# The number of steps is said in epochs.
_NOT_OPTIMIZATION = ("train.steps", "train.eval_every", "train.remat")


def aggregate(networks: pd.DataFrame) -> pd.DataFrame:
    r"""Returns the table of networks that differ only in their seed, a row for each.

    The published figure stands where pruning, network and data are the paper's; the
    training may differ, and the mask stays. The method of a mask that moves is the
    optimizer that moves it, and how it was pruned at first is a setting. A seed that
    occurs twice counts once.

    .. math:: error = \frac{1}{n} \sum_{i=1}^n e_i, \qquad
              std = \sqrt{\frac{1}{n - 1} \sum_{i=1}^n (e_i - error)^2}

    over the test errors :math:`e_i` of :math:`n` seeds.

    Args:
      networks: table of :func:`snipjax.results.read`.

    Returns:
      A table ordered by network, data set, method, settings and sparsity. ``error``,
      ``last_error`` and ``train_error`` are means over the seeds in percent, ``std``
      and ``last_std`` deviations of a sample (n - 1) in percentage points;
      ``difference`` is the error less the published one, ``loss`` the error less the
      error of the dense network trained the same way, on random labels the training
      error. ``settings`` are fields that tell rows apart or are not the paper's,
      ``training`` other settings of training unlike the paper's, ``networks`` the
      networks of the row. Missing figures are NaN.

    Example:
      .. code-block:: python

        from snipjax import results

        table = results.aggregate(results.read("runs"))
        print(table[["method", "sparsity", "error", "published"]])
    """
    if networks.empty:
        return pd.DataFrame(columns=[*COLUMNS])
    moves = networks[_MOVES + "name"]
    is_dense = (networks["method"] == "none") & (moves == "static")
    is_dense |= networks["sparsity"] == 0
    ends = networks[_MOVES + "sparsity"].where(moves.isin(ENDS_AT_SPARSITY))
    asked = ends.fillna(networks["prune.sparsity"])
    methods = networks["method"].where(moves == "static", moves)
    keyed = networks.assign(
        method=methods.mask(is_dense, "none"), asked=asked.mask(is_dense, 0.0).round(4)
    )
    keyed["settings"] = [_settings(record) for record in keyed.to_dict("records")]
    keyed = keyed.drop_duplicates([*KEY, "seed"]).sort_values("seed", kind="stable")
    groups = dict(list(keyed.groupby(KEY, sort=False)))
    rows = [_row(dict(zip(KEY, key)), group, groups) for key, group in groups.items()]
    trained = [(*key[:2], _training(key[-1])) for key in groups]
    dense = {how: row for how, row in zip(trained, rows) if row["method"] == "none"}
    for how, row in zip(trained, rows):
        reference = dense.get(how, {}) if row["method"] != "none" else {}
        row["dense"] = reference.get("error", math.nan)
        row["dense_train_error"] = reference.get("train_error", math.nan)
        row["difference"] = row["error"] - row["published"]
        row["loss"] = row["error"] - row["dense"]
        if row["random_labels"]:
            row["loss"] = row["train_error"] - row["dense_train_error"]
    return pd.DataFrame(sorted(rows, key=_order), columns=[*COLUMNS])


def layer_densities(row: Row) -> dict[str, float]:
    """Returns the share kept of every weight matrix or kernel of a row, in percent.

    Shares are means over the seeds, from the first layer to the last. Biases are left
    out: except in a GRU's gates they start at zero, so that SNIP prunes them all.
    """
    layers = pd.DataFrame(
        [
            {
                "layer": layer["path"].removesuffix("/kernel"),
                "share": 100 * layer["kept"] / layer["total"],
            }
            for network in row.networks["layers"]
            for layer in network
            if len(layer["shape"]) > 1 and layer["total"]
        ],
        columns=["layer", "share"],
    )
    means = layers.groupby("layer")["share"].mean().to_dict()
    is_recurrent = any(name.startswith("cell/") for name in means)

    def depth(name: str) -> tuple[Any, ...]:
        # Trees are sorted by name: a cell stands after both dense layers.
        kind = re.split(r"[_/]", name)[0]
        place = {"Conv": 0, "Block": 1, "Dense": 3}.get(kind, 2)
        is_first = is_recurrent and name == "Dense_0"
        return 0 if is_first else place, natural_order(name)

    return {name: means[name] for name in sorted(means, key=depth)}


def one_per_network(table: pd.DataFrame) -> list[Row]:
    """Returns a pruned row of each network, at the sparsity that most of them have.

    Rows are of SNIP with the default settings where there is one.
    """
    rows = [row for row in table.itertuples() if row.method != "none"]
    networks = by_network(row for row in rows if layer_densities(row))
    have = [s for rows in networks for s in {row.asked for row in rows}]
    common = max(have, key=lambda value: (have.count(value), value), default=0.0)

    def unfitness(row: Row) -> tuple[Any, ...]:
        return row.method != "snip", row.settings != "", abs(row.asked - common)

    return [min(rows, key=unfitness) for rows in networks]


def by_network(rows: Iterable[Row]) -> list[list[Row]]:
    """Returns rows in groups of one network and data set, in their order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset), []).append(row)
    return list(groups.values())


def _settings(network: Mapping[str, Any]) -> Settings:
    """Returns fields that tell rows apart and have no column, with their values."""

    is_dense = network["method"] == "none"
    is_moving = network["method"] == network[_MOVES + "name"]

    def has_effect(name: str) -> bool:
        section = _section(name)
        if section in METHODS:
            return not is_dense and section == network["prune.method"]
        if is_moving and section == "prune" and network["prune.method"] == "none":
            return name in _OF_A_DENSE_START
        if name.startswith(_MOVES):
            return is_moving and name != _MOVES + "name"
        if section in ("train", "optimizer") and network["train.steps"] == 0:
            return name == "train.steps"
        return not (is_dense and _is_about_pruning(name))

    names = _ON_MNIST.keys() - {*_IN_COLUMNS, *_WITHOUT_EFFECT}
    if is_moving:
        names |= {"prune.method", "prune.sparsity"}
        ends = network["method"] in ENDS_AT_SPARSITY
        names -= {_MOVES + "sparsity" if ends else "prune.sparsity"}
    return tuple(
        (name, flag_value(network[name])) for name in sorted(names) if has_effect(name)
    )


def _section(name: str) -> str:
    return name.partition(".")[0]


def _is_about_pruning(name: str) -> bool:
    is_pruning = _section(name) in ("prune", *METHODS) or name == "init.scored"
    return is_pruning or name.startswith(_MOVES)


def _training(settings: Settings) -> Settings:
    return tuple(pair for pair in settings if not _is_about_pruning(pair[0]))


def _row(
    key: dict[str, Any], group: pd.DataFrame, keys: Iterable[tuple[Any, ...]]
) -> dict[str, Any]:
    papers = _ON_CIFAR10 if key["dataset"] == "cifar10" else _ON_MNIST
    changed = [pair for pair in key["settings"] if pair[1] != papers[pair[0]]]
    unlike_paper = {
        name
        for name, _ in changed
        if name.startswith(_MOVES)
        or (_section(name) not in _TRAINING and name != "model.dtype")
    }
    same = tuple(key[name] for name in KEY[:3])
    others = [dict(other[-1]) for other in keys if other[:3] == same]
    varied = {n for n, value in changed if any(o.get(n) != value for o in others)}
    figure = None
    is_moving = key["method"] == group[_MOVES + "name"].iloc[0]
    if not unlike_paper and not is_moving:
        network = key["dataset"], key["model"], key["method"]
        figure = published.find(*network, key["asked"])
    return {
        **key,
        "settings": _text(pair for pair in changed if pair[0] in unlike_paper | varied),
        "sparsity": 0.0 if key["method"] == "none" else group["sparsity"].mean(),
        "error": group["test_error"].mean(),
        "std": group["test_error"].std(),
        "last_error": group["test_error_last"].mean(),
        "last_std": group["test_error_last"].std(),
        "train_error": group["train_error"].mean(),
        "published": figure.error if figure else math.nan,
        "reference": figure.reference if figure else "",
        "link": figure.link if figure else "",
        "training": _text(
            pair
            for pair in changed
            if pair[0] not in unlike_paper and pair[0] not in _NOT_OPTIMIZATION
        ),
        "random_labels": bool(group["dataset.random_labels"].iloc[0]),
        "networks": group,
    }


def _text(settings: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings)


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    def place(name: str, names: Collection[str]) -> tuple[int, str]:
        return ([*names].index(name) if name in names else len(names), name)

    network = place(row["model"], published.NETWORKS), row["dataset"]
    method = place(row["method"], ("none", "snip"))
    return *network, method, row["settings"], row["sparsity"]
