"""Convolutions and pools of our networks by form, against XLA's own.

    python -m benchmarks.convolution [--repeats 5] [--only WORDS]

Each row is the value and gradient by images and kernels of one layer (of a first
layer by kernels only), once as `snipjax.ops` chooses and once in each of its forms,
against `lax.conv_general_dilated`; then the same inside `lax.scan`, where XLA runs
its own convolution on one thread. `snipjax.ops` takes its thresholds from these rows.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

from benchmarks import timing
from snipjax import ops
from snipjax.ops import patches, winograd
from snipjax.shrink.cost import times_in_turns

Function = Callable[..., chex.Array]


class Layer(NamedTuple):
    """A convolution of (n, size, size, channels) images."""

    name: str
    n: int
    size: int
    channels: int
    features: int
    kernel: int = 3
    padding: str = "SAME"
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    is_first: bool = False


LAYERS = (
    Layer("LeNet-5 1", 100, 28, 1, 20, kernel=5, padding="VALID", is_first=True),
    Layer("LeNet-5 2", 100, 12, 20, 50, kernel=5, padding="VALID"),
    Layer("AlexNet 1", 128, 32, 3, 96, kernel=11, stride=2, is_first=True),
    Layer("AlexNet 2", 128, 16, 96, 256, kernel=5, stride=2),
    Layer("VGG 1", 128, 32, 3, 64, is_first=True),
    Layer("VGG 2", 128, 32, 64, 64),
    Layer("VGG 3", 128, 16, 64, 128),
    Layer("VGG 4", 128, 16, 128, 128),
    Layer("VGG 5", 128, 8, 128, 256),
    Layer("VGG 6", 128, 8, 256, 256),
    Layer("VGG 8", 128, 4, 256, 512),
    Layer("VGG 9", 128, 4, 512, 512),
    Layer("VGG 11", 128, 2, 512, 512),
    Layer("few channels", 128, 32, 16, 16),
    Layer("stride 2", 128, 32, 16, 32, stride=2),
    Layer("dilated", 128, 32, 64, 64, dilation=2),
    Layer("pointwise", 128, 16, 64, 128, kernel=1),
    Layer("grouped", 128, 16, 64, 64, groups=4),
    Layer("depthwise", 128, 16, 64, 64, groups=64),
    Layer("depthwise 7x7", 128, 16, 64, 64, kernel=7, groups=64),
)
POOLS = {"max_pool": linen.max_pool, "avg_pool": linen.avg_pool}
IN_SCAN = ("LeNet-5 2", "VGG 4", "VGG 9", "few channels", "dilated")
# Thresholds of `snipjax.ops` that choose a form, by the attribute that holds them.
FORMS = {
    "chosen": {},
    "patches": {(winograd, "CHANNELS"): 2**30},
    "winograd": {(winograd, "CHANNELS"): 1},
    "winograd, all at once": {
        (winograd, "CHANNELS"): 1,
        (winograd, "TILES"): 2**30,
    },
    "patches, all at once": {
        (winograd, "CHANNELS"): 2**30,
        (patches, "PATCH_BYTES"): 2**40,
    },
}


def _noise(*shape: int) -> chex.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _layer_gradient(
    layer: Layer, convolve: Function, is_scanned: bool = False
) -> Callable[[], Any]:
    """Returns a compiled function of value and gradient of the layer."""
    images = _noise(layer.n, layer.size, layer.size, layer.channels)
    kernels = _noise(
        layer.kernel, layer.kernel, layer.channels // layer.groups, layer.features
    )

    def value(kernels: chex.Array, images: chex.Array) -> chex.Array:
        out = convolve(
            images,
            kernels,
            (layer.stride, layer.stride),
            layer.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            rhs_dilation=(layer.dilation, layer.dilation),
            feature_group_count=layer.groups,
        )
        return jnp.sum(out**2)

    gradient = jax.value_and_grad(value, 0 if layer.is_first else (0, 1))

    def scanned(kernels: chex.Array, images: chex.Array) -> Any:
        def step(kernels: chex.Array, _: None) -> Any:
            out, gradients = gradient(kernels, images)
            return kernels - 1e-9 * jax.tree.leaves(gradients)[0], out

        return lax.scan(step, kernels, None, length=2)

    return _compiled(scanned if is_scanned else gradient, kernels, images)


def _pool_gradient(pool: Function) -> Callable[[], Any]:
    images = _noise(128, 32, 32, 64)
    gradient = jax.grad(lambda images: jnp.sum(pool(images, (2, 2), (2, 2)) ** 2))
    return _compiled(gradient, images)


def _compiled(function: Callable[..., Any], *args: chex.Array) -> Callable[[], Any]:
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: compiled(*args)


def _forms(layer: Layer) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields the layer's gradient by each form that can compute it, and by lax."""
    window = (layer.kernel, layer.stride, layer.dilation, layer.groups)
    is_winograd = window == (3, 1, 1, 1)
    for form, thresholds in FORMS.items():
        if is_winograd or "winograd" not in form:
            jax.clear_caches()  # programs traced with other thresholds
            with contextlib.ExitStack() as stack:
                for (module, name), value in thresholds.items():
                    stack.enter_context(mock.patch.object(module, name, value))
                yield form, _layer_gradient(layer, ops.conv_general_dilated)
    yield "lax", _layer_gradient(layer, lax.conv_general_dilated)


def _layer_rows(layer: Layer, repeats: int) -> Iterator[timing.Row]:
    names, functions = zip(*_forms(layer))
    *seconds, against = times_in_turns(functions, repeats)
    for form, times in zip(names, seconds):
        yield timing.row(f"{layer.name}: {form}", "lax", times, against)


def _scan_row(layer: Layer) -> timing.Row:
    measured, against = (
        _layer_gradient(layer, convolve, is_scanned=True)
        for convolve in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    name = f"{layer.name}: chosen, in a scan"
    return timing.compare((name, measured), ("lax", against), repeats=1)


def _rows(only: str, repeats: int) -> Iterator[timing.Row]:
    for layer in LAYERS:
        if only in layer.name:
            yield from _layer_rows(layer, repeats)
            if layer.name in IN_SCAN:
                yield _scan_row(layer)
    for name, plain in POOLS.items():
        if only in name:
            yield timing.compare(
                (name, _pool_gradient(getattr(ops, name))),
                (f"flax {name}", _pool_gradient(plain)),
                repeats=repeats,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="calls of each")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    timing.report("convolution", list(_rows(args.only, args.repeats)))


if __name__ == "__main__":
    main()
