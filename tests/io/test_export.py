"""Files of networks give what the networks give."""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import models, shrink
from snipjax.io import export
from snipjax.models import vgg
from tests.shrink.networks import check_close, from_module, noise, random_mask


def test_stablehlo_of_a_smaller_network_takes_any_batch(tmp_path: Path) -> None:
    network = from_module(models.lenet.LeNet300(10), noise((2, 4, 4, 1)))
    mask = random_mask(shrink.units(*network))
    small_apply, params = shrink.shrink(*network[:2], mask, network.inputs)
    (batch,) = jax.export.symbolic_shape("batch")
    like = jax.ShapeDtypeStruct((batch, 4, 4, 1), jnp.float32)
    export.stablehlo(small_apply, params, tmp_path / "net", like)
    loaded = jax.export.deserialize((tmp_path / "net").read_bytes())
    x = noise((3, 4, 4, 1), seed=1)
    check_close(loaded.call(x), small_apply(params, x))


def test_onnx_of_a_smaller_network_in_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = vgg.VGG(3, (((3, 4), (1, 4)), ((3, 6),)), (5,))
    network = from_module(module, noise((2, 8, 8, 3)))
    mask = random_mask(shrink.units(*network))
    small_apply, params = shrink.shrink(*network[:2], mask, network.inputs)
    export.onnx(small_apply, params, tmp_path / "net.onnx", network.inputs)
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    (name,) = (entry.name for entry in session.get_inputs())
    (found,) = session.run(None, {name: np.asarray(network.inputs)})
    expected = small_apply(params, network.inputs)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


def test_onnx_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"snipjax\[onnx\]"):
        export.onnx(lambda params, x: x, {}, tmp_path / "net.onnx", jnp.ones(3))
