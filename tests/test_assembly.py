"""Algorithm 1 up to the first step, against NumPy."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly
from tests.conftest import largest_by_sorting
from tests.runs import named, nested, quick

# LeNet-300-100 on images of 64 pixels.
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
BIASES = 300 + 100 + 10

Arrays = dict[str, np.ndarray]

pytestmark = pytest.mark.usefixtures("compile_once")


class Pruned(NamedTuple):
    """A network before its first step."""

    setup: assembly.Setup
    mask: Arrays
    params: Arrays

    def sample(self, part: str) -> Arrays:
        """The sample that is scored, or the fresh one that is trained."""
        key = getattr(assembly.make_keys(0), f"{part}_init")
        init = self.setup.config.init
        name = {"scored": init.scored, "fresh": init.trained}[part]
        return named(self.setup.init(key, name)["params"])


def pruned(config: ConfigDict) -> Pruned:
    setup = assembly.assemble(config)
    place = setup.placement(range(1))
    score, start, batch = assembly.algorithm(setup)
    _, masks = place.score(score, batch)
    (mask,) = place.networks(masks)
    (state,) = place.networks(place.start(start, masks))
    return Pruned(setup, named(mask), named(state.params))


def top(scores: Arrays, kept: int) -> Arrays:
    return dict(zip(scores, largest_by_sorting(list(scores.values()), kept)))


def test_snip_is_the_gradient_times_the_weight() -> None:
    network = pruned(quick())
    setup, mask = network.setup, network.mask
    scored = nested(network.sample("scored"))
    batch = assembly.saliency_batch(setup, 0)

    @jax.jit
    @jax.grad
    def gradient(params: chex.ArrayTree) -> chex.Array:
        logits = setup.task.model.apply({"params": params}, batch.images)
        correct = jax.nn.log_softmax(logits)[jnp.arange(100), batch.labels]
        return -jnp.mean(correct)

    slopes = gradient(scored)
    scores = named(jax.tree.map(lambda g, w: np.abs(g * w), slopes, scored))
    expected = top(scores, kept=5061)
    differing = sum(int((expected[name] != mask[name]).sum()) for name in mask)
    assert differing <= 4, "but for rounding at the threshold"
    assert not any(mask[f"Dense_{i}/bias"].any() for i in range(3))
    fresh = network.sample("fresh")
    for name, param in network.params.items():
        np.testing.assert_array_equal(param, np.where(mask[name], fresh[name], 0))


def test_magnitude_without_a_fresh_sample() -> None:
    network = pruned(quick(method="magnitude", fresh_init=False, prunable="kernels"))
    weights = {k: v for k, v in network.sample("scored").items() if "kernel" in k}
    magnitudes = {name: np.abs(value) for name, value in weights.items()}
    for name, keep in top(magnitudes, kept=round(0.1 * WEIGHTS)).items():
        np.testing.assert_array_equal(network.mask[name], keep)
        kept = np.where(keep, weights[name], 0)
        np.testing.assert_array_equal(network.params[name], kept)
    assert all(network.mask[f"Dense_{i}/bias"].shape == () for i in range(3))


def test_none_keeps_everything() -> None:
    assert all(keep.all() for keep in pruned(quick(method="none")).mask.values())


def test_the_scored_and_the_trained_sample_have_initializers_of_their_own() -> None:
    config = quick(method="magnitude")
    config.init.scored, config.init.trained = "he", "heuristic_uniform"
    network = pruned(config)
    # U[-1/8, 1/8] for 64 inputs; He's normal has 3 of 1000 beyond 0.53.
    kernel = network.params["Dense_0/kernel"]
    assert 0.12 < np.abs(kernel).max() <= 0.125
    he = network.sample("scored")
    assert np.std(he["Dense_0/kernel"]) == pytest.approx(np.sqrt(2 / 64), rel=0.02)
    for name, keep in top(jax.tree.map(np.abs, he), kept=5061).items():
        np.testing.assert_array_equal(network.mask[name], keep)


def test_saliency_may_be_of_one_class_that_has_examples() -> None:
    config = quick(batch_class=7)
    config.prune.batch_size = 50
    batch: Any = assembly.saliency_batch(assembly.assemble(config), 0)
    assert batch.images.shape == (50, 8, 8, 1)
    assert np.all(np.asarray(batch.labels) == 7)
    with pytest.raises(ValueError, match="classes of digits are 0 to 9"):
        assembly.assemble(quick(batch_class=10))


def test_random_labels_have_nothing_to_do_with_the_images() -> None:
    config = quick()
    true = assembly.assemble(config).arrays
    config.dataset.random_labels = True
    random = assembly.assemble(config).arrays
    assert true is not None and random is not None
    labels, others = np.asarray(random.train.labels), np.asarray(true.train.labels)
    # 1,294 draws with probability 1/10 agree 129 times, with a deviation of 11.
    assert 80 < (labels == others).sum() < 180
    np.testing.assert_array_equal(random.train.images, true.train.images)
    np.testing.assert_array_equal(random.test.labels, true.test.labels)
