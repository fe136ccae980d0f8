"""Which leaves of a pytree are pruned: predicates of names and shapes."""

import dataclasses
import difflib
import fnmatch
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import checks, trees
from snipjax._src.types import KeyPath, Predicate, Prunable

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_KERNEL = re.compile(r"(.*_)?(kernel|weights?|w)_?\d*", re.IGNORECASE)
_BIAS = re.compile(r"(.*_)?bias(es)?_?\d*(_.*)?", re.IGNORECASE)
# A matrix of one row or column that has such a name is a magnitude or a scale.
_SCALE = re.compile(
    r"g_?\d*|ls_?\d*|(.*_)?(gamma|lambda|scale)_?\d*|original0|cls_token",
    re.IGNORECASE,
)
# A leaf of these names is a bias only if it is a vector: a matrix "b" may be a weight.
_B, _NUMBER = re.compile(r"(.*_)?b_?\d*"), re.compile(r"\d+")
_ATTENTION_BIAS = re.compile(r"b_?[qkvo]")
_NORMALIZATION = re.compile(r"(batch|layer|group|instance|rms)_?norm(_.*)?")
_ABBREVIATIONS = ("bn", "ln", "gn")


def kernels(path: KeyPath, leaf: chex.Array) -> bool:
    """Returns whether a leaf is a weight matrix or a convolution's kernel.

    A kernel has two or more dimensions, and is neither a bias nor a parameter of a
    normalization layer, whatever their shapes: attention has biases ``[heads, width]``,
    and ``flax.linen.scan`` stacks the vectors of its layers. Biases and normalization
    are known by their names, as :func:`is_bias` and :func:`is_normalization` tell.
    A leaf ``[C, 1]`` or ``[1, C]`` called ``g``, ``gamma``, ``layer_scale`` or alike is
    the scale of a weight norm or a layer. A leaf of three or more dimensions of which
    at most one is longer than 1, such as ``[1, 1, 1, C]``, must have the name of a
    kernel to be one. Leaves without names, such as a list of Keras variables, need a
    dict of them by ``variable.path``.

    Args:
      path: key path of the leaf.
      leaf: array.

    Returns:
      True for a kernel.

    Example:
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "norm": {"w": jnp.ones(2)}}
      >>> jax.tree_util.tree_map_with_path(kernels, params)
      {'b': False, 'norm': {'w': False}, 'w': True}
    """
    shape = jnp.shape(leaf)
    if len(shape) < 2 or is_bias(path, leaf) or is_normalization(path):
        return False
    is_named = _KERNEL.fullmatch(_names(path)[-1]) is not None
    is_matrix = len(shape) == 2 and not _is_scale(path, leaf)
    return is_named or is_matrix or _long_axes(leaf) >= 2


def weights_and_biases(path: KeyPath, leaf: chex.Array) -> bool:
    """Returns whether a leaf is a weight or a bias, the choice of the SNIP paper.

    These are all arrays but the parameters of normalization layers, which are known
    by their names, as :func:`is_normalization` tells, and scales ``[C, 1]``.

    Args:
      path: key path of the leaf.
      leaf: array.

    Returns:
      True for a weight or bias.

    Example:
      >>> params = {"Dense_0": {"bias": jnp.ones(2)}, "norm": {"bias": jnp.ones(2)}}
      >>> jax.tree_util.tree_map_with_path(weights_and_biases, params)
      {'Dense_0': {'bias': True}, 'norm': {'bias': False}}
    """
    is_other = is_normalization(path) or _is_scale(path, leaf)
    return jnp.ndim(leaf) >= 1 and not is_other


def is_bias(path: KeyPath, leaf: chex.Array) -> bool:
    """Returns whether a leaf is a bias, by its name.

    The name is ``bias``, ``qkv_bias``, ``bias_1``, ``b_q`` or alike. A leaf called
    ``b`` or ``b1`` is a bias if at most one axis is longer than 1, or if Haiku's
    ``layer_stack`` stacks it; a leaf with a number for a name, if it has one dimension.

    Args:
      path: key path of the leaf.
      leaf: array.

    Returns:
      True for a bias.

    Example:
      >>> is_bias((jax.tree_util.DictKey("bias"),), jnp.ones((8, 64)))
      True
    """
    name = _names(path)[-1]
    if _ATTENTION_BIAS.fullmatch(name):
        return True
    if _B.fullmatch(name):
        is_stacked = "layer_stack" in trees.path_name(path) and jnp.ndim(leaf) == 2
        return is_stacked or _long_axes(leaf) <= 1
    is_numbered_vector = _NUMBER.fullmatch(name) and jnp.ndim(leaf) < 2
    return bool(is_numbered_vector or _BIAS.fullmatch(name))


