"""The configuration of table 1: every field, its default, and its checks."""

import difflib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax import methods
from snipjax.results import published
from snipjax.studies.table1.cell import Cell

# Functions of snipjax.methods, and their names in snipjax.results.published.
_NAMES = {
    "dense": "Dense",
    "lwc": "LWC",
    "dns": "DNS",
    "lc": "LC",
    "sws": "SWS",
    "sparse_vd": "SVD",
    "obd": "OBD",
    "lobs": "L-OBS",
    "snip": "SNIP",
}
METHODS: Mapping[str, published.Method] = MappingProxyType(
    {
        name: published.METHODS[in_paper]
        for name, in_paper in _NAMES.items()
        if callable(getattr(methods, name, None))
    }
)
NETWORKS = ("lenet_300_100", "lenet_5_caffe")
# What the quick form divides a network's steps by.
QUICK: Mapping[str, int] = MappingProxyType({"lenet_300_100": 10, "lenet_5_caffe": 20})
# 100 epochs and 40, with which one seed of the whole table is an afternoon of 2 cores.
_STEPS = {"lenet_300_100": 54_000, "lenet_5_caffe": 21_600}
_DECAY_EVERY = {"lenet_300_100": 10_000, "lenet_5_caffe": 4_000}
# The paper's 0.1 lets the dense LeNet-5-Caffe diverge, from which most methods start.
# SNIP starts from a sparse one, which bears more, if not always the paper's.
_LEARNING_RATES = {"lenet_300_100": 0.1, "lenet_5_caffe": 0.02}
_SNIP_LEARNING_RATES = {"lenet_300_100": 0.1, "lenet_5_caffe": 0.05}
MAY_DIFFER = ("methods", "networks", "seed", "seeds", "frontier")  # in one directory
_DIGITS = 6  # of a sparsity, which its directory is named by
_AT_LEAST = {"steps": 1, "decay_every": 1, "eval_every": 1, "seed": 0, "seeds": 1}


def default() -> ConfigDict:
    """Returns the configuration of the whole table; a new copy at each call.

    A section for each network has its training, one for each method the method's own
    hyperparameters.

    Example:
      >>> config = default()
      >>> config.methods = "snip"
      >>> config.lenet_5_caffe.steps
      21600
    """
    config = ConfigDict()
    config.seed = 0
    config.seeds = 1  # as many, from `seed` on
    config.methods = ",".join(METHODS)
    config.networks = ",".join(NETWORKS)
    config.frontier = ""  # more sparsities for every method, e.g. "0.9,0.95"
    config.quick = False
    config.dataset = ConfigDict({"name": "mnist"})
    for network in NETWORKS:
        config[network] = ConfigDict(
            {
                "steps": _STEPS[network],
                "decay_every": _DECAY_EVERY[network],
                "eval_every": 540,
                "learning_rate": _LEARNING_RATES[network],
                "snip_learning_rate": _SNIP_LEARNING_RATES[network],
            }
        )
    for method in METHODS:
        config[method] = ConfigDict(methods.hyperparameters(function(method)))
    return config.lock()


def function(method: str) -> Callable[..., methods.Outcome]:
    """Returns the function that is a method."""
    return getattr(methods, method)


def validate(config: ConfigDict) -> None:
    """Raises a ``ValueError`` naming the first field that is unknown, missing or off.

    Args:
      config: like :func:`default`'s.
    """
    configs.check_fields(config, default())
    for name, value in configs.fields(config):
        least = _AT_LEAST.get(name.split(".")[-1])
        if least is not None and not value >= least:
            raise ValueError(f"config.{name} is {value}; it must be >= {least}")
    for network in NETWORKS:
        for name in ("learning_rate", "snip_learning_rate"):
            if not 0.0 < config[network][name] < math.inf:
                raise ValueError(
                    f"config.{network}.{name} is {config[network][name]}; it must be "
                    "a positive number, e.g. 0.1"
                )
    if config.seed + config.seeds > 2**32:
        raise ValueError(
            f"config.seed + config.seeds is {config.seed + config.seeds}; it must be "
            f"<= {2**32}"
        )
    chosen(config, "networks", NETWORKS)
    frontier(config)
    _check_hyperparameters(config)


def chosen(
    config: ConfigDict, field: str, choices: Mapping[str, Any] | tuple[str, ...]
) -> list[str]:
    """Returns the names in a field, in the order of the choices.

    Raises:
      ValueError: if there is none, or one that is not among the choices.
    """
    names = _parts(config[field])
    for name in names:
        if name not in choices:
            nearest = _nearest(name, choices)
            raise ValueError(
                f"config.{field} has '{name}'; did you mean '{nearest}'? There are "
                f"{', '.join(choices)}"
            )
    if not names:
        raise ValueError(f"config.{field} is empty; there are {', '.join(choices)}")
    return [name for name in choices if name in names]


def frontier(config: ConfigDict) -> list[float]:
    """Returns the sparsities that every method is run at beside its published ones.

    Raises:
      ValueError: if one is not a number in [0, 1).
    """
    sparsities = []
    for part in _parts(config.frontier):
        try:
            sparsity = round(float(part), _DIGITS) + 0.0  # -0 has a name of its own
        except ValueError:
            sparsity = math.nan
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(
                f"config.frontier has '{part}', which is no number in [0, 1); it is "
                "sparsities, e.g. 0.9,0.95,0.98"
            )
        sparsities.append(sparsity)
    return sorted(set(sparsities))


