"""Weights of Hugging Face give its logits, and come back as they were."""

import functools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax.io import gpt2, vit
from snipjax.io import safetensors as files
from snipjax.models import transformer
from snipjax.models.vit import ViT
from tests.io.tensors import Arrays, assert_same_bytes, saved, shard
from tests.ops.agreement import quickly_compiled

# Of the two models, no two sizes are equal that could be mistaken.
CONFIG = transformer.Config(vocab_size=11, length=7, width=6, depth=2, heads=3)
GPT2 = transformer.Transformer(CONFIG)
VIT = ViT(num_classes=5, width=6, depth=2, heads=3, patch=4, epsilon=1e-12)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6))
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(np.float32)


@functools.cache
def zeros(module: Any) -> Arrays:
    """The names of ``transformers``, which the equations read too, and the shapes."""
    model, inputs = (GPT2, TOKENS) if module is gpt2 else (VIT, IMAGES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    return module.to_tensors(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


def tensors_of(module: Any, dtype: Any) -> Arrays:
    rng = np.random.default_rng(2)
    return {
        name: (0.5 * rng.normal(size=x.shape)).astype(dtype)
        for name, x in zeros(module).items()
    }


def gpt2_tensors(prefix: str = "transformer.", dtype: Any = np.float32) -> Arrays:
    tensors = tensors_of(gpt2, dtype)
    return {prefix + n.removeprefix("transformer."): x for n, x in tensors.items()}


def vit_tensors(dtype: Any = np.float32) -> Arrays:
    return tensors_of(vit, dtype)


# ----------------------------------------------------- the models, in NumPy, float64


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray | None = None
) -> np.ndarray:
    """Of one sequence [length, 6], head by head of its three, of two units each."""
    heads = []
    for columns in (slice(0, 2), slice(2, 4), slice(4, 6)):
        logits = q[:, columns] @ k[:, columns].T / np.sqrt(2)
        logits = logits if seen is None else np.where(seen, logits, -np.inf)
        heads.append(softmax(logits) @ v[:, columns])
    return np.concatenate(heads, -1)


def gpt2_logits(tensors: Arrays, tokens: np.ndarray) -> np.ndarray:
    """Of one sequence, by the equations of the paper's code."""
    t = {name: x.astype(np.float64) for name, x in tensors.items()}
    x = t["wte.weight"][tokens] + t["wpe.weight"][: len(tokens)]
    seen = np.tri(len(tokens), dtype=bool)
    for i in range(2):
        h = f"h.{i}."
        y = norm(x, t[h + "ln_1.weight"], t[h + "ln_1.bias"], 1e-5)
        y = y @ t[h + "attn.c_attn.weight"] + t[h + "attn.c_attn.bias"]
        y = attention(y[:, :6], y[:, 6:12], y[:, 12:], seen)
        x = x + y @ t[h + "attn.c_proj.weight"] + t[h + "attn.c_proj.bias"]
        y = norm(x, t[h + "ln_2.weight"], t[h + "ln_2.bias"], 1e-5)
        y = y @ t[h + "mlp.c_fc.weight"] + t[h + "mlp.c_fc.bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ t[h + "mlp.c_proj.weight"] + t[h + "mlp.c_proj.bias"]
    return norm(x, t["ln_f.weight"], t["ln_f.bias"], 1e-5) @ t["wte.weight"].T


def vit_logits(tensors: Arrays, image: np.ndarray) -> np.ndarray:
    """Of one image of 2 x 3 patches of 4 x 4 pixels."""
    t = {name: x.astype(np.float64) for name, x in tensors.items()}
    embeddings = "vit.embeddings."
    kernels = t[embeddings + "patch_embeddings.projection.weight"]
    tokens = [t[embeddings + "cls_token"][0, 0]]
    for i, j in np.ndindex(2, 3):
        patch = image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        product = np.einsum("hwc,ochw->o", patch, kernels)
        tokens.append(product + t[embeddings + "patch_embeddings.projection.bias"])
    x = np.stack(tokens) + t[embeddings + "position_embeddings"][0]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[name + ".weight"].T + t[name + ".bias"]

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return norm(x, t[name + ".weight"], t[name + ".bias"], 1e-12)

    erf = np.vectorize(math.erf)
    for i in range(2):
        layer = f"vit.encoder.layer.{i}."
        y = normed(x, layer + "layernorm_before")
        parts = ("query", "key", "value")
        y = attention(*(dense(y, f"{layer}attention.attention.{n}") for n in parts))
        x = x + dense(y, layer + "attention.output.dense")
        y = dense(normed(x, layer + "layernorm_after"), layer + "intermediate.dense")
        x = x + dense(0.5 * y * (1 + erf(y / np.sqrt(2))), layer + "output.dense")
    return dense(normed(x[0], "vit.layernorm"), "classifier")


def test_gpt2_has_the_logits_of_its_equations() -> None:
    params = gpt2.from_tensors(gpt2_tensors())
    logits = quickly_compiled(GPT2.apply)({"params": params}, TOKENS)
    expected = [gpt2_logits(gpt2_tensors(""), tokens) for tokens in TOKENS]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_vit_has_the_logits_of_its_equations() -> None:
    params = vit.from_tensors(vit_tensors())
    logits = quickly_compiled(VIT.apply)({"params": params}, IMAGES)
    expected = [vit_logits(vit_tensors(), image) for image in IMAGES]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (gpt2, gpt2_tensors(dtype=jnp.bfloat16)),
        (gpt2, gpt2_tensors("", dtype=np.float16)),
        (vit, vit_tensors(jnp.bfloat16)),
    ],
)
def test_tensors_come_back_byte_for_byte(
    tmp_path: Path, module: Any, expected: Arrays
) -> None:
    tensors = saved(tmp_path / "x", expected)
    params = module.from_tensors(tensors)
    dtypes = {x.dtype for x in expected.values()}
    assert {x.dtype for x in jax.tree.leaves(params)} == dtypes
    again = saved(tmp_path / "again", module.to_tensors(params, tensors))
    assert_same_bytes(again, expected)
    wide = jax.tree.map(lambda x: np.asarray(x).astype(np.float32), params)
    assert_same_bytes(module.to_tensors(wide, like=tensors), expected)


