"""Rows of the tables: networks that differ only in their seed, over all seeds."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from snipjax import config as configs
from snipjax._src.names import natural_order
from snipjax.results import published
from snipjax.results.words import flag_value

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
    *("seeds", "seeds_at_once", "signal_seeds", "vary"),
)
_TRAINING = ("train", "optimizer", *RIVALS)  # sections
# The paper's protocol on CIFAR-10 where it differs from its protocol on MNIST, which
# the defaults are; saliency is computed on a training batch.
_ON_CIFAR10 = {
    "prune.batch_size": "128",
    "train.batch_size": "128",
    "optimizer.decay_every": "30000",
    "train.flip": "True",
    "train.translate": "4",
}
# The number of steps is said in epochs.
_NOT_OPTIMIZATION = ("train.steps", "train.eval_every", "train.remat")


def aggregate(networks: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of networks that differ only in their seed, a row for each.

    The published figure stands where pruning, network and data are the paper's, which
    are the defaults, but for saliency of 128 examples on CIFAR-10; the training may
    differ. A seed that occurs twice counts once.

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
    """
    if networks.empty:
        return pd.DataFrame(columns=[*COLUMNS])
    records = networks.to_dict("records")
    is_dense = [_is_dense(record) for record in records]
    keyed = networks.assign(
        method=networks["method"].mask(is_dense, "none"),
        asked=networks["prune.sparsity"].mask(is_dense, 0.0).round(4),
        settings=[_settings(*pair) for pair in zip(records, is_dense)],
    )
    keyed = keyed.drop_duplicates([*KEY, "seed"]).sort_values("seed", kind="stable")
    groups = dict(list(keyed.groupby(KEY, sort=False)))
    rows = [_row(dict(zip(KEY, key)), group, groups) for key, group in groups.items()]
    dense = {
        (row["dataset"], row["model"], _of_training(key[-1])): row
        for key, row in zip(groups, rows)
        if row["method"] == "none"
    }
    for key, row in zip(groups, rows):
        row |= {"dense": math.nan, "dense_train_error": math.nan}
        place = row["dataset"], row["model"], _of_training(key[-1])
        if row["method"] != "none" and place in dense:
            row["dense"] = dense[place]["error"]
            row["dense_train_error"] = dense[place]["train_error"]
        row["difference"] = row["error"] - row["published"]
        row["loss"] = row["error"] - row["dense"]
        if row["random_labels"]:
            row["loss"] = row["train_error"] - row["dense_train_error"]
    return pd.DataFrame(sorted(rows, key=_order), columns=[*COLUMNS])


def layer_densities(row: Any) -> dict[str, float]:
    """Returns the share kept of every weight matrix or kernel of a row, in percent.

    Shares are means over the seeds, from the first layer to the last. Biases are left
    out: but for biases of a GRU's gates they start at zero, so that their saliency is
    zero and SNIP prunes them all.
    """
    if "layers" not in row.networks:
        return {}
    layers = pd.DataFrame(
        [
            (
                re.sub("/kernel$", "", layer["path"]),
                100 * layer["kept"] / layer["total"],
            )
            for network in row.networks["layers"]
            if isinstance(network, list)
            for layer in network
            if len(layer["shape"]) > 1 and layer["total"]
        ],
        columns=["layer", "share"],
    )
    means = layers.groupby("layer")["share"].mean().to_dict()
    is_recurrent = any(name.startswith("cell/") for name in means)
    return {name: means[name] for name in sorted(means, key=_depth(is_recurrent))}


def one_per_network(table: pd.DataFrame) -> list[Any]:
    """Returns a pruned row of each network, at the sparsity that most of them have.

    Rows are of SNIP with the default settings where there is one.
    """
    rows = [row for row in table.itertuples() if row.method != "none"]
    networks = by_network(row for row in rows if layer_densities(row))
    have = [s for rows in networks for s in {row.asked for row in rows}]
    common = max(have, key=lambda value: (have.count(value), value), default=0.0)

    def unfitness(row: Any) -> tuple[Any, ...]:
        return row.method != "snip", row.settings != "", abs(row.asked - common)

    return [min(rows, key=unfitness) for rows in networks]


