"""Checks of the fields of a configuration that do not go together."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from snipjax import build

Fields: TypeAlias = Mapping[str, Any]  # by dotted name

# Streams and meshes have these alone, or do not have them.
_LARGE = ("dataset.image_size", "dataset.view", "dataset.workers", "train.remat")
_NOT_OF_UNITS = ("prune.rounds", "prune.invert", "prune.shuffle", "prune.exclude")
_NOT_LARGE = ("dataset.random_labels", "prune.batch_class", "prune.per_class")
# Numbers of steps of the methods, per step of dense training.
_SHARES = ("retraining", "surgery", "recovery", "learning", "share")
# Fields of optimizer.sparse that each optimizer takes; one of the user's own, any.
MOVES: Mapping[str, tuple[str, ...]] = {
    "static": (),
    "rigl": ("every", "stop", "fraction", "layerwise"),
    "set": ("every", "stop", "fraction", "layerwise"),
    "sparse_momentum": ("every", "stop", "fraction"),
    "gradual_magnitude": ("every", "stop", "start", "layerwise", "sparsity"),
    "straight_through": ("every", "stop", "sparsity"),
}
_RELOCATE = ("rigl", "set", "sparse_momentum")


def check(given: Fields, known: Fields) -> None:
    """Raises a ``ValueError`` naming the first field that does not fit another.

    ``known`` has the default of every field.
    """
    _check_large(given, known)
    _check_pruning(given, known)
    _check_units(given, known)
    _check_moves(given, known)


def _check_default(
    name: str, given: Fields, known: Fields, use: str, remedy: str = ""
) -> None:
    if given[name] != known[name]:
        raise ValueError(
            f"config.{name} is {given[name]!r}, which {use}; leave it at "
            f"{known[name]!r}{remedy}"
        )


def _check_large(given: Fields, known: Fields) -> None:
    is_large = given["mesh"] or given["dataset.stream"]
    if is_large and (given["seeds"] > 1 or given["vary"]):
        raise ValueError(
            "config.mesh and config.dataset.stream are for one network at a time, but "
            "config asks for several runs; start them one by one"
        )
    if is_large and given["prune.method"] in build.RIVALS:
        raise ValueError(
            f"method '{given['prune.method']}' trains on data in memory; leave "
            "config.mesh and config.dataset.stream at their defaults"
        )
    use = "is not for" if is_large else "is for"
    for name in _NOT_LARGE if is_large else _LARGE:
        _check_default(
            name, given, known, f"{use} runs with config.mesh or config.dataset.stream"
        )


def _check_pruning(given: Fields, known: Fields) -> None:
    if not given["prune.fresh_init"] and given["init.trained"] != given["init.scored"]:
        raise ValueError(
            f"config.init.trained is '{given['init.trained']}', but without "
            "prune.fresh_init the scored sample is trained, which config.init.scored "
            f"makes '{given['init.scored']}'; make them equal"
        )
    method, minimum = given["prune.method"], given["prune.min_density"]
    if given["prune.pretrained"] and method not in build.RIVALS:
        raise ValueError(
            f"config.prune.pretrained is '{given['prune.pretrained']}', but method "
            f"'{method}' starts from no trained network; {', '.join(build.RIVALS)} do"
        )
    if method in build.RIVALS:
        for name in ("prune.invert", "prune.shuffle", "wandb"):
            if given[name]:
                raise ValueError(
                    f"config.{name} is for criteria, which prune before training, but "
                    f"method '{method}' prunes a trained network; leave it at "
                    f"{known[name]!r}"
                )
    for name in (f"{method}.{share}" for share in _SHARES):
        steps = given["train.steps"]
        if name in given and given[name] * steps >= 2**31:
            raise ValueError(
                f"config.{name} is {given[name]:g}, which makes 2**31 steps or more of "
                f"config.train.steps, {steps}; make one of the two smaller"
            )
    if method in ("prospr", "prospr_first_order"):
        _check_parts(given, method)
    density = 1.0 if method == "none" else 1 - given["prune.sparsity"]
    if given["prune.batch_norm"] == "batch" and method in ("fisher", "taylor_fisher"):
        raise ValueError(
            f"config.prune.batch_norm is 'batch', but {method} takes the gradient of "
            "one example at a time, which has no variance; take 'inference'"
        )
    if minimum > density:
        raise ValueError(
            f"config.prune.min_density is {minimum}; it must be at most the density of "
            f"the whole, 1 - config.prune.sparsity, which is {density:.6g}"
        )
    if minimum and given["prune.select"] != "global":
        raise ValueError(
            f"config.prune.min_density is {minimum}, but config.prune.select is "
            f"'{given['prune.select']}'; set one of the two to its default"
        )


def _check_units(given: Fields, known: Fields) -> None:
    select = given["prune.select"]
    if select not in build.UNITS:
        use = f"config.prune.select={select} does not take"
        remedy = f", or select one of {', '.join(build.UNITS)}"
        _check_default("prune.keep_flops", given, known, use, remedy)
        return
    for name in ("mesh", "dataset.stream", "optimizer.sparse.name", *_NOT_OF_UNITS):
        use = f"is not for the smaller networks of config.prune.select={select}"
        _check_default(name, given, known, use)
    method = given["prune.method"]
    if method in ("none", *build.RIVALS):
        raise ValueError(
            f"config.prune.method is '{method}', which scores no units; choose a "
            "criterion, e.g. snip"
        )
    if not 0 < given["prune.keep_flops"] <= 1:
        raise ValueError(
            f"config.prune.keep_flops is {given['prune.keep_flops']}; it must be in "
            "(0, 1], the share of the operations to keep"
        )


def _check_moves(given: Fields, known: Fields) -> None:
    section = "optimizer.sparse."
    name = given[section + "name"]
    taken = {section + field for field in ("name", *MOVES.get(name, ()))}
    for field in known if name in MOVES else ():
        if field.startswith(section) and field not in taken:
            use = f"config.{section}name={name} does not take"
            _check_default(field, given, known, use)
    start, stop = given[section + "start"], given[section + "stop"]
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"config.{section}start is {start:g} and stop is {stop:g}; they are shares "
            "of the steps: 0 <= start < stop <= 1"
        )
    method = given["prune.method"]
    if name != "static" and method in build.RIVALS:
        raise ValueError(
            f"config.{section}name is '{name}', but '{method}' trains by itself; "
            "leave it at 'static'"
        )
    if name in _RELOCATE:
        _check_relocation(given, name)
    sparsity, first = given[section + "sparsity"], given["prune.sparsity"]
    if name == "gradual_magnitude" and method != "none" and sparsity <= first:
        raise ValueError(
            f"config.{section}sparsity is {sparsity:g}, but the mask to start from has "
            f"config.prune.sparsity {first:g}; make the latter smaller, or let "
            "config.prune.method be 'none' to start from the dense network"
        )


def _check_relocation(given: Fields, name: str) -> None:
    if given["prune.method"] == "none":
        raise ValueError(
            f"config.prune.method is 'none', but {name} needs pruned connections to "
            "grow; choose a criterion, e.g. random"
        )
    every, steps = given["optimizer.sparse.every"], given["train.steps"]
    end = build.last_step(given["optimizer.sparse.stop"], steps)
    if every >= end:
        raise ValueError(
            f"config.optimizer.sparse.every is {every}, but the mask stays from step "
            f"{end} of {steps} on, so that it never moves; make it smaller"
        )


def _check_parts(given: Fields, method: str) -> None:
    name = "per_class" if given["prune.per_class"] else "batch_size"
    if given["prune.num_batches"] > 1:
        name = "num_batches"
    size, parts = given[f"prune.{name}"], given[f"{method}.steps"] + 1
    if size % parts:
        raise ValueError(
            f"config.prune.{name} is {size}, but method '{method}' divides it into "
            f"{method}.steps + 1 = {parts} equal parts; make it a multiple of {parts}"
        )
