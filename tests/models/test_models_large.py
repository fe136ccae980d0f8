"""The large networks have the published forms, and SNIP prunes them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import saliency, training
from snipjax.models import resnet, transformer, vit
from tests.models.equations import (
    batch_normed,
    convolved,
    dense,
    relu,
    sampled,
    shapes,
)
from tests.ops.agreement import quickly_compiled

GPT2 = {
    transformer.GPT2_SMALL: 124_439_808,
    transformer.GPT2_MEDIUM: 354_823_168,
    transformer.GPT2_LARGE: 774_030_080,
    transformer.GPT2_XL: 1_557_611_200,
}
# Numbers of heads, classes, and the like that are different wherever they can be.
SMALL = transformer.Config(vocab_size=11, length=6, width=32, depth=1, heads=4)
TOKENS = np.random.default_rng(0).integers(0, 10, (3, 7))  # token 10 does not occur
LANGUAGE = transformer.Transformer(SMALL)
LOSS = transformer.next_token_loss(LANGUAGE)
VIT = vit.ViT(num_classes=5, width=32, depth=2, heads=4, patch=4)
BASIC = resnet.ResNet(5, blocks=(1, 1), width=4)
BOTTLENECK = resnet.ResNet(5, blocks=(1, 1), is_bottleneck=True, width=4)
IMAGE_MODELS = {"vit": VIT, "basic": BASIC, "bottleneck": BOTTLENECK}
IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
NOTHING = jax.checkpoint_policies.nothing_saveable


def size(tree: chex.ArrayTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# ------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("config", GPT2)
def test_gpt2_has_as_many_parameters_as_published(config: transformer.Config) -> None:
    model = transformer.Transformer(config._replace(depth=1))
    params = shapes(model, jnp.zeros((1, 8), int))["params"]
    # Blocks are alike.
    assert size(params) + (config.depth - 1) * size(params["block_0"]) == GPT2[config]


def is_jaxpr(parameter: Any) -> bool:
    return hasattr(parameter, "eqns")


def equations(jaxpr: Any, name: str) -> list[Any]:
    """Those of a primitive, within functions too."""
    found = []
    for equation in jaxpr.eqns:
        found += [equation] if equation.primitive.name == name else []
        for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            found += equations(inner, name) if is_jaxpr(inner) else []
    return found


def test_softmax_norms_and_loss_are_of_float32() -> None:
    """That is all that takes an exponential, a logarithm or a root."""
    settings = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    loss_fn = transformer.next_token_loss(LANGUAGE.clone(**settings))
    params = shapes(LANGUAGE, TOKENS[:, :-1], **settings)["params"]
    jaxpr = jax.make_jaxpr(loss_fn)(params, TOKENS).jaxpr
    for name, count in {"exp": 2, "log": 1, "rsqrt": 3}.items():
        of_name = equations(jaxpr, name)
        assert len(of_name) == count  # a block has two norms, and there is a last one
        assert all(x.invars[0].aval.dtype == jnp.float32 for x in of_name)
    assert jax.eval_shape(loss_fn, params, TOKENS).dtype == jnp.float32
    assert equations(jaxpr, "dot_general")[0].invars[0].aval.dtype == jnp.bfloat16


def test_what_adds_to_the_residual_stream_starts_smaller_in_a_transformer() -> None:
    config = SMALL._replace(depth=2)
    model = LANGUAGE.clone(config=config, kernel_init=nn.initializers.ones)
    params = quickly_compiled(model.init)(jax.random.key(0), TOKENS[:, :6])["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel":
            is_residual = path[-2].key in ("attention_out", "mlp_out")
            # Four layers add to it, two in each block.
            assert bool(jnp.all(leaf == (0.5 if is_residual else 1.0)))


# ------------------------------------------------------------------------ values
# The values of transformers are checked in tests/io/test_hugging_face.py, against
# tensors in the layout of other libraries.


@pytest.mark.parametrize(
    ("model", "strides"), [(BASIC, (2, 1)), (BOTTLENECK, (1, 2, 1))]
)
def test_resnet_is_of_convolutions_and_shortcuts(
    model: resnet.ResNet, strides: tuple[int, ...]
) -> None:
    """Against NumPy. In the second block, one convolution of the strides has 2."""
    variables = sampled(model, IMAGES)
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))

    def normed(x: np.ndarray, name: str, *block: str) -> np.ndarray:
        layer, statistics = params, stats
        for part in (*block, name):
            layer, statistics = layer[part], statistics[part]
        return batch_normed(x, layer, statistics)

    x = convolved(IMAGES, params["Conv_0"]["kernel"], 2)
    x = relu(normed(x, "BatchNorm_0"))
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # with zeros: x is not negative
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    x = windows[:, ::2, ::2].max((-2, -1))
    assert x.shape == (2, 4, 4, 4)
    for name, stride in (("group_0_block_0", 1), ("group_1_block_0", 2)):
        y = x
        for i, s in enumerate(strides):
            kernel = params[name][f"Conv_{i}"]["kernel"]
            y = convolved(y, kernel, stride if s == 2 else 1)
            y = normed(y, f"BatchNorm_{i}", name)
            y = relu(y) if i < len(strides) - 1 else y
        if "shortcut" in params[name]:
            x = convolved(x, params[name]["shortcut"]["kernel"], stride)
            x = normed(x, "shortcut_norm", name)
        x = relu(x + y)
    expected = dense(x.mean((1, 2)), params["Dense_0"])
    logits = quickly_compiled(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_training_normalizes_by_the_batch_and_keeps_its_statistics() -> None:
    """The first batch norm's, against the mean of the convolution it normalizes."""
    model = BASIC.clone(blocks=(1,), remat=NOTHING)
    variables = sampled(model, IMAGES)
    _, updated = quickly_compiled(
        lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"])
    )(variables)
    first = convolved(IMAGES, np.asarray(variables["params"]["Conv_0"]["kernel"]), 2)
    before = variables["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(
        updated["batch_stats"]["BatchNorm_0"]["mean"],
        0.9 * before + 0.1 * first.mean((0, 1, 2)),
        rtol=1e-4,
        atol=1e-6,
    )
    blocks = [variables["batch_stats"], updated["batch_stats"]]
    before, after = (jax.tree.leaves(x["group_0_block_0"]) for x in blocks)
    assert all(np.all(a != b) for a, b in zip(after, before))


