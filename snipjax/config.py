"""The configuration of an experiment: every field, its default, and its checks."""

import difflib
import itertools
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

_INITIALIZERS = (
    "fan_in",
    "random_normal",
    "truncated_normal",
    "xavier",
    "he",
    "heuristic_uniform",
    "glorot_uniform",
)
_CHOICES = {
    "init.scored": _INITIALIZERS,
    "init.trained": _INITIALIZERS,
    "prune.method": ("snip", "magnitude", "random", "none"),
    "prune.prunable": ("weights_and_biases", "kernels"),
    "prune.select": ("global", "layerwise"),
    "prune.batch_norm": ("inference", "batch"),
    "model.dtype": ("float32", "bfloat16"),
    "dataset.view": ("none", "translate", "translate_flip", "imagenet"),
}
# What streams and meshes have alone, and what they have not.
_LARGE = ("dataset.image_size", "dataset.view", "dataset.workers", "train.remat")
_NOT_LARGE = ("dataset.random_labels", "prune.batch_class")
_AT_LEAST = {
    "seed": 0,
    "seeds": 1,
    "seeds_at_once": 0,
    "signal_seeds": 0,
    "dataset.image_size": 0,
    "dataset.workers": 0,
    "prune.batch_class": -1,
    "prune.batch_size": 1,
    "prune.num_batches": 1,
    "prune.rounds": 1,
    "train.steps": 0,
    "train.batch_size": 1,
    "train.learning_rate": 0.0,
    "train.momentum": 0.0,
    "train.weight_decay": 0.0,
    "train.decay_every": 1,
    "train.decay_factor": 0.0,
    "train.eval_every": 1,
    "train.checkpoint_every": 1,
    "train.steps_per_dispatch": 1,
    "train.translate": 0,
}
_LESS_THAN = {
    "seed": 2**32,  # beyond, JAX takes the remainder
    "train.steps": 2**31,  # counted in int32
    "train.learning_rate": math.inf,
    "train.momentum": 1.0,
    "train.weight_decay": math.inf,
    "train.decay_factor": math.inf,
}


