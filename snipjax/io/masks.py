"""Masks as files."""

import os
from collections.abc import Callable

import chex
import numpy as np

from snipjax import masks
from snipjax.io import arrays


def save_mask(
    mask: chex.ArrayTree,
    path: str | os.PathLike,
    *,
    on_host: Callable[[chex.Array], np.ndarray] = np.asarray,
) -> None:
    """Writes a mask as an ``npz`` file of bool arrays named by their leaves.

    Args:
      mask: pytree of bool arrays.
      path: path of the file; an earlier one is replaced at once.
      on_host: function from an array to the NumPy array of its values. Arrays with
        parts on other processes need ``snipjax.training.distributed.on_host``.

    Raises:
      ValueError: if a leaf is not a bool array.
      OSError: if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> path = pathlib.Path(tempfile.mkdtemp(), "mask.npz")
      >>> save_mask({"w": jnp.array([True, False]), "b": jnp.array(True)}, path)
      >>> load_mask(path, params={"w": jnp.ones(2), "b": jnp.ones(2)})
      {'b': Array(True, dtype=bool), 'w': Array([ True, False], dtype=bool)}
    """
    masks.check_mask(mask, mask)
    arrays.save_arrays(mask, path, on_host=on_host)


def load_mask(path: str | os.PathLike, params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the mask that a file holds, for parameters that it fits.

    Args:
      path: path of a file written by :func:`save_mask`, e.g. a run's ``mask.npz``.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``, to be pruned by the mask.

    Returns:
      A pytree like ``params`` of bool arrays.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or does not fit; the message names a leaf that
        does not.

    Example:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> path = pathlib.Path(tempfile.mkdtemp(), "mask.npz")
      >>> save_mask({"w": jnp.array([True, False])}, path)
      >>> masks.apply(load_mask(path, {"w": jnp.ones(2)}), {"w": jnp.ones(2)})
      {'w': Array([1., 0.], dtype=float32)}
    """
    mask = arrays.read(path, params)
    try:
        masks.check_mask(mask, params)
    except ValueError as error:
        raise ValueError(f"'{path}' does not fit: {error}") from None
    return mask
