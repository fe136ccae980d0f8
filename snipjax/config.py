"""The configuration of an experiment: its defaults, its checks and its combinations.

Importing this module loads no JAX, so that a mistake is told at once.
"""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from snipjax import combinations
from snipjax._src import imports
from snipjax.schema import FIELDS, LARGEST, SEEDS, Field

__all__ = ["cells", "default", "fields", "validate"]


def default() -> ConfigDict:
    """Returns the paper's protocol on the embedded digits; a new copy at each call.

    The fields are typed: assigning to a name that does not exist or a value of another
    type raises an error.

    Example:
      >>> config = default()
      >>> config.prune.sparsity = 0.95
      >>> config.model.name, config.prune.method
      ('lenet_300_100', 'snip')
    """
    return from_fields(FIELDS)


def from_fields(table: Sequence[Field]) -> ConfigDict:
    """Returns a locked configuration of the fields in a table, at their defaults."""
    config = ConfigDict()
    for field in table:
        *sections, name = field.name.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        place[name] = field.default
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Checks every field of a configuration.

    Args:
      config: a configuration like the default.

    Raises:
      ValueError: naming the first unknown, missing or wrong field, and the remedy.

    Example:
      >>> config = default()
      >>> validate(config)
      >>> config.prune.sparsity = 1.5
      >>> validate(config)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: config.prune.sparsity is 1.5; it must be < 1: ...
    """
    check(config, FIELDS)
    given = dict(fields(config))
    _check_runs(given)
    if given["mesh"]:
        mesh_axes(given["mesh"])
    combinations.check(given, dict(fields(default())))


def check(config: ConfigDict, table: Sequence[Field]) -> None:
    """Raises a ``ValueError`` naming the first field that does not fit a table."""
    check_types(config, table)
    given = dict(fields(config))
    for field in table:
        _check_value(field, given[field.name])


def check_types(config: Any, table: Sequence[Field]) -> None:
    """Raises a ``ValueError`` naming an unknown, missing or wrongly typed field."""
    given, known = dict(fields(config)), {field.name for field in table}
    for name in given:
        if name not in known:
            raise ValueError(unknown_field(name, from_fields(table)))
    for field in table:
        if field.name not in given:
            raise ValueError(
                f"config has no field '{field.name}'; start from config.default"
            )
        _check_type(field.name, given[field.name], field.default)


def is_large(config: ConfigDict) -> bool:
    return bool(config.mesh or config.dataset.stream)


def mesh_axes(text: str) -> dict[str, int]:
    """Returns the sizes of a mesh's axes, ``data`` and ``model``; 1 if not given.

    >>> mesh_axes("model=2")
    {'data': 1, 'model': 2}
    """
    axes = {"data": 1, "model": 1}
    seen = set()
    for entry in text.split(","):
        name, _, size = (part.strip() for part in entry.partition("="))
        if not (size.isascii() and size.isdigit() and 0 < int(size[:10]) < 2**31):
            raise ValueError(
                f"config.mesh is '{text}'; it must be axes and their sizes, of at "
                "least 1, like 'data=4,model=2'"
            )
        if name not in axes:
            raise ValueError(
                f"config.mesh '{text}' has an axis '{name}'; the axes are "
                f"{' and '.join(axes)}"
            )
        if name in seen:
            raise ValueError(f"config.mesh '{text}' has an axis twice; leave one out")
        seen.add(name)
        axes[name] = int(size)
    return axes


def parse_entry(entry: str) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Returns the fields that an entry of ``config.vary`` sets, and their values.

    Several fields, joined by ``&``, take each value together, or a value each where
    these are joined by ``&`` too.

    >>> parse_entry("prune.sparsity=0.9,0.95")
    (('prune.sparsity',), ((0.9,), (0.95,)))
    >>> parse_entry("prune.method&prune.select=snip&global,random&erk")[1]
    (('snip', 'global'), ('random', 'erk'))
    """
    joined, _, text = entry.partition("=")
    names, values = joined.split("&"), [value.strip() for value in text.split(",")]
    if not all(values):
        raise ValueError(
            f"config.vary has '{entry}'; an entry is <field>=<value>,<value>,... like "
            "'prune.sparsity=0.9,0.95'"
        )
    known = dict(fields(default()))
    for name in names:
        if name not in known:
            raise ValueError(unknown_field(name))
        if name in ("seed", "seeds") or isinstance(known[name], tuple):
            raise ValueError(
                f"config.{name} cannot be varied; config.seeds takes several seeds, "
                "and other fields several values"
            )
    parsed = []
    for value in values:
        parts = value.split("&") if "&" in value else [value] * len(names)
        if len(parts) != len(names):
            raise ValueError(
                f"config.vary has '{value}' for {len(names)} fields in '{entry}'; give "
                "one value for all, or one for each, joined by &"
            )
        pairs = zip(names, parts)
        parsed.append(tuple(_parsed(name, part, known[name]) for name, part in pairs))
    if len(set(parsed)) < len(values):
        raise ValueError(f"config.vary has a value twice in '{entry}'; leave one out")
    return tuple(names), tuple(parsed)


def setting(names: Sequence[str], values: Sequence[Any]) -> tuple[str, str]:
    """Returns the name and the text of one value of an entry of ``config.vary``.

    >>> setting(("prune.method", "prune.select"), ("random", "erk"))
    ('prune.method&prune.select', 'random&erk')
    """
    parts = [str(value) for value in values]
    return "&".join(names), parts[0] if len(set(parts)) == 1 else "&".join(parts)


