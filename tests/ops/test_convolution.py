"""snipjax.ops against the functions it replaces."""

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
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

from snipjax import ops as fast
from snipjax import pruning

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape, dtype=jnp.float32):
    # Drawn by numpy, since jax.random compiles for each shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(actual, expected, tolerance=1e-5):
    """Close relative to the largest entry, as rounding of sums is."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def quickly_compiled(function):
    """`jit` without the compiler's optimizations, which take most of a test's time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def pair(**kwargs):
    """Our convolution and lax's, with the same arguments."""
    kwargs = {"window_strides": (1, 1), "padding": "SAME", **kwargs}
    kwargs.setdefault("dimension_numbers", NHWC)
    return (
        lambda x, w: fast.conv_general_dilated(x, w, **kwargs),
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


# The shapes of the networks: Winograd's (3x3, many channels), even and odd sizes,
# maps smaller than the kernel, several chunks with and without a rest; patches.
SHAPES = {
    "winograd": ((4, 8, 8, 16), (3, 3, 16, 32), "SAME"),
    "winograd, odd size": ((4, 7, 5, 16), (3, 3, 16, 16), "SAME"),
    "winograd, valid": ((4, 9, 8, 16), (3, 3, 16, 16), "VALID"),
    "winograd, wide padding": ((4, 6, 6, 16), (3, 3, 16, 16), ((0, 3), (4, 1))),
    "winograd, cropping": ((4, 9, 9, 16), (3, 3, 16, 16), ((-1, 1), (1, -2))),
    "winograd, 2x2 map": ((8, 2, 2, 32), (3, 3, 32, 32), "SAME"),
    "winograd, 1x1 map": ((8, 1, 1, 32), (3, 3, 32, 32), "SAME"),
    "winograd, chunks": ((16, 32, 32, 16), (3, 3, 16, 16), "SAME"),
    "winograd, chunks and a rest": ((13, 32, 32, 16), (3, 3, 16, 16), "SAME"),
    "first layer": ((4, 32, 32, 3), (3, 3, 3, 64), "SAME"),
    "patches in chunks": ((7, 40, 40, 30), (7, 7, 30, 8), "SAME"),
    "LeNet-5, first": ((10, 28, 28, 1), (5, 5, 1, 20), "VALID"),
    "LeNet-5, second": ((10, 12, 12, 20), (5, 5, 20, 50), "VALID"),
    "pointwise": ((4, 8, 8, 16), (1, 1, 16, 32), "SAME"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_networks_shapes_agree_with_lax(name):
    image, kernel, padding = SHAPES[name]
    kernels = normal(1, kernel) / math.prod(kernel[:-1]) ** 0.5
    assert_same_convolution(normal(0, image), kernels, padding=padding)


@settings(max_examples=10)
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
        normal(0, (2, 9, 3)),
        normal(1, (4, 3, 5)),
        window_strides=(2,),
        dimension_numbers=("NWC", "WIO", "NWC"),
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
    numbers = {
        "window_strides": np.array([2, 1]),
        "padding": np.array([[1, 1], [0, 2]]),
        "lhs_dilation": np.array([2, 1]),
        "rhs_dilation": np.array([1, 2]),
    }
    assert_same_convolution(x, w, **numbers)
    assert_same_convolution(x, w, precision=["highest", "default"])
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
            getattr(fast, kind)(images, (2, 2), (2, 2)),
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
    exported = export.export(jax.jit(gradient(ours, fast.max_pool)))(symbolic)
    assert_close(exported.call(x), gradient(plain, nn.max_pool)(x))


@pytest.mark.parametrize("accumulator", [None, jnp.float32])
def test_strict_promotion(accumulator):
    x, w = (normal(0, s, jnp.bfloat16) for s in ((2, 5, 5, 16), (3, 3, 16, 16)))
    with jax.numpy_dtype_promotion("strict"):
        assert_same_convolution(x, w / 16, 0.02, preferred_element_type=accumulator)


def test_kernels_that_unfold_too_much_are_left_to_lax(monkeypatch):
    x, w = normal(0, (2, 9, 9, 8)), normal(1, (7, 7, 1, 8)) / 7

    def is_lax():
        ours, _ = pair(feature_group_count=8)
        return "convolution(" in hlo(ours, "cpu", x, w)

    assert not is_lax()
    unfolded = 9 * 9 * 7 * 7 * 8 * 4  # by one image
    monkeypatch.setattr(fast, "_PATCH_BYTES", unfolded // 4)
    assert not is_lax()
    monkeypatch.setattr(fast, "_PATCH_BYTES", unfolded // 4 - 1)
    assert is_lax()
    # Kernels of one pixel unfold nothing.
    assert "convolution(" not in hlo(pair()[0], "cpu", x, normal(1, (1, 1, 8, 8)))


# Images, padding and dilation of which a row or column of a 3x3 kernel sees nothing.
IDLE = {
    "1x1 map": ((2, 1, 1, 16), "SAME", (1, 1)),
    "a row": ((2, 1, 5, 16), "SAME", (1, 1)),
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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("channels", [3, 16])
def test_half_precision(dtype, channels):
    x = normal(0, (4, 8, 8, channels), dtype)
    w = normal(1, (3, 3, channels, 16), dtype) / 16
    assert_same_convolution(x, w, tolerance=4 * float(jnp.finfo(dtype).eps))
    assert_same_convolution(x, w, tolerance=0.02, preferred_element_type=jnp.float32)


# A kernel for each form: Winograd's, patches, patches with a stride.
FORMS = {
    "winograd": ((3, 3, 16, 16), {}),
    "patches": ((2, 3, 16, 4), {"padding": "VALID"}),
    "strided": ((3, 3, 16, 4), {"window_strides": (2, 2)}),
    "mirrored patches": ((3, 3, 16, 4), {"rhs_dilation": (2, 1)}),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_forward_mode(form):
    kernel, kwargs = FORMS[form]
    x, w = normal(0, (2, 5, 5, 16)), normal(1, kernel)
    ours, plain = pair(**kwargs)
    tangents = normal(2, x.shape), normal(3, w.shape)

    def by_jvp(conv):
        return jax.jvp(conv, (x, w), tangents)

    def by_linearize(conv):
        out, tangent_map = jax.linearize(conv, x, w)
        return out, tangent_map(*tangents)

    expected = quickly_compiled(lambda: by_jvp(plain))()
    for results in (by_jvp, by_linearize):
        actual = quickly_compiled(lambda results=results: results(ours))()
        assert_close(actual, expected)


@forms
def test_second_derivatives(form):
    kernel, kwargs = FORMS[form]
    x, w = normal(0, (1, 4, 4, 16)), normal(1, kernel)
    direction = normal(2, (2,))

    def products(conv):
        def loss(scales):  # of the images and of the kernels
            return jnp.mean(jnp.tanh(conv(scales[0] * x, scales[1] * w)) ** 2)

        scales = jnp.array([0.1, 0.2])
        reverse_over_reverse = jax.grad(lambda s: jax.grad(loss)(s) @ direction)
        return quickly_compiled(
            lambda: (jax.hessian(loss)(scales), reverse_over_reverse(scales))
        )()

    ours, plain = pair(**kwargs)
    assert_close(products(ours), products(plain), 1e-4)


@forms
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(form, axes):
    kernel, kwargs = FORMS[form]
    x = normal(0, (3, 2, 5, 5, 16) if axes[0] == 0 else (2, 5, 5, 16))
    w = normal(1, (3, *kernel) if axes[1] == 0 else kernel)

    def gradients(conv):
        gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w))), (0, 1))
        return quickly_compiled(jax.vmap(gradient, axes))(x, w)

    ours, plain = pair(**kwargs)
    assert_close(gradients(ours), gradients(plain), 2e-5)


@forms
def test_scan_and_checkpoint(form):
    kernel, kwargs = FORMS[form]
    x, w = normal(0, (2, 5, 5, 16)), normal(1, kernel) / 10

    def descend(conv):
        gradient = jax.grad(jax.checkpoint(lambda w: jnp.mean(conv(x, w) ** 2)))

        def step(w, _):
            return w - 0.1 * gradient(w), None

        return quickly_compiled(lambda w: lax.scan(step, w, length=3)[0])(w)

    ours, plain = pair(**kwargs)
    assert_close(descend(ours), descend(plain))


def test_runs_without_jit():
    ours, plain = pair()
    x, w = normal(0, (2, 4, 4, 16)), normal(1, (3, 3, 16, 16))
    gradient = jax.grad(lambda x, w, conv: jnp.sum(conv(x, w) ** 2), (0, 1))
    assert_close(gradient(x, w, ours), gradient(x, w, plain))


def hlo(function, platform, *args):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_the_plain_functions(platform):
    ours, plain = pair()
    x, w = normal(0, (2, 4, 4, 16)), normal(1, (3, 3, 16, 16))

    def gradients(conv, pool):
        return jax.grad(
            lambda x, w: jnp.sum(jnp.sin(pool(conv(x, w), (2, 2), (2, 2)))), (0, 1)
        )

    text = hlo(gradients(ours, fast.max_pool), platform, x, w)
    expected = hlo(gradients(plain, nn.max_pool), platform, x, w)
    for operation in ("convolution(", "dot_general", "while", "select_and_scatter"):
        assert text.count(operation) == expected.count(operation)
    assert text.count("convolution(") == 3
    assert "convolution(" not in hlo(gradients(ours, fast.max_pool), "cpu", x, w)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
def test_linen_convolution(kernel):
    x = normal(0, (4, 9, 9, 16))
    plain = nn.Conv(16, kernel, padding="CIRCULAR")
    ours = plain.clone(conv_general_dilated=fast.conv_general_dilated)
    params = plain.init(jax.random.key(0), x)

    def gradient(conv):
        return jax.grad(lambda params: jnp.sum(jnp.sin(conv.apply(params, x))))(params)

    assert_close(ours.apply(params, x), plain.apply(params, x))
    assert_close(gradient(ours), gradient(plain), 2e-5)


def test_nnx_convolution():
    x = normal(0, (4, 9, 9, 16))
    plain, ours = (
        nnx.Conv(16, 16, (3, 3), rngs=nnx.Rngs(0), conv_general_dilated=conv)
        for conv in (lax.conv_general_dilated, fast.conv_general_dilated)
    )
    assert_close(ours(x), plain(x))

    def loss(conv):
        return jnp.sum(jnp.sin(conv(x)))

    assert_close(nnx.grad(loss)(ours), nnx.grad(loss)(plain), 2e-5)


class Small(nn.Module):
    """A network of layers of patches and one of Winograd's."""

    convolve: Callable
    pool: Callable

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, conv_general_dilated=self.convolve)
        x = self.pool(nn.relu(conv(16, (3, 3))(x)), (2, 2), (2, 2))
        return conv(10, (3, 3))(nn.relu(conv(16, (3, 3))(x))).sum((1, 2))


def test_snip_keeps_the_same_connections():
    # Of this seed the scores at the threshold are 1e4 roundings apart.
    batch = normal(5, (8, 8, 8, 3)), np.arange(8)
    ours, plain = (
        Small(fast.conv_general_dilated, fast.max_pool),
        Small(lax.conv_general_dilated, nn.max_pool),
    )
    shapes = jax.eval_shape(plain.init, jax.random.key(0), batch[0])
    params = jax.tree.map(
        lambda p: normal(p.size, p.shape) / math.prod(p.shape[:-1]) ** 0.5, shapes
    )

    def mask(model):
        def loss(params, batch):
            log_probabilities = jax.nn.log_softmax(model.apply(params, batch[0]))
            return -jnp.mean(log_probabilities[np.arange(8), batch[1]])

        return pruning.prune(loss, params, batch, 0.95)[1]

    jax.tree.map(np.testing.assert_array_equal, mask(ours), mask(plain))


# Under `shard_map` and in meshes of explicit axes the types of arrays say how they are
# sharded, in gradients too.
SHARDED = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from snipjax import ops as fast

fast._TILES = 4  # so that the images of a device are several chunks
normal = np.random.default_rng(0).normal
x = normal(size=(8, 4, 4, 16)).astype("float32")
w = normal(size=(3, 3, 16, 16)).astype("float32") / 12
FUNCTIONS = (fast.conv_general_dilated, fast.max_pool, fast.avg_pool), (
    lax.conv_general_dilated, nn.max_pool, nn.avg_pool
)


def mesh(axis_type):
    return jax.make_mesh((2,), ("d",), axis_types=(axis_type,))


def network(conv, max_pool, avg_pool):
    def loss(w, x):
        y = conv(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = avg_pool(max_pool(y, (2, 2), (2, 2)), (2, 2))
        return jnp.sum(jnp.sin(y))

    return loss


def in_shard_map(loss, is_varying, check):
    def gradient(w, x):
        if is_varying:
            w = lax.pcast(w, "d", to="varying")
            return lax.psum(jax.grad(loss)(w, x), "d")
        return jax.grad(lambda w: lax.psum(loss(w, x), "d"))(w)

    return jax.jit(jax.shard_map(
        gradient, mesh=mesh(AxisType.Auto), in_specs=(P(), P("d")), out_specs=P(),
        check_vma=check,
    ))(w, x)


def in_types(loss):
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        images = jax.device_put(x, NamedSharding(explicit, P("d")))
        kernels = jax.device_put(w, NamedSharding(explicit, P()))
        return jax.jit(jax.grad(loss))(kernels, images)


def automatic(loss):
    images = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), P("d")))
    return jax.jit(jax.grad(loss))(w, images)


