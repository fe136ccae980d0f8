"""Pytrees of arrays, e.g. parameters, as NumPy archives."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees
from snipjax.io import files


def save_arrays(
    tree: chex.ArrayTree,
    path: str | os.PathLike,
    *,
    on_host: Callable[[chex.Array], np.ndarray] = np.asarray,
) -> None:
    """Writes a pytree of arrays as an ``npz`` file of arrays named by their leaves.

    The leaves are copied to the host one after the other, so that the host holds one at
    a time. The file takes the place of an earlier one at once, when it is complete.

    Args:
      tree: pytree of arrays, e.g. parameters.
      path: path of the file.
      on_host: function from an array to the NumPy array of its values. Arrays with
        parts on other processes need ``snipjax.training.distributed.on_host``.

    Raises:
      ValueError: if two leaves have the same name.
      OSError: if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "params.npz")
      >>> save_arrays({"Dense_0": {"bias": jnp.zeros(2)}}, path)
      >>> np.load(path)["Dense_0/bias"]
      array([0., 0.], dtype=float32)
    """
    named = trees.named_leaves(tree)
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two leaves are called '{twice[0]}'; rename one of them")
    with (
        files.replacing(Path(path)) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, leaf in named:
            array = on_host(leaf)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def load_arrays(path: str | os.PathLike, like: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the pytree of arrays that an ``npz`` file holds.

    Args:
      path: path of a file written by :func:`save_arrays`.
      like: pytree of arrays or ``jax.ShapeDtypeStruct``, whose structure and shapes
        the result has.

    Returns:
      A pytree like ``like``, with the values and dtypes of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, or its names or shapes differ from ``like``.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "params.npz")
      >>> save_arrays({"w": jnp.arange(3)}, path)
      >>> load_arrays(path, like={"w": jnp.zeros(3)})
      {'w': Array([0, 1, 2], dtype=int32)}
    """
    tree = read(path, like)
    for (name, array), leaf in zip(trees.named_leaves(tree), jax.tree.leaves(like)):
        if array.shape != jnp.shape(leaf):
            raise ValueError(
                f"'{path}': '{name}' has shape {array.shape}, not {jnp.shape(leaf)}; "
                "it was written from another network"
            )
    return tree


def read_named(
    path: str | os.PathLike, remedy: str = "remove it and write it again"
) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by their names, in its order."""
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises errors of many classes
        raise ValueError(f"'{path}' is damaged ({error}); {remedy}") from error


def read(path: str | os.PathLike, like: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the arrays of a file in the structure of ``like``, of any shapes."""
    leaves, arrays = dict(trees.named_leaves(like)), read_named(path)
    missing = [name for name in leaves if name not in arrays]
    unknown = [name for name in arrays if name not in leaves]
    if missing or unknown:
        parts = {"missing leaves": missing, "unknown leaves": unknown}
        text = "; ".join(
            f"{k}: {', '.join(names)}" for k, names in parts.items() if names
        )
        raise ValueError(
            f"'{path}' does not fit ({text}); it was written from another network"
        )
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [jnp.asarray(_typed(arrays[name], leaf)) for name, leaf in leaves.items()],
    )


def _typed(array: np.ndarray, leaf: chex.Array) -> np.ndarray:
    # The format has no name for bfloat16 and its like, only their bytes.
    return array.view(leaf.dtype) if array.dtype.kind == "V" else array