def test_without_others_to_be_like_the_names_are_those_of_transformers() -> None:
    params = gpt2.from_tensors(gpt2_tensors(""))
    assert_same_bytes(gpt2.to_tensors(params), gpt2_tensors("transformer."))


def test_buffers_and_the_tied_head_are_passed_over_and_written_again() -> None:
    """As older versions of transformers wrote them; the head is not in the params."""
    extra = {
        "transformer.h.0.attn.bias": np.tri(7, dtype=np.uint8)[None, None],
        "transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32),
        "lm_head.weight": gpt2_tensors()["transformer.wte.weight"],
    }
    tensors = gpt2_tensors() | extra
    params = gpt2.from_tensors(tensors)
    chex.assert_trees_all_equal(params, gpt2.from_tensors(gpt2_tensors()))
    assert_same_bytes(gpt2.to_tensors(params, like=tensors), tensors)
    params["tokens"]["embedding"] = jnp.zeros((11, 6))
    found = gpt2.to_tensors(params, like=tensors)
    assert not np.any(found["lm_head.weight"])


def test_a_tied_head_may_have_nans() -> None:
    tensors = gpt2_tensors(dtype=jnp.bfloat16)
    tensors["transformer.wte.weight"][3] = np.nan
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    params = gpt2.from_tensors(tensors)
    assert bool(jnp.isnan(params["tokens"]["embedding"][3]).all())
    tensors["lm_head.weight"][4] = np.nan  # which the embedding has not
    with pytest.raises(ValueError, match="tied"):
        gpt2.from_tensors(tensors)


def test_a_model_in_several_files_is_one_mapping(tmp_path: Path) -> None:
    index = shard(tmp_path, gpt2_tensors())
    assert_same_bytes(files.load(index), gpt2_tensors())
    found = gpt2.from_tensors(files.load(index))
    chex.assert_trees_all_equal(found, gpt2.from_tensors(gpt2_tensors()))


