"""The configuration of table 1, and the cells that it asks for."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from snipjax import config as configs
from snipjax.results import published, reading
from snipjax.schema import FIELDS, SEEDS, Field, section
from snipjax.training import rundir

RIVALS = ("lwc", "dns", "lc", "sws", "sparse_vd", "obd", "lobs")
METHODS: Mapping[str, published.Method] = {
    "dense": published.METHODS["Dense"],
    **{m: published.METHODS[published.NAMES[m]] for m in (*RIVALS, "snip")},
}
"""The methods of the table by name, the choices of ``config.methods``.

A value is the description of the SNIP paper's table 1: ``name``, ``full_name``,
``reference``, ``link``, ``criterion`` and more, all texts.

Example:
  >>> list(METHODS)[:3], METHODS["lwc"].reference
  (['dense', 'lwc', 'dns'], 'Han et al. (2015)')
"""
NETWORKS = ("lenet_300_100", "lenet_5_caffe")
# Divisors of a network's steps in the quick form.
QUICK = {"lenet_300_100": 10, "lenet_5_caffe": 20}
FAILURE = "failure.json"
_DIGITS = 6  # of a sparsity, which its directory is named by


def _training(network: str, *defaults: float) -> list[Field]:
    steps, decay_every, learning_rate, snip_learning_rate = defaults
    return section(
        network,
        Field("steps", steps, "steps of dense training", least=1),
        Field("decay_every", decay_every, "steps between two decays", least=1),
        Field("eval_every", 540, "steps between two evaluations", least=1),
        Field("learning_rate", learning_rate, "learning rate", least=1e-9),
        Field("snip_learning_rate", snip_learning_rate, "SNIP's own", least=1e-9),
    )


TABLE_FIELDS: tuple[Field, ...] = (
    Field("study", "table1", "the study", choices=("table1",)),
    Field("seed", 0, "the first seed", below=SEEDS),
    Field("seeds", 1, "seeds, from `seed` on", least=1, below=10_001),
    Field("methods", ",".join(METHODS), "methods to run"),
    Field("networks", ",".join(NETWORKS), "networks to run"),
    Field("frontier", "", "more sparsities for every method, e.g. 0.9,0.95"),
    Field("quick", False, "a fraction of the steps, to see that everything works"),
    Field("dataset.name", "mnist", "data set"),
    # 100 epochs and 40, with which one seed of the whole table is an afternoon of 2
    # cores. The paper's 0.1 lets the dense LeNet-5-Caffe diverge, from which most
    # methods start; SNIP starts from a sparse one, which bears more.
    *_training("lenet_300_100", 54_000, 10_000, 0.1, 0.1),
    *_training("lenet_5_caffe", 21_600, 4_000, 0.02, 0.05),
    *(field for field in FIELDS if field.name.split(".")[0] in RIVALS),
)


class Cell(NamedTuple):
    """One network, pruned by one method to one sparsity with one seed."""

    network: str
    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """Returns the name of its directory, e.g. ``lenet_300_100-snip-0.95-seed0``."""
        sparsity = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.network}-{self.method}{sparsity}-seed{self.seed}"

    @property
    def dense(self) -> "Cell":
        return self._replace(method="dense", sparsity=0.0)


def default() -> ConfigDict:
    """Returns the configuration of the whole table; a new copy at each call.

    A section for each network has its training, and a section for each method its
    hyperparameters.

    Example:
      >>> config = default()
      >>> config.lenet_300_100.steps, config.lwc.rounds
      (54000, 4)
    """
    return configs.from_fields(TABLE_FIELDS)


def validate(config: ConfigDict) -> None:
    """Checks every field of a configuration of the table.

    Args:
      config: a configuration like the default.

    Raises:
      ValueError: naming the first unknown, missing or wrong field, and the remedy.

    Example:
      >>> config = default()
      >>> config.methods = "snip,lwd"
      >>> validate(config)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: config.methods has 'lwd'; did you mean 'lwc'? ...
    """
    configs.check(config, TABLE_FIELDS)
    if config.seed + config.seeds > SEEDS:
        raise ValueError(
            f"config.seed + config.seeds is {config.seed + config.seeds}; it must be "
            f"<= {SEEDS}"
        )
    for cell in cells(config):
        configs.validate(experiment_config(config, cell, Path()))


def chosen(config: ConfigDict, field: str, choices: Iterable[str]) -> list[str]:
    """Returns the names in a field, in the order of the choices."""
    choices, names = list(choices), _parts(config[field])
    for name in names or [""]:
        if name not in choices:
            (nearest,) = difflib.get_close_matches(name.lower(), choices, 1, cutoff=0.0)
            raise ValueError(
                f"config.{field} has '{name}'; did you mean '{nearest}'? There are "
                f"{', '.join(choices)}"
            )
    return [name for name in choices if name in names]


def published_sparsities(network: str, method: str) -> list[float]:
    """Returns the sparsities that table 1 has of a method; 0 of the dense network.

    >>> published_sparsities("lenet_5_caffe", "snip")
    [0.98, 0.99]
    """
    place = "mnist", network, METHODS[method].name
    rows = published.ROWS
    return [r.sparsity for r in rows if (r.dataset, r.network, r.method) == place]


def cells(config: ConfigDict) -> list[Cell]:
    """Returns the cells that a configuration asks for, in the order they are run.

    Dense networks come first of each network and seed, also where they are not asked
    for, since other methods start from them and costs are measured in them.
    """
    more = []
    for part in _parts(config.frontier):
        try:
            more.append(round(float(part), _DIGITS))
        except ValueError:
            more.append(0.0)
        if not 0.0 < more[-1] < 1.0:
            raise ValueError(
                f"config.frontier has '{part}', which is no number in (0, 1); it is "
                "sparsities, e.g. 0.9,0.95,0.98"
            )
    methods = [name for name in chosen(config, "methods", METHODS) if name != "dense"]
    return [
        Cell(network, method, sparsity, seed)
        for seed in range(config.seed, config.seed + config.seeds)
        for network in chosen(config, "networks", NETWORKS)
        for method in ["dense", *methods]
        for sparsity in dict.fromkeys(
            published_sparsities(network, method)
            + (sorted(more) if method != "dense" else [])
        )
    ]


def training(config: ConfigDict, network: str, method: str) -> dict[str, Any]:
    """Returns the fields of a method's training of a network, by dotted name.

    The quick form has fewer steps. Evaluations are as far apart as ever, for one takes
    as long as many steps.
    """
    own, share = config[network], QUICK[network] if config.quick else 1
    rate = own.snip_learning_rate if method == "snip" else own.learning_rate
    return {
        "train.steps": max(1, own.steps // share),
        "train.eval_every": own.eval_every,
        "optimizer.decay_every": max(1, own.decay_every // share),
        "optimizer.learning_rate": rate,
    }


def hyperparameters(config: ConfigDict, network: str, method: str) -> int:
    """Returns how many hyperparameters a method adds to dense training.

    They are the fields of its section, and one more where it trains a network at
    another learning rate than the network's.
    """
    own, dense = (training(config, network, name) for name in (method, "dense"))
    return len(config.get(method, {})) + (own != dense)


def experiment_config(config: ConfigDict, cell: Cell, workdir: Path) -> ConfigDict:
    """Returns the configuration of the experiment that a cell is.

    A method that prunes a trained network starts from the dense cell.
    """
    experiment = configs.default()
    method = "none" if cell.method == "dense" else cell.method
    fields = {"seed": cell.seed, "dataset.name": config.dataset.name}
    fields |= {"model.name": cell.network, "prune.method": method}
    fields |= {"prune.sparsity": cell.sparsity}
    fields |= training(config, cell.network, cell.method)
    if cell.method in RIVALS:
        fields["prune.pretrained"] = str(workdir / cell.dense.name)
        fields |= {f"{cell.method}.{k}": v for k, v in config[cell.method].items()}
    experiment.update_from_flattened_dict(fields)
    return experiment


def is_finished(directory: Path) -> bool:
    """Returns whether the cell in a directory has a result, and did not fail."""
    has_result = (directory / rundir.RESULT).exists()
    return has_result and not (directory / FAILURE).exists()


def finished(workdir: Path, config: ConfigDict | None = None) -> list[reading.Run]:
    """Returns the finished cells in a directory, of these settings if any are given."""
    paths = sorted(path for path in workdir.glob("*") if is_finished(path))
    runs = [reading.read_run(path) for path in paths]
    return [run for run in runs if not (config and differences(config, run, workdir))]


def failures(workdir: Path, config: ConfigDict) -> dict[str, str]:
    """Returns the reason of each failure of the cells asked for, by their names."""
    return {
        cell.name: rundir.read_json(path)["message"]
        for cell in cells(config)
        if (path := workdir / cell.name / FAILURE).exists()
    }


def differences(config: ConfigDict, run: reading.Run, workdir: Path) -> list[str]:
    """Returns a line for each setting in which a cell differs."""
    made = run.config
    method = made["prune.method"].replace("none", "dense")
    if made["model.name"] not in NETWORKS or method not in METHODS:
        return ["it is no cell of the table"]
    cell = Cell(made["model.name"], method, made["prune.sparsity"], made["seed"])
    if cell.name != run.path.name:
        return [f"directory: {cell.name} here, {run.path.name} there"]
    asked = dict(configs.fields(experiment_config(config, cell, workdir)))
    lines = configs.differences(asked, made)
    if not is_finished(run.path):
        return lines
    # The whole table may have been moved since.
    return [line for line in lines if not line.startswith("prune.pretrained:")]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