def shardings(loss):
    yield in_shard_map(loss, is_varying=True, check=True)
    yield in_shard_map(loss, is_varying=False, check=True)
    yield in_shard_map(loss, is_varying=False, check=False)
    yield in_types(loss)
    yield automatic(loss)


for ours, plain in zip(*(shardings(network(*f)) for f in FUNCTIONS), strict=True):
    np.testing.assert_allclose(ours, plain, atol=1e-4)
"""


def test_sharded_in_every_way():
    flags = (
        "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    )
    subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )


# -------------------------------------------------------------------- pooling

POOLS = {
    "tiles": {"window_shape": (2, 2), "strides": (2, 2)},
    "uneven tiles": {"window_shape": (2, 3), "strides": (2, 3), "padding": "SAME"},
    "zero padding": {
        "window_shape": (3, 1),
        "strides": (3, 1),
        "padding": ((0, 0), (0, 0)),
    },
    "overlapping": {"window_shape": (3, 3), "strides": (2, 2)},
    "padded": {"window_shape": (2, 2), "strides": (2, 2), "padding": ((1, 1), (1, 1))},
    "cut off": {"window_shape": (4, 4), "strides": (4, 4)},
    "no strides": {"window_shape": (2, 2)},
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pools_agree_with_flax_ties_included(name, kind, dtype):
    # Integers from few, so that most windows have several maxima.
    integers = np.random.default_rng(0).integers(0, 3, (3, 6, 6, 4))
    x = jnp.asarray(integers, dtype)
    weight = normal(1, (4,))

    def value_and_gradient(pool):
        def value(x):
            out = pool(x, **POOLS[name])
            return jnp.sum(jnp.sin(out) * weight).astype(jnp.float32), out

        return quickly_compiled(jax.value_and_grad(value, has_aux=True))(x)

    ours = value_and_gradient(getattr(fast, kind))
    tolerance = float(jnp.finfo(dtype).eps) * (1 if kind == "max_pool" else 4)
    assert_close(ours, value_and_gradient(getattr(nn, kind)), tolerance)


def test_pools_of_one_image_and_of_many_batch_dimensions():
    x = normal(0, (2, 3, 6, 6, 4))
    for kind in ("max_pool", "avg_pool"):
        ours, plain = getattr(fast, kind), getattr(nn, kind)
        for image in (x, x[0], x[0, 0]):
            assert_close(ours(image, (2, 2), (2, 2)), plain(image, (2, 2), (2, 2)))
    mean = nn.avg_pool(x[0], (2, 2), (2, 2), "SAME", count_include_pad=False)
    assert_close(fast.avg_pool(x[0], (2, 2), (2, 2), "SAME", False), mean)
    padding = ((1, 0), (0, 1))
    mean = nn.avg_pool(x[0], (2, 2), (1, 1), padding, count_include_pad=False)
    assert_close(fast.avg_pool(x[0], (2, 2), (1, 1), padding, False), mean)


def test_max_pool_of_special_values():
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[-inf, -inf, 1.0, nan], [-inf, -inf, inf, 2.0]])[..., None]
    np.testing.assert_array_equal(
        fast.max_pool(x, (2, 2), (2, 2))[..., 0], [[-inf, nan]]
    )
    gradient = jax.grad(lambda x: jnp.sum(fast.max_pool(x, (2, 2), (2, 2))))(x)
    np.testing.assert_array_equal(gradient[..., 0], [[1, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_pools_under_transformations(kind):
    pool, plain = getattr(fast, kind), getattr(nn, kind)
    x, direction = normal(0, (2, 4, 4, 3)), normal(1, (2, 4, 4, 3))

    def results(pool):
        def square(x):
            return jnp.sum(jnp.sin(pool(x, (2, 2), (2, 2))))

        return (
            jax.jvp(square, (x,), (direction,)),
            jax.vmap(jax.grad(square))(jnp.stack([x, -x])),
            jax.grad(jax.checkpoint(square))(x),
            jax.grad(lambda x: jnp.vdot(jax.grad(square)(x), direction))(x),
        )

    ours = quickly_compiled(lambda: results(pool))()
    assert_close(ours, quickly_compiled(lambda: results(plain))())


def test_pools_say_what_is_wrong():
    x = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match="strides"):
        fast.max_pool(x, (2, 2), (2,))
    with pytest.raises(ValueError, match="padding"):
        fast.max_pool(x, (2, 2), (2, 2), ((0, 0),))
    with pytest.raises(ValueError, match="spatial"):
        fast.avg_pool(x[0, 0], (2, 2), (2, 2))
    for pools in (fast, nn):
        for pool in (pools.max_pool, pools.avg_pool):
            with pytest.raises(RuntimeError, match="padding type"):
                pool(x, (2, 2), (2, 2), "FOO")
        with pytest.raises(TypeError, match="number dtype"):
            pools.avg_pool(x > 0, (2, 2), (2, 2))