def test_reading_takes_the_memory_of_a_tensor_beside_the_params(tmp_path: Path) -> None:
    """As Python and NumPy allocate it; the params are JAX's."""
    config = transformer.Config(vocab_size=64, length=64, width=128, depth=9, heads=1)
    tokens = jnp.zeros((1, 2), int)
    shapes = jax.eval_shape(
        transformer.Transformer(config).init, jax.random.key(0), tokens
    )
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes["params"])
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    files.save(tmp_path / "x", gpt2.to_tensors(params))
    tracemalloc.start()
    tensors = files.load(tmp_path / "x")
    found = gpt2.from_tensors(tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.2 * size
    chex.assert_trees_all_equal(found, params)


# ----------------------------------------------------------------- tensors that fail

LAYER = "transformer.h.1.mlp.c_fc.weight"
TOKEN, POSITION = "transformer.wte.weight", "transformer.wpe.weight"
NORM = "transformer.ln_f.bias"
PATCHES = "vit.embeddings.patch_embeddings.projection.weight"


def gpt2_with(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Arrays:
    return gpt2_tensors() | {name: np.ones(shape, dtype)}


def without(tensors: Arrays, name: str) -> Arrays:
    return {key: x for key, x in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("module", "tensors", "message"),
    [
        # A tensor is missing.
        (gpt2, without(gpt2_tensors(), LAYER), rf"'{LAYER}' missing; .*index\.json"),
        (gpt2, without(gpt2_tensors(), TOKEN), rf"x': '{TOKEN}' missing"),
        # A tensor is unknown, or of a layer that has no others.
        (gpt2, gpt2_with("score.weight", (6,)), r"x': 'score\.weight' unknown"),
        (gpt2, gpt2_with("transformer.h.3.ln_1.weight", (6,)), "and 9 more missing"),
        # A shape does not fit.
        (gpt2, gpt2_with(LAYER, (24, 6)), rf"'{LAYER}' has shape .*check that"),
        (gpt2, gpt2_with(POSITION, (7,)), rf"'{POSITION}' has shape .*check that"),
        (gpt2, gpt2_with(NORM, (1, 6)), rf"'{NORM}' has shape .*check that"),
        (
            vit,
            vit_tensors() | {PATCHES: np.ones((6, 3, 4, 2), np.float32)},
            r"has shape \(6, 3, 4, 2\), .* \(6, 3, 4, 4\)",
        ),
        # Quantized weights, a head of its own, and weights of the other model.
        (gpt2, gpt2_with(LAYER, (6, 24), np.int8), f"'{LAYER}' has dtype int8, not of"),
        (gpt2, gpt2_with("lm_head.weight", (11, 6)), r"'lm_head.weight' is .* tied"),
        (gpt2, vit_tensors(), "missing; check that these weights are of"),
        (vit, gpt2_tensors(), "missing; check that these weights are of"),
    ],
)
def test_weights_without_a_place_in_the_model_are_refused(
    tmp_path: Path, module: Any, tensors: Arrays, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module.from_tensors(saved(tmp_path / "x", tensors))


def test_one_file_of_several_says_where_the_others_are(tmp_path: Path) -> None:
    shard(tmp_path, vit_tensors())
    tensors = files.load(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"missing; .*index\.json"):
        vit.from_tensors(tensors)


def test_params_that_are_not_like_the_tensors_are_refused() -> None:
    params = gpt2.from_tensors(gpt2_tensors())
    fewer = {name: x for name, x in gpt2_tensors().items() if ".h.1." not in name}
    with pytest.raises(ValueError, match=r"mapping of tensors: 'transformer\.h\.1"):
        gpt2.to_tensors(params, like=fewer)
    del params["block_0"]["query"]["bias"]
    with pytest.raises(ValueError, match="the params: 'block_0/query/bias' missing"):
        gpt2.to_tensors(params)
    with pytest.raises(ValueError, match=r"the params: 'patches/kernel', .* missing"):
        vit.to_tensors(params)
    other = vit_tensors() | {"classifier.weight": np.ones((4, 6), np.float32)}
    params = vit.from_tensors(vit_tensors())
    with pytest.raises(ValueError, match=r"has shape \(4, 6\), .* have \(5, 6\)"):
        vit.to_tensors(params, like=other)


# -------------------------------------------------------- against another library


GPT2_SETTINGS = {
    "vocab_size": 11, "n_positions": 7, "n_embd": 6, "n_layer": 2, "n_head": 3,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.5,
}  # fmt: skip
VIT_SETTINGS = {
    "hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 24, "image_size": (8, 12), "patch_size": 4, "num_labels": 5,
    "initializer_range": 0.5,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "settings", "module", "model", "inputs"),
    [
        ("GPT2", "LMHeadModel", GPT2_SETTINGS, gpt2, GPT2, TOKENS),
        ("ViT", "ForImageClassification", VIT_SETTINGS, vit, VIT, IMAGES),
    ],
)
def test_logits_and_files_are_those_of_transformers(
    tmp_path: Path, name: str, kind: str, settings: dict, module: Any, model: Any,
    inputs: np.ndarray,
) -> None:  # fmt: skip
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = getattr(transformers, f"{name}{kind}")
    theirs = network(getattr(transformers, f"{name}Config")(**settings)).eval()

    def assert_equal_logits(theirs: Any, params: chex.ArrayTree) -> None:
        given = inputs if inputs.ndim == 2 else inputs.transpose(0, 3, 1, 2)
        with torch.no_grad():
            expected = theirs(torch.tensor(given)).logits.numpy()
        logits = model.apply({"params": params}, inputs)
        np.testing.assert_allclose(logits, expected, atol=1e-4)

    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    tensors = files.load(path)
    params = module.from_tensors(tensors)
    assert_equal_logits(theirs, params)

    again = module.to_tensors(params, like=tensors)
    assert_same_bytes(again, dict(tensors))
    files.save(path, again, tensors.metadata)
    assert path.read_bytes() == before

    pruned = jax.tree.map(lambda x: jnp.where(jnp.abs(x) > 0.3, x, 0.0), params)
    files.save(path, module.to_tensors(pruned, tensors), tensors.metadata)
    assert_equal_logits(network.from_pretrained(tmp_path).eval(), pruned)
