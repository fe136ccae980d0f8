"""Names and checks of pytree leaves, shared by the core modules."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

KeyPath = tuple[Any, ...]


def path_name(path: KeyPath) -> str:
    """Returns a leaf's path as text, e.g. ``Dense_0/kernel``.

    The ``value`` attribute that ends every path of a Flax NNX state is left out.
    """
    if path and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: chex.ArrayTree) -> list[tuple[str, Any]]:
    """Returns ``(name, leaf)`` of every leaf, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_name(path), leaf) for path, leaf in leaves]


def is_traced(tree: chex.ArrayTree) -> bool:
    """Whether a leaf is being traced, so that its values cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_arrays(tree: chex.ArrayTree, what: str, advice: str) -> None:
    """Raises a ``ValueError`` that names the first leaf which is not an array."""
    for name, leaf in named_leaves(tree):
        try:
            jax.typeof(leaf)
        except (TypeError, ValueError):
            raise ValueError(
                f"{what} leaf '{name}' is a {type(leaf).__name__}, not an array; "
                f"{advice}"
            ) from None


def check_floating(tree: chex.ArrayTree, what: str) -> None:
    """Raises a ``ValueError`` that names the first leaf which is not a float array."""
    check_arrays(
        tree,
        what,
        "pass the arrays only, e.g. equinox.filter(model, equinox.is_inexact_array)",
    )
    for name, leaf in named_leaves(tree):
        dtype = jax.typeof(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{what} leaf '{name}' has dtype {dtype}, which has no gradient; split "
                "the trainable floating-point leaves off and pass only those"
            )


def check_same_structure(
    tree: chex.ArrayTree, like: chex.ArrayTree, what: str, like_what: str
) -> None:
    """Raises a ``ValueError`` if the two pytrees differ in structure."""
    if jax.tree.structure(tree) == jax.tree.structure(like):
        return
    names = {name for name, _ in named_leaves(tree)}
    like_names = {name for name, _ in named_leaves(like)}
    missing, extra = sorted(like_names - names), sorted(names - like_names)
    difference = "; ".join(
        text
        for text in (
            f"missing leaves: {', '.join(missing)}" if missing else "",
            f"unknown leaves: {', '.join(extra)}" if extra else "",
        )
        if text
    )
    if not difference:
        difference = f"{jax.tree.structure(tree)} against {jax.tree.structure(like)}"
    raise ValueError(
        f"{what} does not have the structure of {like_what} ({difference}); build it "
        f"from the same pytree as {like_what}"
    )
