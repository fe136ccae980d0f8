"""Values for the variables of a model, and its layers in NumPy."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def shapes(model: nn.Module, inputs: Any, **settings: Any) -> chex.ArrayTree:
    return jax.eval_shape(model.clone(**settings).init, jax.random.key(0), inputs)


def sampled(model: nn.Module, inputs: Any) -> chex.ArrayTree:
    """Variables of a model, none of them at a value that hides a mistake."""
    rng = np.random.default_rng(2)

    def sample(path: Any, leaf: chex.Array) -> chex.Array:
        x = 0.1 * rng.normal(size=leaf.shape)
        is_about_one = path[-1].key in ("scale", "var")
        return jnp.asarray(np.abs(1 + x) if is_about_one else x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(sample, shapes(model, inputs))


def convolved(
    x: np.ndarray, kernel: np.ndarray, stride: int = 1, padding: tuple | None = None
) -> np.ndarray:
    """Pads by half of the kernel on both sides, or by ``(low, high)``."""
    low, high = padding or 2 * (kernel.shape[0] // 2,)
    x = np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)


def batch_normed(x: np.ndarray, layer: Any, stats: Any) -> np.ndarray:
    normed = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return normed * layer["scale"] + layer["bias"]


def dense(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)
