"""Checks of arguments of the core: each raises a ``ValueError`` with the remedy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees


def check_arrays(tree: chex.ArrayTree, noun: str, advice: str) -> None:
    """Raises a ``ValueError`` that names the first leaf which is not an array."""
    for name, leaf in trees.named_leaves(tree):
        try:
            jax.typeof(leaf)
        except (TypeError, ValueError):
            raise ValueError(
                f"{noun} leaf '{name}' is a {type(leaf).__name__}, not an array; "
                f"{advice}"
            ) from None


def check_floating(tree: chex.ArrayTree, noun: str) -> None:
    """Raises a ``ValueError`` that names the first leaf which is not a float array."""
    check_arrays(
        tree,
        noun,
        "pass the arrays only, e.g. equinox.filter(model, equinox.is_inexact_array)",
    )
    for name, leaf in trees.named_leaves(tree):
        dtype = jax.typeof(leaf).dtype
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{noun} leaf '{name}' has dtype {dtype}, but the saliency of a "
                "connection is a derivative by a real number; pass its real and "
                "imaginary part as two leaves, and join them in loss_fn with "
                "jax.lax.complex"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{noun} leaf '{name}' has dtype {dtype}, which has no gradient; split "
                "the trainable floating-point leaves off and pass only those. In Flax "
                "NNX make it an nnx.Variable, no nnx.Param, or leave it out by wrt= of "
                "the adapter; in Equinox by filter_spec="
            )


def check_leading_axis(batch: Any) -> int:
    """Returns the number of entries along the leading axis of every leaf of a batch."""
    named = [(name, jnp.shape(leaf)) for name, leaf in trees.named_leaves(batch)]
    if not named:
        raise ValueError(
            "batch has no arrays; pass a pytree of arrays with a leading axis of "
            "examples"
        )
    first, length = named[0][0], named[0][1][:1]
    for name, shape in named:
        if not shape or shape[:1] != length:
            raise ValueError(
                f"batch leaf '{name}' has shape {shape}, and '{first}' has "
                f"{named[0][1]}; pass leaves with one leading axis of examples"
            )
    return int(length[0])


def check_examples(inputs: Any) -> None:
    """Raises a ``ValueError`` unless every leaf has an example along its first axis."""
    for leaf in jax.tree.leaves(inputs):
        if not jnp.ndim(leaf) or not jnp.shape(leaf)[0]:
            raise ValueError(
                f"inputs have shape {jnp.shape(leaf)}; pass arrays [n, ...] with one "
                "example at least"
            )


def check_loss(loss: Any) -> chex.Array:
    """Returns the loss, or raises a ``ValueError`` if it is no float scalar."""
    try:
        kind = jax.typeof(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"loss_fn returned a {type(loss).__name__}; return the scalar loss alone "
            "(keep auxiliary outputs for the training step)"
        ) from None
    if kind.shape != ():
        raise ValueError(
            f"loss_fn returned an array of shape {kind.shape}, not a scalar; "
            "reduce it, e.g. with jnp.mean over the batch"
        )
    if not jnp.issubdtype(kind.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn returned dtype {kind.dtype}, which has no gradient; "
            "return a floating-point scalar"
        )
    return loss


def check_same_structure(
    tree: chex.ArrayTree, like: chex.ArrayTree, noun: str, like_noun: str
) -> None:
    treedef: Any = jax.tree.structure(tree)
    like_treedef: Any = jax.tree.structure(like)
    if treedef == like_treedef:
        return
    names = {name for name, _ in trees.named_leaves(tree)}
    like_names = {name for name, _ in trees.named_leaves(like)}
    missing, extra = sorted(like_names - names), sorted(names - like_names)
    differences = []
    if missing:
        differences.append(f"missing leaves: {', '.join(missing)}")
    if extra:
        differences.append(f"unknown leaves: {', '.join(extra)}")
    if not differences:
        differences.append(_difference(treedef, like_treedef))
    raise ValueError(
        f"{noun} does not have the structure of {like_noun} "
        f"({'; '.join(differences)}); build it from the same pytree as {like_noun}"
    )


def _difference(ours: Any, theirs: Any) -> str:
    """Names the first nodes in which two tree structures with equal names differ."""
    kinds = [(definition.node_data() or (None,))[0] for definition in (ours, theirs)]
    if kinds[0] is kinds[1]:
        for pair in zip(ours.children(), theirs.children()):
            if pair[0] != pair[1]:
                return _difference(*pair)
    names = ["a leaf" if kind is None else f"a {kind.__name__}" for kind in kinds]
    if kinds[0] is kinds[1]:
        return f"each has {names[0]}, with other static fields"
    modules = {base.__module__ for kind in kinds if kind for base in kind.__mro__}
    remedy = ""
    if any(name.startswith("flax.nnx.") for name in modules):
        remedy = "; params of a Flax NNX module are nnx.state(model, nnx.Param)"
    return f"{names[0]} against {names[1]}{remedy}"


def check_same_shapes(
    tree: chex.ArrayTree, like: chex.ArrayTree, noun: str, like_noun: str
) -> None:
    check_same_structure(tree, like, noun, like_noun)
    pairs = zip(trees.named_leaves(tree), jax.tree.leaves(like))
    for (name, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{noun} leaf '{name}' has shape {jnp.shape(leaf)}, but {like_noun} "
                f"has {jnp.shape(other)} there; make them equal"
            )


def check_positive_integer(value: Any, noun: str) -> None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise ValueError(f"{noun} is {value!r}; it must be an integer of at least 1")


def check_fraction(value: Any, noun: str, meaning: str, closed: bool = False) -> float:
    """Returns the value as a float in [0, 1), or in [0, 1] where that is closed."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{noun} is traced, but the number of connections kept must be known; "
            "pass a Python float (close over it, or name it in static_argnames)"
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    is_number = not isinstance(value, bool | np.bool | str | bytes)
    is_inside = 0.0 <= number < 1.0 or (closed and number == 1.0)
    if not (is_number and is_inside):
        interval = "[0, 1]" if closed else "[0, 1)"
        raise ValueError(f"{noun} is {value!r}, outside {interval}; it is {meaning}")
    return number


def check_key(key: chex.PRNGKey | None, criterion: str) -> chex.PRNGKey:
    """Returns the key, or raises a ``ValueError`` if there is none."""
    if key is None:
        raise ValueError(
            f"saliency.{criterion} draws random numbers and has no key; pass key=, "
            "e.g. jax.random.key(0)"
        )
    return key