def test_the_loss_is_the_cross_entropy_of_each_next_token() -> None:
    """Token by token, with float64."""

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, tokens: chex.Array) -> chex.Array:
            return self.param("logits", nn.initializers.zeros, (*tokens.shape, 11))

    logits = np.random.default_rng(3).normal(size=(3, 6, 11)).astype(np.float32)
    total = 0.0
    for row, sequence in zip(logits.astype(np.float64), TOKENS):
        for at, scores in enumerate(row):
            total -= math.log(np.exp(scores[sequence[at + 1]]) / np.sum(np.exp(scores)))
    loss_fn = jax.jit(transformer.next_token_loss(Fixed()))
    loss = loss_fn({"logits": logits}, TOKENS)
    assert float(loss) == pytest.approx(total / 18, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (LANGUAGE, TOKENS[:, :-1]),
        *(
            pytest.param(model, IMAGES, marks=pytest.mark.slow)
            for model in IMAGE_MODELS.values()
        ),
    ],
)
def test_rematerialized_blocks_save_less_and_are_called_the_same(
    model: nn.Module, inputs: np.ndarray
) -> None:
    variables = shapes(model, inputs)

    def saved(remat: Callable[..., bool] | None) -> int:
        """The numbers kept for the gradient, parameters included."""
        again = model.clone(remat=remat)
        chex.assert_trees_all_equal_shapes_and_dtypes(shapes(again, inputs), variables)

        def pullback(variables: chex.ArrayTree) -> Callable:
            return jax.vjp(
                lambda params: again.apply({**variables, "params": params}, inputs),
                variables["params"],
            )[1]

        return size(jax.eval_shape(pullback, variables))

    products = jax.checkpoint_policies.dots_saveable
    assert saved(NOTHING) < saved(products) < saved(None)


# ---------------------------------------------------------------------- saliency


@pytest.mark.slow
@pytest.mark.parametrize("model", IMAGE_MODELS.values())
def test_snip_scores_image_models(model: nn.Module) -> None:
    variables = sampled(model, IMAGES)
    params, stats = variables.pop("params"), variables.get("batch_stats", {})
    loss_fn = training.inference_loss(model, stats)
    score = quickly_compiled(functools.partial(saliency.snip, loss_fn))
    scores = score(params, training.Batch(IMAGES, np.array([3, 1])))
    total = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(scores))
    assert total == pytest.approx(1.0, rel=1e-5)
    # Every kernel has connections that matter: nothing is cut off from the loss.
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        assert leaf.ndim < 2 or bool(jnp.any(leaf > 0)), path


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("config", "tokens", "message"),
    [
        (SMALL, TOKENS, "7 tokens, but the model has positions for 6"),
        (SMALL._replace(heads=5), TOKENS[:, :6], "heads is 5, which does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    config: transformer.Config, tokens: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shapes(LANGUAGE, tokens, config=config)


@pytest.mark.parametrize("tokens", [np.zeros((3, 1), int), np.zeros(4, int)])
def test_sequences_without_a_next_token_are_refused(tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a length of at least 2"):
        jax.eval_shape(LOSS, shapes(LANGUAGE, TOKENS[:, :6])["params"], tokens)


@pytest.mark.parametrize("image", [(1, 14, 16, 3), (1, 16, 2, 3), (1, 0, 16, 3)])
def test_images_that_are_not_of_patches_are_refused(image: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not made of patches of 4x4"):
        shapes(VIT, jnp.zeros(image))


def test_attention_is_an_argument() -> None:
    def by_hand(
        query: chex.Array, key: chex.Array, value: chex.Array, *, is_causal: bool
    ) -> chex.Array:
        assert is_causal
        logits = jnp.einsum("bqhn,bkhn->bhqk", query, key) / math.sqrt(query.shape[-1])
        logits = jnp.where(jnp.tri(query.shape[1], dtype=bool), logits, -jnp.inf)
        return jnp.einsum("bhqk,bkhn->bqhn", jax.nn.softmax(logits), value)

    tokens = TOKENS[:, :-1]
    variables = sampled(LANGUAGE, tokens)
    model = transformer.Transformer(SMALL, attention=by_hand)
    wanted, found = (
        quickly_compiled(x.apply)(variables, tokens) for x in (LANGUAGE, model)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
