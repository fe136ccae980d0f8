"""Convolutions of snipjax.ops agree with XLA's."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from snipjax import ops
from snipjax.ops import patches, support, winograd
from tests import devices
from tests.ops.agreement import assert_close, hlo, normal, quickly_compiled

NHWC = ("NHWC", "HWIO", "NHWC")


def pair(**kwargs):
    """Our convolution and lax's, with the same arguments."""
    kwargs = {"window_strides": (1, 1), "padding": "SAME", **kwargs}
    kwargs.setdefault("dimension_numbers", NHWC)
    return (
        lambda x, w: ops.conv_general_dilated(x, w, **kwargs),
        lambda x, w: lax.conv_general_dilated(x, w, **kwargs),
    )


def value_and_gradients(conv):
    def value(x, w):
        out = conv(x, w)
        return jnp.sum(jnp.sin(out).astype(jnp.float32)), out

    return quickly_compiled(jax.value_and_grad(value, (0, 1), has_aux=True))


def assert_same_convolution(x, w, tolerance=2e-5, **kwargs):
    ours, plain = pair(**kwargs)
    (_, out), gradients = value_and_gradients(ours)(x, w)
    (_, expected_out), expected = value_and_gradients(plain)(x, w)
    assert_close((out, gradients), (expected_out, expected), tolerance)


