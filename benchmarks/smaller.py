"""Smaller networks beside the dense ones: steps, sparse rows, and ONNX Runtime.

    python -m benchmarks.smaller units steps rows onnx

prints the tables of docs/smaller-networks.md that are named, each measured in turns.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

from snipjax import models, shrink, training
from snipjax.smaller import SmallModel
from snipjax.training.state import Batch

LAYOUT = (1, 32, 32, 3)


def variables_and_units(name: str, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Returns a network, its variables and its units."""
    model, x = models.create(name, 10), jnp.zeros(shape)
    rng = np.random.default_rng(0)
    variables = {
        "batch_stats": {},
        **jax.tree.map(  # without the minutes in which its sample would be compiled
            lambda w: jnp.asarray(rng.random(w.shape) / w.size**0.5, jnp.float32),
            jax.eval_shape(model.init, jax.random.key(0), x),
        ),
    }
    units = shrink.units(model.apply, variables, x)
    return model, variables, units


def removed(units: shrink.Units, density: float, multiple: int = 1) -> shrink.Removed:
    """Returns the same share of the units of each layer, at random."""
    scores = {
        layer.name: jax.random.uniform(jax.random.key(i), (layer.size,))
        for i, layer in enumerate(units.layers)
    }
    scores = shrink.layerwise(scores)
    mask = shrink.keep(scores, units, density, budget="operations", multiple=multiple)
    return shrink.removed(units, mask)


def time_units() -> None:
    """Prints the time of finding units."""
    for name, shape in (
        ("lenet_300_100", (1, 28, 28, 1)),
        ("lenet_5_caffe", (1, 28, 28, 1)),
        ("vgg_like", LAYOUT),
        ("resnet_50", (1, 224, 224, 3)),
        ("vit_b_16", (1, 224, 224, 3)),
    ):
        model = models.create(name, 10)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        began = time.perf_counter()
        units = shrink.units(model.apply, params, x)
        seconds = time.perf_counter() - began
        number = sum(layer.size for layer in units.layers)
        print(f"{name:15} {number:6} units in {seconds:.2f} s", flush=True)


def time_steps(batch: int = 32, repeats: int = 5) -> None:
    """Prints the time of a training step with half and a quarter of the operations."""
    for name in ("vgg_like", "resnet_18_cifar"):
        model, variables, units = variables_and_units(name, LAYOUT)
        images = jax.random.normal(jax.random.key(1), (batch, *LAYOUT[1:]))
        examples = Batch(images, jnp.arange(batch) % 10)
        optimizer = optax.sgd(0.1, momentum=0.9)
        calls = []
        for density in (1.0, 0.5, 0.25):
            found = removed(units, density, multiple=16)
            small = model if density == 1 else SmallModel(model, found, {})
            state = training.init_state(
                found.params(variables), optimizer, jax.random.key(0)
            )
            step = functools.partial(
                training.train_step, model=small, optimizer=optimizer
            )
            calls.append(functools.partial(jax.jit(step), state, examples))
        dense, *others = shrink.seconds_in_turns(calls, repeats)
        print(f"{name}: dense {dense:.3f} s", end="")
        for density, seconds in zip((0.5, 0.25), others):
            print(f", {density} {seconds:.3f} s ({seconds / dense:.2f})", end="")
        print(flush=True)


def time_rows(batch: int = 100, repeats: int = 10) -> None:
    """Prints the time of products with sparse rows, over that of dense ones."""
    layers = {
        "LeNet-300-100 first": (784, 300),
        "LeNet-300-100 second": (300, 100),
        "VGG-D dense": (512, 512),
        "VGG-D 3x3x256 to 512, as patches": (2304, 512),
        "VGG-D 3x3x512 to 512, as patches": (4608, 512),
    }
    dense = jax.jit(lambda w, x: x @ w)
    rows = jax.jit(lambda matrix, x: (matrix @ x.T).T)
    rng = np.random.default_rng(0)
    for name, shape in layers.items():
        x = jnp.asarray(rng.normal(size=(batch, shape[0])), jnp.float32)
        line = []
        for sparsity in (0.9, 0.95, 0.98, 0.99):
            w = rng.normal(size=shape) * (rng.random(shape) >= sparsity)
            kernel = jnp.asarray(w, jnp.float32)
            calls = [
                functools.partial(dense, kernel, x),
                functools.partial(rows, sparse.BCSR.fromdense(kernel.T), x),
            ]
            plain, compressed = shrink.seconds_in_turns(calls, repeats)
            line.append(f"{sparsity:.0%} {compressed / plain:.2f}")
        print(f"{name:34} {1e6 * plain:7.0f} us  {'  '.join(line)}", flush=True)


def time_onnx(batch: int = 32, repeats: int = 5) -> None:
    """Prints the time of ONNX Runtime, and the difference of its outputs."""
    import onnxruntime

    from snipjax.io import export

    for name in ("lenet_5_caffe", "vgg_like"):
        shape = (1, 28, 28, 1) if name == "lenet_5_caffe" else LAYOUT
        model, variables, units = variables_and_units(name, shape)
        x = np.asarray(jax.random.normal(jax.random.key(1), (batch, *shape[1:])))
        times = []
        for density in (1.0, 0.25):
            found = removed(units, density)
            apply_fn, params = found.function(model.apply), found.params(variables)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "net.onnx")
                export.onnx(apply_fn, params, path, x)
                size = path.stat().st_size
                session = onnxruntime.InferenceSession(path)
            feed = {session.get_inputs()[0].name: x}
            (outputs,) = session.run(None, feed)
            expected = jax.jit(apply_fn)(params, x)
            difference = float(jnp.abs(outputs - expected).max())
            difference /= float(jnp.abs(expected).max())
            call = functools.partial(session.run, None, feed)
            times += shrink.seconds_in_turns([call], repeats)
            print(
                f"{name} {density}: {1e3 * times[-1]:.1f} ms "
                f"({times[-1] / times[0]:.2f}), {size / 1e6:.1f} MB, "
                f"difference {difference:.1e}",
                flush=True,
            )


TABLES = {
    "units": time_units,
    "steps": time_steps,
    "rows": time_rows,
    "onnx": time_onnx,
}

if __name__ == "__main__":
    for table in sys.argv[1:] or TABLES:
        TABLES[table]()