def cells(config: ConfigDict) -> dict[str, ConfigDict]:
    r"""Returns a configuration for each combination of values in ``config.vary``.

    The configurations vary nothing. They are named by their settings, such as
    ``prune.sparsity=0.9``, in the order of the values.

    .. math:: \text{number of configurations} = \prod_e \text{values of entry } e

    Args:
      config: a configuration with entries ``<field>=<value>,<value>,...`` in ``vary``.

    Returns:
      Configurations by their names.

    Raises:
      ValueError: naming the first wrong entry or field.

    Example:
      >>> config = default()
      >>> config.vary = ("prune.sparsity=0.9,0.95",)
      >>> list(cells(config))
      ['prune.sparsity=0.9', 'prune.sparsity=0.95']
    """
    entries = [parse_entry(entry) for entry in config.vary]
    named = {}
    for values in itertools.product(*(values for _, values in entries)):
        cell = config.copy_and_resolve_references()
        cell.vary = ()
        settings = []
        for (names, _), value in zip(entries, values):
            cell.update_from_flattened_dict(dict(zip(names, value)))
            settings.append("=".join(setting(names, value)))
        validate(cell)
        named[" ".join(settings)] = cell
    return named


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of every field of a nested configuration.

    Args:
      config: a nested dictionary or configuration.
      prefix: text before every name.

    Yields:
      ``(name, value)``, in the order of the fields.

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
    """Returns the dotted names of all fields of a configuration, or of the default."""
    table = [field.name for field in FIELDS]
    if like is None:
        return table
    given = [name for name, _ in fields(like)]
    return sorted(given, key=lambda n: table.index(n) if n in table else len(table))


def unknown_field(name: str, like: ConfigDict | None = None) -> str:
    """Returns the message for a field that does not exist, with the nearest that does.

    ``like`` has all fields; it is the default configuration if left out.
    """
    known = field_names(like)
    within = [field for field in known if field.startswith(f"{name}.")]
    if within:
        return f"config.{name} is a section; its fields are {', '.join(within)}"
    sections = dict.fromkeys(field.split(".")[0] for field in known)

    def likeness(field: str) -> tuple[float, float]:
        # The last part comes first: often it is right, and its section is not.
        parts = zip(name.rpartition(".")[::2], field.rpartition(".")[::2])
        place, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in parts)
        return last, place if place > 0.6 else 0.0

    nearest = max([*known, *sections], key=likeness)
    return f"config has no field '{name}'; did you mean '{nearest}'?"


def wrong_type(name: str, value: str, like: ConfigDict | None = None) -> str:
    """Returns the message for a value that does not fit a field's type.

    ``name`` may be the last part of the field's name. ``like`` has all fields; it is
    the default configuration if left out.

    >>> wrong_type("steps", "many")
    "config field 'train.steps' cannot be many; its default is 1000, an int"
    """
    values = dict(fields(default() if like is None else like))
    for field in field_names(like):
        if name in (field, field.split(".")[-1]):
            article = "an" if isinstance(values[field], int) else "a"
            return (
                f"config field '{field}' cannot be {value}; its default is "
                f"{values[field]!r}, {article} {type(values[field]).__name__}"
            )
    return f"config field '{name}' cannot be {value}"


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns a line for each field in which two plain nested configurations differ."""
    flat, other_flat = (
        # JSON has lists for tuples.
        {k: list(v) if isinstance(v, tuple) else v for k, v in fields(values)}
        for values in (config, other)
    )
    return [
        f"{name}: {flat.get(name, 'absent')} here, "
        f"{other_flat.get(name, 'absent')} there"
        for name in sorted(flat.keys() | other_flat.keys())
        if flat.get(name) != other_flat.get(name)
    ]


def _check_value(field: Field, value: Any) -> None:
    name = f"config.{field.name}"
    if field.choices and not (field.own and imports.is_import_path(value)):
        if value not in field.choices:
            nearest = difflib.get_close_matches(value, [*field.choices], 1, cutoff=0.0)
            own = ", or an import path like mine:function" if field.own else ""
            raise ValueError(
                f"{name} is '{value}'; did you mean '{nearest[0]}'? There are "
                f"{', '.join(field.choices)}{own}"
            )
    elif isinstance(field.default, int | float):
        is_int = isinstance(field.default, int)
        below = field.below or (2**31 if is_int else LARGEST)
        bound = f"<= {below - 1}" if is_int else f"< {below:g}"
        if not value >= field.least:
            bound = f">= {field.least:g}"
        elif value < below:
            return
        raise ValueError(f"{name} is {value}; it must be {bound}: {field.help}")


def _check_type(name: str, value: Any, like: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float) and is_number:
        return
    if type(value) is not type(like):
        raise ValueError(
            f"config.{name} is {value!r}, of type {type(value).__name__}; it must be "
            f"of type {type(like).__name__}, like its default {like!r}"
        )


def _check_runs(given: dict[str, Any]) -> None:
    names = [name for entry in given["vary"] for name in parse_entry(str(entry))[0]]
    if len(set(names)) < len(names):
        raise ValueError(
            f"config.vary has a field twice: {', '.join(sorted(names))}; give all of "
            "its values in one entry"
        )
    if given["seed"] + given["seeds"] > SEEDS:
        raise ValueError(
            f"config.seed + config.seeds is {given['seed'] + given['seeds']}; it must "
            f"be <= {SEEDS}"
        )


def _parsed(name: str, text: str, like: Any) -> Any:
    """Returns a value given as text, in the type of another."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(like)(text)
    except (KeyError, ValueError):
        raise ValueError(wrong_type(name, text)) from None
