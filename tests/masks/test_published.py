"""Facts about masks that published results show, checked without training.

Most are in the data of Tanaka et al., "Pruning neural networks without any data by
iteratively conserving synaptic flow", NeurIPS 2020, figure 6, on CIFAR-10: where
accuracy falls to chance, nothing goes through the network any more.
"""

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, models, pruning, saliency

pytestmark = pytest.mark.filterwarnings("ignore:no connection of")
IMAGE = jnp.zeros((1, 32, 32, 3))


@functools.cache
def shapes(name: str) -> chex.ArrayTree:
    model = models.create(name, num_classes=10)
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)


def network(name: str, seed: int) -> chex.ArrayTree:
    """The parameters of a network of ten classes as that code samples them.

    Kernels are normal of variance 2 / fan; ResNet-18 is sampled by the fan out, and its
    dense layer as PyTorch does by default, uniformly up to 1 / sqrt(fan in).
    """
    rng = np.random.default_rng(seed)

    def sample(path: tuple, leaf: chex.Array) -> np.ndarray:
        if path[-1].key != "kernel":
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        is_resnet, is_dense = name.startswith("resnet"), leaf.ndim == 2
        if is_resnet and is_dense:
            bound = 1 / math.sqrt(leaf.shape[0])
            return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
        fan = math.prod(leaf.shape) // leaf.shape[-2 if is_resnet else -1]
        sample = rng.standard_normal(leaf.shape, np.float32)
        return np.float32(math.sqrt(2 / fan)) * sample

    return jax.tree_util.tree_map_with_path(sample, shapes(name)["params"])


def by_magnitude(name: str, density: float, seed: int = 0) -> masks.Mask:
    scores = jax.tree.map(np.abs, network(name, seed))
    return masks.global_topk(scores, 1 - density)


def apply_fn(name: str) -> Callable[[chex.ArrayTree, chex.Array], chex.Array]:
    """The network with the batch statistics of initialization."""
    model = models.create(name, num_classes=10)
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: np.full(x.shape, path[-1].key == "var", np.float32),
        shapes(name).get("batch_stats", {}),
    )
    return lambda params, x: model.apply({"params": params, "batch_stats": stats}, x)


def number_of_effective(name: str, mask: masks.Mask) -> int:
    on_paths = masks.effective(mask, apply_fn(name), shapes(name)["params"], IMAGE)
    return sum(row.kept for row in masks.summary(on_paths))


@pytest.mark.slow
def test_magnitude_empties_a_layer_of_resnet_18_between_10_and_5_6_percent() -> None:
    """It is the last one, whose uniform weights are all below the threshold."""
    empty = {
        density: [
            row.path
            for row in masks.summary(by_magnitude("resnet_18_cifar", density))
            if row.kept == 0
        ]
        for density in (0.1, 0.056)
    }
    assert empty == {0.1: [], 0.056: ["Dense_0/kernel"]}


@pytest.mark.slow
def test_magnitude_breaks_all_paths_of_vgg_16_between_0_56_and_0_32_percent() -> None:
    """No layer is empty: so few connections in five layers of 512 do not meet.

    A path is left now and then.
    """
    name = "vgg_16_bn"
    connected = by_magnitude(name, 0.0056)
    assert number_of_effective(name, connected) > 70_000  # of 82 thousand
    broken = [by_magnitude(name, 0.0032, seed) for seed in (1, 2, 3)]
    for mask in broken:
        assert min(row.kept for row in masks.summary(mask)) > 50
    assert [number_of_effective(name, mask) for mask in broken].count(0) >= 2


@pytest.mark.slow
def test_grasp_keeps_fewer_in_the_last_layers_than_snip() -> None:
    """On noise, at 5% density."""
    name = "vgg_11_bn"
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((32, 32, 32, 3), np.float32), rng.integers(0, 10, 32)
    apply = apply_fn(name)

    def loss_fn(params: chex.ArrayTree, batch: tuple) -> chex.Array:
        images, labels = batch
        logits = apply(params, images) / 200  # the temperature of GraSP
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    grasp, snip = (
        masks.densities(
            pruning.score_and_mask(
                loss_fn, network(name, 0), batch, 0.95, criterion=criterion
            )[1]
        )
        for criterion in (saliency.grasp, saliency.snip)
    )
    for layer in ("Conv_6", "Conv_7", "Dense_0"):
        assert grasp[layer]["kernel"] < 0.8 * snip[layer]["kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_16_bn", "resnet_18_cifar"])
def test_synflow_empties_no_layer_at_a_tenth_of_a_percent(name: str) -> None:
    """But projections of shortcuts, which few paths lead through."""
    criterion = functools.partial(
        saliency.synflow, apply_fn=apply_fn(name), inputs=IMAGE
    )
    _, mask = pruning.prune(
        None, network(name, 0), None, 0.999, criterion=criterion, rounds=100
    )
    rows = masks.summary(mask)
    assert all(row.kept for row in rows if "shortcut" not in row.path)
    # A connection without flow has no score; the last selection leaves a few.
    kept = sum(row.kept for row in rows)
    assert number_of_effective(name, mask) > 0.99 * kept