def default() -> ConfigDict:
    """Returns the paper's protocol on the embedded digits; a new copy at each call.

    The fields are typed: assigning to a name that does not exist or a value of
    another type raises.
    """
    config = ConfigDict()
    config.seed = 0
    config.mesh = ""  # e.g. "data=4,model=2": the devices of one network
    config.seeds = 1  # networks of as many seeds, from `seed` on, trained at once
    config.seeds_at_once = 0  # at most; 0 for as many as the memory holds
    config.signal_seeds = 0  # seeds to measure snipjax.initializers.signal with
    config.vary = ()  # e.g. ("prune.sparsity=0.9,0.95",): a run for each combination

    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # or an image-classification dataset of TFDS
    config.dataset.random_labels = False  # of the training examples
    config.dataset.stream = False  # read it batch by batch, with snipjax.data.streams
    config.dataset.image_size = 0  # pixels, of streamed images; 0 for as stored
    config.dataset.view = "none"  # a name in snipjax.data.streams.VIEWS
    config.dataset.workers = 0  # processes that read streamed images; 0 for none

    config.init = ConfigDict()  # names in snipjax.initializers
    config.init.scored = "fan_in"  # of the sample that saliency is computed on
    config.init.trained = "fan_in"  # of the fresh sample that is trained

    config.model = ConfigDict()
    config.model.name = "lenet_300_100"  # a name in snipjax.models
    config.model.dtype = "float32"  # of the computation; parameters are float32

    config.prune = ConfigDict()
    config.prune.method = "snip"  # snip, magnitude, random or none
    config.prune.sparsity = 0.9
    config.prune.batch_size = 100
    config.prune.batch_class = -1  # a class to take the examples from; -1 for all
    config.prune.num_batches = 1  # their gradients are averaged
    config.prune.rounds = 1  # 1 is single-shot
    config.prune.prunable = "weights_and_biases"  # or kernels
    config.prune.exclude = ()  # patterns of leaves to keep dense, e.g. ("head/*",)
    config.prune.select = "global"  # or layerwise
    config.prune.min_density = 0.0  # of each leaf, in a global selection
    config.prune.batch_norm = "inference"  # in the saliency pass; or batch
    config.prune.fresh_init = True  # train a new sample, not the one scored

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch_size = 100
    config.train.learning_rate = 0.1
    config.train.decay_factor = 0.1
    config.train.decay_every = 25_000  # steps
    config.train.momentum = 0.9
    config.train.weight_decay = 5e-4  # of weights and biases, not of batch norm
    config.train.remat = False  # compute blocks again backward, for less memory
    config.train.flip = False  # left to right, with probability one half
    config.train.translate = 0  # pixels, at most, in each direction
    config.train.eval_every = 100  # steps
    config.train.checkpoint_every = 1000  # steps
    config.train.steps_per_dispatch = 100  # at most, between looks at the progress
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Raises a ``ValueError`` naming the first field that is unknown, missing or off.

    Args:
      config: a configuration like :func:`default`'s.
    """
    check_fields(config, default())
    given = dict(fields(config))
    for name, choices in _CHOICES.items():
        if given[name] not in choices:
            nearest = difflib.get_close_matches(given[name], choices, n=1, cutoff=0.0)
            raise ValueError(
                f"config.{name} is '{given[name]}'; did you mean '{nearest[0]}'? "
                f"There are {', '.join(choices)}"
            )
    for name, least in _AT_LEAST.items():
        if not given[name] >= least:
            raise ValueError(f"config.{name} is {given[name]}; it must be >= {least}")
    for name, bound in _LESS_THAN.items():
        if not given[name] < bound:
            raise ValueError(f"config.{name} is {given[name]}; it must be < {bound}")
    _check_large(given)
    names = [name for entry in given["vary"] for name in varied(str(entry))[0]]
    if len(set(names)) < len(names):
        raise ValueError(
            f"config.vary has a field twice: {', '.join(sorted(names))}; give all of "
            "its values in one entry"
        )
    if given["seed"] + given["seeds"] > _LESS_THAN["seed"]:
        raise ValueError(
            f"config.seed + config.seeds is {given['seed'] + given['seeds']}; it must "
            f"be <= {_LESS_THAN['seed']}"
        )
    if not given["prune.fresh_init"] and given["init.trained"] != given["init.scored"]:
        raise ValueError(
            f"config.init.trained is '{given['init.trained']}', but without "
            "prune.fresh_init the scored sample is trained, which config.init.scored "
            f"makes '{given['init.scored']}'; make them equal"
        )
    if not 0.0 <= given["prune.sparsity"] < 1.0:
        raise ValueError(
            f"config.prune.sparsity is {given['prune.sparsity']}, outside [0, 1); it "
            "is the share of connections to prune, e.g. 0.95"
        )
    _check_min_density(given)


def is_large(config: ConfigDict) -> bool:
    """Whether an experiment is one of :mod:`snipjax.training.large`: on a mesh, or streamed.

    Example:
      >>> is_large(default())
      False
    """
    return bool(config.mesh or config.dataset.stream)


def mesh_axes(text: str) -> dict[str, int]:
    """Returns the sizes of a mesh's axes, ``data`` and ``model``; 1 if not given.

    Raises:
      ValueError: for a text of another form, an unknown axis, or a size below 1.

    Example:
      >>> mesh_axes("model=2")
      {'data': 1, 'model': 2}
    """
    axes = {"data": 1, "model": 1}
    given = []
    for entry in text.split(","):
        name, equals, size = (part.strip() for part in entry.partition("="))
        if not (equals and size.isascii() and size.isdigit() and int(size)):
            raise ValueError(
                f"config.mesh is '{text}'; it must be axes and their sizes, of at "
                "least 1, like 'data=4,model=2'"
            )
        if name not in axes:
            raise ValueError(
                f"config.mesh '{text}' has an axis '{name}'; the axes are "
                f"{' and '.join(axes)}"
            )
        axes[name] = int(size)
        given.append(name)
    if len(set(given)) < len(given):
        raise ValueError(f"config.mesh '{text}' has an axis twice; leave one out")
    return axes


def check_fields(config: ConfigDict, like: ConfigDict) -> None:
    """Raises a ``ValueError`` naming the first field that another has not, or misses.

    Args:
      config: a configuration.
      like: one with the fields that it should have, of the types they should be.
    """
    known, given = dict(fields(like)), dict(fields(config))
    for name in given:
        if name not in known:
            raise ValueError(unknown_field(name, like))
    for name, value in known.items():
        if name not in given:
            raise ValueError(f"config has no field '{name}'; start from config.default")
        _check_type(name, given[name], value)


def varied(entry: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Returns the fields that an entry of ``config.vary`` sets, and their values.

    Several fields, joined by ``&``, take each value together; their defaults are of
    one type, which the values are of.

    Raises:
      ValueError: for an entry of another form, an unknown field, or a value of
        another type.

    Example:
      >>> varied("prune.sparsity=0.9,0.95")
      (('prune.sparsity',), (0.9, 0.95))
    """
    names, _, values = entry.partition("=")
    if not all(value.strip() for value in values.split(",")):
        raise ValueError(
            f"config.vary has '{entry}'; an entry is <field>=<value>,<value>,... like "
            "'prune.sparsity=0.9,0.95'"
        )
    known = dict(fields(default()))
    names = tuple(names.split("&"))
    for name in names:
        if name not in known:
            raise ValueError(unknown_field(name))
        if name in ("vary", "seed", "seeds"):
            raise ValueError(
                f"config.{name} cannot be varied; config.seeds takes several seeds"
            )
        if isinstance(known[name], tuple):
            raise ValueError(f"config.{name} cannot be varied; it is a tuple itself")
    for name in names[1:]:
        for value in values.split(","):
            _parsed(name, value.strip(), known[name])
    parsed = tuple(
        _parsed(names[0], value.strip(), known[names[0]]) for value in values.split(",")
    )
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"config.vary has a value twice in '{entry}'; leave one out")
    return names, parsed