# Winograd's products (3x3 kernels of many channels), and patches.
SHAPES = {
    "even": ((4, 8, 8, 16), (3, 3, 16, 32), "SAME"),
    "odd": ((4, 7, 5, 16), (3, 3, 16, 16), "SAME"),
    "wide padding and cropping": ((4, 7, 9, 16), (3, 3, 16, 16), ((0, 3), (1, -2))),
    "pointwise": ((4, 8, 8, 16), (1, 1, 16, 32), "SAME"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_agree_with_lax(name):
    image, kernel, padding = SHAPES[name]
    kernels = normal(1, kernel) / math.prod(kernel[:-1]) ** 0.5
    assert_same_convolution(normal(0, image), kernels, padding=padding)


@pytest.mark.parametrize("number", [6, 7])
@pytest.mark.parametrize("channels", [16, 3])
def test_several_chunks_of_images_and_a_rest_agree_with_lax(
    number, channels, monkeypatch
):
    images, kernels = (number, 6, 6, channels), (3, 3, channels, 16)
    # Three images a chunk: by bytes of 3x3 pixels, and by 3x3 tiles of an image.
    monkeypatch.setattr(patches, "PATCH_BYTES", 3 * 9 * math.prod(images[1:]) * 4)
    monkeypatch.setattr(winograd, "TILES", 3 * 9)
    assert_same_convolution(normal(0, images), normal(1, kernels) / 12)


@settings(max_examples=6)
@given(st.data())
def test_any_window_agrees_with_lax(data):
    def two(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, groups = two(1, 4), data.draw(st.sampled_from([1, 1, 2, 4]))
    channels, features = (groups * k for k in two(1, 3))
    rhs_dilation = two(1, 2)
    low, high = two(0, 3), two(-1, 3)
    size = tuple(
        (k - 1) * d + 2 + extra
        for k, d, extra in zip(kernel, rhs_dilation, two(0, 4), strict=True)
    )
    assert_same_convolution(
        normal(0, (3, *size, channels)),
        normal(1, (*kernel, channels // groups, features)),
        window_strides=two(1, 3),
        padding=tuple(zip(low, high, strict=True)),
        lhs_dilation=two(1, 2),
        rhs_dilation=rhs_dilation,
        feature_group_count=groups,
    )


def test_other_layouts_and_ranks_agree_with_lax():
    assert_same_convolution(
        normal(0, (2, 16, 6, 7)), normal(1, (16, 16, 3, 3)), dimension_numbers=None
    )
    assert_same_convolution(
        normal(0, (6, 7, 2, 3)),
        normal(1, (4, 3, 3, 2)),
        dimension_numbers=("HWNC", "OIHW", "CHWN"),
    )
    assert_same_convolution(
        normal(0, (2, 4, 5, 6, 3)),
        normal(1, (2, 3, 2, 3, 4)),
        window_strides=(1, 2, 1),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def test_falls_back_to_lax():
    x, w = normal(0, (4, 5, 5, 3)), normal(1, (3, 3, 3, 4))
    assert_same_convolution(x, w, batch_group_count=2)
    assert_same_convolution(x[:0], w)
    ours, plain = pair()
    integers = jnp.arange(x.size).reshape(x.shape), jnp.arange(w.size).reshape(w.shape)
    np.testing.assert_array_equal(ours(*integers), plain(*integers))
    with pytest.raises(TypeError, match="ndim"):
        ours(x, w[0])


def test_arguments_of_other_types_are_taken_as_lax_takes_them():
    x, w = normal(0, (2, 5, 6, 4)), normal(1, (3, 3, 4, 8)) / 6
    assert_same_convolution(
        x,
        w,
        window_strides=np.array([2, 1]),
        padding=np.array([[1, 1], [0, 2]]),
        lhs_dilation=np.array([2, 1]),
        rhs_dilation=np.array([1, 2]),
        precision=["highest", "default"],
    )
    for dilation in ("lhs_dilation", "rhs_dilation"):
        for conv in pair(**{"padding": ((1, 1), (1, 1)), dilation: ()}):
            with pytest.raises(Exception, match=r"dimensions|dilation"):
                value_and_gradients(conv)(x, w)


def test_floats_of_8_bits_are_left_to_lax():
    x, w = (normal(0, shape) for shape in ((2, 5, 5, 16), (3, 3, 16, 16)))
    x, w = x.astype(jnp.float8_e4m3fn), w.astype(jnp.float8_e4m3fn)
    ours, plain = pair()
    assert_close(ours(x, w), plain(x, w), 0)
    images = normal(0, (2, 4, 4, 3)).astype(jnp.float8_e4m3fn)
    for kind in ("max_pool", "avg_pool"):
        assert_close(
            getattr(ops, kind)(images, (2, 2), (2, 2)),
            getattr(nn, kind)(images, (2, 2), (2, 2)),
            0,
        )


def test_a_symbolic_batch_can_be_exported():
    ours, plain = pair()
    kernels = normal(0, (3, 3, 16, 16))
    x = normal(1, (3, 4, 4, 16))

    def gradient(conv, pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(conv(x, kernels), (2, 2)))))

    (batch,) = export.symbolic_shape("b")
    symbolic = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(jax.jit(gradient(ours, ops.max_pool)))(symbolic)
    assert_close(exported.call(x), gradient(plain, nn.max_pool)(x))


def test_kernels_that_unfold_too_much_are_left_to_lax(monkeypatch):
    x, w = normal(0, (2, 9, 9, 8)), normal(1, (7, 7, 1, 8)) / 7

    def is_lax():
        ours, _ = pair(feature_group_count=8)
        return "convolution(" in hlo(ours, "cpu", x, w)

    assert not is_lax()
    unfolded = 9 * 9 * 7 * 7 * 8 * 4  # by one image
    monkeypatch.setattr(patches, "PATCH_BYTES", unfolded // 4)
    assert not is_lax()
    monkeypatch.setattr(patches, "PATCH_BYTES", unfolded // 4 - 1)
    assert is_lax()
    # Kernels of one pixel unfold nothing.
    assert "convolution(" not in hlo(pair()[0], "cpu", x, normal(1, (1, 1, 8, 8)))


# Images, padding and dilation of which a row or column of a 3x3 kernel sees nothing.
IDLE = {
    "a column": ((2, 5, 1, 16), "SAME", (1, 1)),
    "cropped": ((2, 6, 6, 16), ((-4, 1), (1, 1)), (1, 1)),
    "between pixels": ((2, 2, 2, 16), ((0, 0), (1, 1)), (2, 1)),
}


@pytest.mark.parametrize("name", IDLE)
def test_gradients_by_what_meets_padding_only_are_zero(name):
    image, padding, dilation = IDLE[name]
    x, w = normal(0, image), normal(1, (3, 3, 16, 16)) / 12

    def gradient(conv):
        return value_and_gradients(conv)(x, w)[1][1]

    ours, plain = pair(padding=padding, lhs_dilation=dilation)
    actual, expected = gradient(ours), gradient(plain)
    assert (expected == 0).any()
    np.testing.assert_array_equal(actual == 0, expected == 0)
    assert_close(actual, expected)


@pytest.mark.parametrize(("dtype", "channels"), [(jnp.bfloat16, 16), (jnp.float16, 3)])
def test_half_precision_and_strict_promotion(dtype, channels):
    x = normal(0, (4, 8, 8, channels), dtype)
    w = normal(1, (3, 3, channels, 16), dtype) / 16
    with jax.numpy_dtype_promotion("strict"):
        assert_same_convolution(x, w, tolerance=4 * float(jnp.finfo(dtype).eps))
        assert_same_convolution(x, w, 0.02, preferred_element_type=jnp.float32)


# A kernel for each form: Winograd's, patches, patches with a stride.
FORMS = {
    "winograd": ((3, 3, 16, 16), {}),
    "patches": ((2, 3, 16, 4), {"padding": "VALID"}),
    "strided": ((3, 3, 16, 4), {"window_strides": (2, 2)}),
    "mirrored patches": ((3, 3, 16, 4), {"rhs_dilation": (2, 1)}),
}


def second_derivatives(conv, x, w):
    def loss(scales):  # of the images and of the kernels
        return jnp.mean(jnp.tanh(conv(scales[0] * x, scales[1] * w)) ** 2)

    scales, direction = jnp.array([0.1, 0.2]), normal(2, (2,))
    gradient = jax.grad(loss)
    forward_over_reverse = jax.jvp(gradient, (scales,), (direction,))
    return forward_over_reverse, jax.grad(lambda s: gradient(s) @ direction)(scales)


def mapped(conv, x, w):
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w))), (0, 1))
    return jax.vmap(gradient, (None, 0))(x, jnp.stack([w, -w, 2 * w]))


def descent(conv, x, w):
    """Checkpointed gradients inside a scan."""
    gradient = jax.grad(jax.checkpoint(lambda w: jnp.mean(conv(x, w) ** 2)))

    def step(w, _):
        return w - 0.1 * gradient(w), None

    return lax.scan(step, w / 10, length=3)[0]


TRANSFORMATIONS = {
    "second derivatives": second_derivatives,
    "vmap of kernels": mapped,
    "scan and checkpoint": descent,
}
# Every transformation of both kinds of products, and all derivatives of the rest.
CASES = [
    (form, name)
    for form in FORMS
    for name in TRANSFORMATIONS
    if form in ("winograd", "patches") or name == "second derivatives"
]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_transformations_agree_with_lax(form, name):
    kernel, kwargs = FORMS[form]
    x, w = normal(0, (2, 5, 5, 16)), normal(1, kernel)
    ours, plain = (
        quickly_compiled(functools.partial(TRANSFORMATIONS[name], conv))(x, w)
        for conv in pair(**kwargs)
    )
    assert_close(ours, plain, 1e-4 if name == "second derivatives" else 2e-5)


def test_accelerators_get_the_plain_functions():
    ours, plain = pair()
    x, w = normal(0, (2, 4, 4, 16)), normal(1, (3, 3, 16, 16))

    def gradients(conv, pool):
        return jax.grad(
            lambda x, w: jnp.sum(jnp.sin(pool(conv(x, w), (2, 2), (2, 2)))), (0, 1)
        )

    text = hlo(gradients(ours, ops.max_pool), "tpu", x, w)
    expected = hlo(gradients(plain, nn.max_pool), "tpu", x, w)
    for operation in ("convolution(", "dot_general", "while", "select_and_scatter"):
        assert text.count(operation) == expected.count(operation)
    assert text.count("convolution(") == 3
    assert "convolution(" not in hlo(gradients(ours, ops.max_pool), "cpu", x, w)


def test_a_layer_of_flax_nnx_takes_it():
    def layer(conv):
        return nnx.Conv(16, 16, (3, 3), rngs=nnx.Rngs(0), conv_general_dilated=conv)

    x = normal(0, (4, 9, 9, 16))
    ours, plain = (
        value_and_gradients(lambda x, _, conv=conv: layer(conv)(x))(x, jnp.zeros(1))
        for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(ours, plain, 1e-4)


def test_sharded_in_every_way():
    subprocess.run(
        [sys.executable, "-m", "tests.ops.sharded"],
        cwd=Path(__file__).parents[2],
        env=devices(2),
        check=True,
    )


def test_kernels_of_networks_side_by_side_are_products_on_a_gpu() -> None:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 2, 7, 7, 4)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 4, 5)), jnp.float32)

    def gradient(conv):
        return jax.grad(lambda w, x: jnp.sum(conv(x, w) ** 2))

    def on_gpu(function):
        exported = export.export(jax.jit(function), platforms=["cuda"])
        return exported(kernels, images).mlir_module()

    ours, theirs = map(gradient, pair())
    named = jax.vmap(ours, axis_name=support.SIDE_BY_SIDE)
    assert "stablehlo.convolution" not in on_gpu(named)
    assert "feature_group_count = 3" in on_gpu(jax.vmap(ours))
    assert_close(named(kernels, images), jax.vmap(theirs)(kernels, images))