def by_network(rows: Iterable[Any]) -> list[list[Any]]:
    """Returns rows in groups of one network and data set, in their order."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset), []).append(row)
    return list(groups.values())


def _is_dense(network: Mapping[str, Any]) -> bool:
    return network["method"] == "none" or network["sparsity"] == 0


def _settings(network: Mapping[str, Any], is_dense: bool) -> Settings:
    """Returns fields that tell rows apart and have no column, with their values."""
    method = "none" if is_dense else network["prune.method"]
    names = {name for name in network if "." in name or name == "mesh"}
    return tuple(
        (name, flag_value(network[name]))
        for name in sorted(names - {*_IN_COLUMNS, *_WITHOUT_EFFECT})
        if not (is_dense and _is_of_pruning(name))
        and not (_section(name) in RIVALS and _section(name) != method)
        and not (network["train.steps"] == 0 and _is_of_the_schedule(name))
    )


def _section(name: str) -> str:
    return name.partition(".")[0]


def _of_training(settings: Settings) -> Settings:
    return tuple(
        (name, value)
        for name, value in settings
        if not _is_of_pruning(name) and _section(name) not in RIVALS
    )


def _is_of_pruning(name: str) -> bool:
    """Returns whether a field has no effect on a dense network."""
    return _section(name) == "prune" or name == "init.scored"


def _is_of_the_schedule(name: str) -> bool:
    """Returns whether a field does nothing to a network that is not trained."""
    return _section(name) in ("train", "optimizer") and name != "train.steps"


def _row(
    key: dict[str, Any], group: pd.DataFrame, keys: Iterable[tuple[Any, ...]]
) -> dict[str, Any]:
    default = {
        name: flag_value(value) for name, value in configs.fields(configs.default())
    }
    if key["dataset"] == "cifar10":
        default |= _ON_CIFAR10
    changed = [pair for pair in key["settings"] if pair[1] != default.get(pair[0])]
    unlike_paper = {
        name
        for name, _ in changed
        if _section(name) not in _TRAINING and name != "model.dtype"
    }
    same = tuple(key[name] for name in KEY[:3])
    others = [dict(other[-1]) for other in keys if other[:3] == same]
    varied = {n for n, value in changed if any(o.get(n) != value for o in others)}
    shown = unlike_paper | varied
    figure = None
    if not unlike_paper:
        network = key["dataset"], key["model"], key["method"]
        figure = published.find(*network, key["asked"])
    return {
        **key,
        "settings": _listed(pair for pair in changed if pair[0] in shown),
        "sparsity": 0.0 if key["method"] == "none" else group["sparsity"].mean(),
        "error": group["test_error"].mean(),
        "std": group["test_error"].std(),
        "last_error": group["test_error_last"].mean(),
        "last_std": group["test_error_last"].std(),
        "train_error": group["train_error"].mean(),
        "published": figure.error if figure else math.nan,
        "reference": figure.reference if figure else "",
        "link": figure.link if figure else "",
        "training": _listed(
            pair
            for pair in changed
            if pair[0] not in unlike_paper and pair[0] not in _NOT_OPTIMIZATION
        ),
        "random_labels": bool(group["dataset.random_labels"].iloc[0]),
        "networks": group,
    }


def _listed(settings: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings)


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    def place(name: str, names: Iterable[str]) -> tuple[int, str]:
        names = list(names)
        return (names.index(name) if name in names else len(names), name)

    methods = ("none", "snip")
    network = place(row["model"], published.NETWORKS), row["dataset"]
    return *network, place(row["method"], methods), row["settings"], row["sparsity"]


def _depth(is_recurrent: bool) -> Any:
    """Returns a key that sorts layers of snipjax.models as data passes them.

    Trees are sorted by name: Conv_10 before Conv_2, and a cell after both dense layers.
    """

    def key(name: str) -> tuple[Any, ...]:
        kind = re.split(r"[_/]", name)[0]
        place = {"Conv": 0, "Block": 1, "Dense": 3}.get(kind, 2)
        if is_recurrent and name == "Dense_0":
            place = 0
        return place, natural_order(name)

    return key