def published_sparsities(network: str, method: str) -> list[float]:
    """Returns the sparsities that table 1 has of a method; of the dense network, 0.

    Example:
      >>> published_sparsities("lenet_5_caffe", "snip")
      [0.98, 0.99]
    """
    return [
        row.sparsity
        for row in published.ROWS
        if (row.dataset, row.network, row.method) == ("mnist", network, _NAMES[method])
    ]


def cells(config: ConfigDict) -> list[Cell]:
    """Returns what a configuration asks for, in the order it is run.

    Dense networks come first of each network and seed, also where they are not asked
    for, since other methods start from them and costs are measured in them.

    Example:
      >>> config = default()
      >>> config.methods, config.networks = "snip", "lenet_5_caffe"
      >>> [cell.name for cell in cells(config)]
      ['lenet_5_caffe-dense-seed0',
       'lenet_5_caffe-snip-0.98-seed0',
       'lenet_5_caffe-snip-0.99-seed0']
    """
    methods = [name for name in chosen(config, "methods", METHODS) if name != "dense"]
    return [
        Cell(network, method, sparsity, seed)
        for seed in range(config.seed, config.seed + config.seeds)
        for network in chosen(config, "networks", NETWORKS)
        for method in ["dense", *methods]
        for sparsity in sparsities(config, network, method)
    ]


def differing_settings(
    config: ConfigDict, cell: Cell, made_with: Mapping[str, Any]
) -> list[str]:
    """Returns the fields that a cell was made with other values of, as assignments.

    Args:
      config: like :func:`default`'s.
      cell: a finished one.
      made_with: its settings.

    Example:
      >>> config, cell = default(), Cell("lenet_300_100", "lwc", 0.9, 0)
      >>> differing_settings(config, cell, settings(config, cell) | {"lwc.rounds": 2})
      ['config.lwc.rounds=2, not 4']
    """
    wanted = settings(config, cell)
    return [
        f"config.{name}={made_with.get(name)}, not {wanted.get(name)}"
        for name in sorted(wanted.keys() | made_with.keys())
        if wanted.get(name) != made_with.get(name)
    ]


def is_known(cell: Cell) -> bool:
    """Whether there are a cell's network and method."""
    return cell.network in NETWORKS and cell.method in METHODS


def sparsities(config: ConfigDict, network: str, method: str) -> list[float]:
    """Returns the sparsities that a method is run at, the published ones first."""
    if method == "dense":
        return [0.0]
    listed = published_sparsities(network, method)
    return list(dict.fromkeys([*listed, *frontier(config)]))


def experiment_config(config: ConfigDict, cell: Cell) -> ConfigDict:
    """Returns the configuration of an experiment that a cell is."""
    experiment = configs.default()
    experiment.seed = cell.seed
    experiment.dataset.name = config.dataset.name
    experiment.model.name = cell.network
    experiment.train.update(training(config, cell.network, cell.method))
    return experiment


def training(config: ConfigDict, network: str, method: str) -> dict[str, Any]:
    """Returns the fields of training that a network's section gives to a method.

    In the quick form there are fewer steps.

    Evaluations are as far apart as ever, for they take as long as many steps.

    Example:
      >>> config = default()
      >>> config.quick = True
      >>> training(config, "lenet_5_caffe", "dense")
      {'decay_every': 200, 'eval_every': 540, 'learning_rate': 0.02, 'steps': 1080}
    """
    fields = dict(config[network])
    snip_learning_rate = fields.pop("snip_learning_rate")
    if method == "snip":
        fields["learning_rate"] = snip_learning_rate
    if config.quick:
        for name in ("steps", "decay_every"):
            fields[name] = max(1, fields[name] // QUICK[network])
    return fields


def hyperparameters(config: ConfigDict, network: str, method: str) -> int:
    """Returns how many hyperparameters a method adds to those of dense training.

    They are its section, and one more where it trains a network at a learning rate
    that is not the network's.

    Example:
      >>> config = default()
      >>> [hyperparameters(config, network, "snip") for network in NETWORKS]
      [0, 1]
    """
    own, dense = (training(config, network, name) for name in (method, "dense"))
    return len(config[method]) + (own["learning_rate"] != dense["learning_rate"])


def settings(config: ConfigDict, cell: Cell) -> dict[str, Any]:
    """Returns what a cell's outcome depends on, by the names of the fields."""
    sections = {cell.network: training(config, cell.network, cell.method)}
    if cell.method != "dense":
        sections[cell.method] = config[cell.method]
    return {
        "dataset.name": config.dataset.name,
        "quick": config.quick,
        **dict(configs.fields(sections)),
    }


def _nearest(name: str, choices: Mapping[str, Any] | tuple[str, ...]) -> str:
    in_paper = {of_paper.lower(): method for method, of_paper in _NAMES.items()}
    if (method := in_paper.get(name.lower())) in choices:
        return method
    return difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.0)[0]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class _PassedError(Exception):
    """A method has looked at its hyperparameters, and goes on to work with them."""


class _Untouchable:
    """In the place of what a method works on: the first use of it ends the method."""

    def __getattr__(self, name: str) -> Any:
        raise _PassedError


def _check_hyperparameters(config: ConfigDict) -> None:
    """What a method does not accept is better said before hours of training."""
    for method in chosen(config, "methods", METHODS):
        nothing, hyperparameters = _Untouchable(), dict(config[method])
        target = 0.0 if method == "dense" else 0.9
        try:
            function(method)(nothing, target, pretrained=nothing, **hyperparameters)
        except _PassedError:
            continue
        except ValueError as error:
            raise ValueError(f"config.{method}: {error}") from None