def is_normalization(path: KeyPath) -> bool:
    """Returns whether a leaf belongs to a normalization layer, by its name.

    Its module is called ``BatchNorm_0``, ``layer_norm``, ``norm2``,
    ``layernorm_before``, ``conv1_bn``, ``gn_root``, ``ln_f`` or alike, or the leaf
    itself is, or it is called ``scale``, ``offset`` or ``weight_g``. A leaf called
    ``kernel`` never belongs to one, nor does a module inside of one:
    ``pre_norm/linear/w`` is a weight.

    Args:
      path: key path of the leaf.

    Returns:
      True for a parameter of a normalization layer.

    Example:
      >>> is_normalization(tuple(map(jax.tree_util.DictKey, ("ln_f", "bias"))))
      True
    """
    *modules, name = _names(path)
    if name == "kernel":
        return False
    # In lists, modules have numbers for names.
    module = [part for part in modules if not _NUMBER.fullmatch(part)][-1:]
    is_leaf_named = name.lower() in ("scale", "offset", "weight_g")
    return is_leaf_named or any(map(_names_normalization, (*module, name)))


def excluding(prunable: Predicate, *patterns: str) -> Predicate:
    """Returns a predicate like ``prunable`` that is false where a pattern matches.

    A pattern is matched against the whole name of a leaf, such as
    ``decoder/layer_3/mlp/kernel``: ``*`` stands for any text, slashes included, ``?``
    for one character and ``[ab]`` for one of these, as in :mod:`fnmatch`; case matters.

    Args:
      prunable: predicate ``(key_path, leaf) -> bool``.
      patterns: e.g. ``"*embedding"``, ``"head/*"``, of leaves that are to stay dense.

    Returns:
      A predicate. A selection raises a ``ValueError`` for a pattern that matches no
      leaf, which is most likely misspelled.

    Raises:
      ValueError: for a pattern that is not a string.

    Example:
      >>> params = {"embedding": jnp.ones((2, 2)), "head": {"kernel": jnp.ones((2, 2))}}
      >>> are_prunable(params, excluding(kernels, "*embedding"))
      [False, True]
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"pattern {pattern!r} is a {type(pattern).__name__}, not a string; a "
                "pattern is matched against a leaf's name, e.g. '*embedding'"
            )
    return _Excluding(prunable, patterns) if patterns else prunable


def are_prunable(params: chex.ArrayTree, prunable: Prunable = kernels) -> list[bool]:
    """Returns whether each leaf is prunable, in tree order.

    Args:
      params: pytree of arrays.
      prunable: predicate ``(key_path, leaf) -> bool``, or a pytree of bools like
        ``params``. Leaves without a dimension or without entries are never prunable.

    Returns:
      A bool for each leaf.

    Raises:
      ValueError: if a pattern of :func:`excluding` matches no leaf, or a pytree of
        bools is not like ``params``.

    Example:
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> are_prunable(params)
      [False, True]
      >>> are_prunable(params, {"w": False, "b": True})
      [True, False]
    """
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    bools = jax.tree.leaves(prunable)
    if all(isinstance(leaf, bool | np.bool) for leaf in bools):
        checks.check_same_structure(prunable, params, "prunable", "params")
    elif callable(prunable):
        _check_patterns(
            prunable, [trees.path_name(path) for path, _ in paths_and_leaves]
        )
        bools = [prunable(path, leaf) for path, leaf in paths_and_leaves]
    else:
        raise ValueError(
            f"prunable is a {type(prunable).__name__}, which is neither a predicate "
            "(key_path, leaf) -> bool nor a pytree of bools like params; pass e.g. "
            "masks.kernels"
        )
    return [
        np.ndim(leaf) >= 1 and math.prod(np.shape(leaf)) > 0 and bool(is_prunable)
        for (_, leaf), is_prunable in zip(paths_and_leaves, bools)
    ]


@dataclasses.dataclass(frozen=True)
class _Excluding:
    """A predicate that can tell its patterns."""

    prunable: Predicate
    patterns: tuple[str, ...]

    def __call__(self, path: KeyPath, leaf: chex.Array) -> bool:
        name = trees.path_name(path)
        is_excluded = any(fnmatch.fnmatchcase(name, p) for p in self.patterns)
        return not is_excluded and self.prunable(path, leaf)


def _check_patterns(prunable: Predicate, names: list[str]) -> None:
    while isinstance(prunable, _Excluding):
        for pattern in prunable.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                nearest = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
                raise ValueError(
                    f"pattern '{pattern}' excludes nothing: it matches no leaf; the "
                    f"names most like it are {', '.join(nearest)} ('*' stands for any "
                    "text)"
                )
        prunable = prunable.prunable


def _names(path: KeyPath) -> list[str]:
    """Returns the names along a path; keys of files have dots, ``layer1.0.weight``."""
    return re.split("[/.]", trees.path_name(path))


def _is_scale(path: KeyPath, leaf: chex.Array) -> bool:
    is_named = _SCALE.fullmatch(_names(path)[-1]) is not None
    return is_named and jnp.ndim(leaf) >= 2 and _long_axes(leaf) <= 1


def _long_axes(leaf: chex.Array) -> int:
    return sum(size > 1 for size in jnp.shape(leaf))


def _names_normalization(part: str) -> bool:
    """Returns whether a name is of a norm: BatchNorm_0, norm1, gn_root, ln_f are."""
    words = [word.lower() for word in _WORD.findall(part)]
    words = [word for word in words if len(word) > 1]
    if not words:
        return False
    return (
        words[0] in _ABBREVIATIONS
        or words[-1] in _ABBREVIATIONS
        or words[-1].endswith(("norm", "norms", "normalization"))
        or _NORMALIZATION.fullmatch(part) is not None
    )