def cells(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns a configuration for each combination of values in ``config.vary``.

    Returns:
      Configurations that vary nothing, by what they set, in the order of the values.

    Raises:
      ValueError: as :func:`varied` and :func:`validate` do.

    Example:
      >>> config = default()
      >>> config.vary = ("prune.sparsity=0.9,0.95",)
      >>> list(cells(config))
      ['prune.sparsity=0.9', 'prune.sparsity=0.95']
    """
    entries = [varied(entry) for entry in config.vary]
    combinations = itertools.product(*(values for _, values in entries))
    named = {}
    for values in combinations:
        cell = config.copy_and_resolve_references()
        cell.vary = ()
        settings = {}
        for (names, _), value in zip(entries, values):
            settings["&".join(names)] = value
            cell.update_from_flattened_dict(dict.fromkeys(names, value))
        validate(cell)
        named[" ".join(f"{name}={value}" for name, value in settings.items())] = cell
    return named


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of every field of a nested configuration.

    Example:
      >>> list(fields({"seed": 0, "train": {"steps": 10}}))
      [('seed', 0), ('train.steps', 10)]
    """
    for name, value in config.items():
        if isinstance(value, dict | ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def field_names(like: ConfigDict | None = None) -> list[str]:
    """Returns the dotted name of every field of a configuration, or of the default."""
    return [name for name, _ in fields(default() if like is None else like)]


def unknown_field(name: str, like: ConfigDict | None = None) -> str:
    """Returns the message for a field that does not exist, with the nearest that does.

    Args:
      name: the field.
      like: a configuration with the fields there are; by default :func:`default`'s.

    Example:
      >>> unknown_field("prune.sparsty")
      "config has no field 'prune.sparsty'; did you mean 'prune.sparsity'?"
    """
    known = field_names(like)
    within = [field for field in known if field.startswith(f"{name}.")]
    if within:
        return f"config.{name} is a section; its fields are {', '.join(within)}"
    sections = sorted({field.split(".")[0] for field in known} - {name})

    def likeness(field: str) -> float:
        # The last part counts twice: often it is right, and its section is not.
        pairs = (name, field), (name.split(".")[-1], field.split(".")[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    nearest = max(known + sections, key=likeness)
    return f"config has no field '{name}'; did you mean '{nearest}'?"


def wrong_type(name: str, value: str, like: ConfigDict | None = None) -> str:
    """Returns the message for a value that does not fit the fields of that last name.

    Args:
      name: the last part of the field's name.
      value: as it was given.
      like: a configuration with the fields there are; by default :func:`default`'s.

    Example:
      >>> wrong_type("steps", "many")
      "config field 'train.steps' cannot be many; its default is 1000, an int"
    """
    fitting = [
        f"'{field}' cannot be {value}; its default is {default_value!r}, "
        f"{'an' if isinstance(default_value, int) else 'a'} "
        f"{type(default_value).__name__}"
        for field, default_value in fields(default() if like is None else like)
        if field.split(".")[-1] == name
    ]
    return "config field " + " or ".join(fitting or [f"'{name}' cannot be {value}"])


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns a line per field in which two plain nested configurations differ.

    Example:
      >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
      ['a.b: 1 here, 2 there']
    """
    flat, other_flat = (
        # Which JSON has no tuples.
        {k: list(v) if isinstance(v, tuple) else v for k, v in fields(values)}
        for values in (config, other)
    )
    return [
        f"{name}: {flat.get(name, 'absent')} here, "
        f"{other_flat.get(name, 'absent')} there"
        for name in sorted(flat.keys() | other_flat.keys())
        if flat.get(name) != other_flat.get(name)
    ]


def _check_min_density(given: dict[str, Any]) -> None:
    minimum, density = given["prune.min_density"], 1 - given["prune.sparsity"]
    is_pruned = given["prune.method"] != "none"
    if not 0.0 <= minimum <= (density if is_pruned else 1.0):
        raise ValueError(
            f"config.prune.min_density is {minimum}; it must be >= 0 and at most the "
            f"density of the whole, 1 - config.prune.sparsity, which is {density:.6g}"
        )
    if minimum and given["prune.select"] != "global":
        raise ValueError(
            f"config.prune.min_density is {minimum}, but config.prune.select is "
            f"'{given['prune.select']}', which leaves every leaf the same density; set "
            "one of the two to its default"
        )


def _check_large(given: dict[str, Any]) -> None:
    is_large = given["mesh"] or given["dataset.stream"]
    if given["mesh"]:
        mesh_axes(given["mesh"])
    if is_large and (given["seeds"] > 1 or given["vary"]):
        raise ValueError(
            "config.mesh and config.dataset.stream are for one network at a time, but "
            "config asks for several runs; start them one by one"
        )
    known = dict(fields(default()))
    for name in _NOT_LARGE if is_large else _LARGE:
        if given[name] != known[name]:
            raise ValueError(
                f"config.{name} is {given[name]!r}, which is "
                f"{'not ' if is_large else ''}for runs with config.mesh or "
                f"config.dataset.stream; leave it at {known[name]!r}"
            )


def _parsed(name: str, value: str, like: Any) -> Any:
    """A value given as text, of the type of another."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(like)(value)
    except (KeyError, ValueError):
        raise ValueError(wrong_type(name.split(".")[-1], value)) from None


def _check_type(name: str, value: Any, like: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float) and is_number:
        return
    if type(value) is not type(like):
        raise ValueError(
            f"config.{name} is {value!r}, of type {type(value).__name__}; it must be "
            f"of type {type(like).__name__}, like its default {like!r}"
        )
