"""Algorithm 1 up to the first step, against NumPy."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import assembly
from tests.runs import Finished, finished_run, named, nested, quick

# LeNet-300-100 on images of 64 pixels.
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
BIASES = 300 + 100 + 10

pytestmark = pytest.mark.usefixtures("compile_once")


def top(scores: dict[str, np.ndarray], kept: int) -> dict[str, np.ndarray]:
    """The mask of the largest scores by a stable sort, ties to the lower index."""
    flat = np.concatenate([leaf.ravel() for leaf in scores.values()])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:kept]] = True
    ends = np.cumsum([leaf.size for leaf in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(mask, ends))
    return {name: part.reshape(leaf.shape) for (name, leaf), part in parts}


def sampled(run: Finished, part: str) -> dict[str, np.ndarray]:
    """The sample that is scored, or the fresh one that is trained."""
    setup = assembly.assemble(run.config)
    key = getattr(assembly.make_keys(0), f"{part}_init")
    names = {"scored": run.config.init.scored, "fresh": run.config.init.trained}
    return named(setup.init(key, names[part])["params"])


class TestPruning:
    """Runs of no step, so that it is all there is."""

    def run(self, workdir: Path, **fields: Any) -> Finished:
        run = finished_run(quick(steps=0, **fields), workdir)
        assert run.result["steps"] == run.network["best_step"] == 0
        assert 50 < run.network["test_error"] <= 100  # evaluated all the same
        return run

    def test_snip_is_the_gradient_times_the_weight(self, tmp_path: Path) -> None:
        run = self.run(tmp_path)
        setup, mask = assembly.assemble(run.config), run.mask()
        scored = nested(sampled(run, "scored"))
        batch = assembly.saliency_batch(setup, 0)

        def loss_fn(params: chex.ArrayTree) -> chex.Array:
            logits = setup.task.model.apply({"params": params}, batch.images)
            correct = jax.nn.log_softmax(logits)[jnp.arange(100), batch.labels]
            return -jnp.mean(correct)

        gradient = jax.grad(loss_fn)(scored)
        scores = named(jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, scored))
        expected = top(scores, kept=5061)
        differing = sum(int((expected[name] != mask[name]).sum()) for name in mask)
        assert differing <= 4, "but for rounding at the threshold"
        assert not any(mask[f"Dense_{i}/bias"].any() for i in range(3))
        fresh = sampled(run, "fresh")
        for name, param in run.params().items():
            np.testing.assert_array_equal(param, np.where(mask[name], fresh[name], 0))

    def test_magnitude_without_a_fresh_sample(self, tmp_path: Path) -> None:
        run = self.run(
            tmp_path, method="magnitude", fresh_init=False, prunable="kernels"
        )
        mask, params = run.mask(), run.params()
        weights = {k: v for k, v in sampled(run, "scored").items() if "kernel" in k}
        magnitudes = {name: np.abs(value) for name, value in weights.items()}
        expected = top(magnitudes, kept=round(0.1 * WEIGHTS))
        for name, keep in expected.items():
            np.testing.assert_array_equal(mask[name], keep)
            np.testing.assert_array_equal(
                params[name], np.where(keep, weights[name], 0)
            )
        assert all(mask[f"Dense_{i}/bias"].shape == () for i in range(3))

    def test_random_layerwise(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, method="random", select="layerwise")
        mask = run.mask()
        for keep in mask.values():
            assert keep.sum() == round(keep.size * (1 - 0.9))
        # Of 64 binomial counts with mean 30 and deviation 5.2, none is 5 of those off.
        counts = mask["Dense_0/kernel"].sum(axis=1)
        assert np.all(np.abs(counts - 30) < 26)
        assert len(set(counts)) > 5

    def test_what_is_excluded_stays_dense_and_no_layer_falls_below_a_minimum(
        self, tmp_path: Path
    ) -> None:
        run = self.run(
            tmp_path,
            sparsity=0.995,
            prunable="kernels",
            exclude=("Dense_2/*",),
            min_density=0.0049,
        )
        mask = run.mask()
        assert mask["Dense_2/kernel"].shape == ()
        first, second = (mask[f"Dense_{i}/kernel"].sum() for i in range(2))
        assert first >= 0.0049 * 64 * 300
        assert second >= 0.0049 * 300 * 100
        assert first + second == round(0.005 * (64 * 300 + 300 * 100))

    def test_none_keeps_everything(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, method="none")
        assert all(keep.all() for keep in run.mask().values())
        assert (run.network["sparsity"], run.network["prunes"]) == (0.0, 0)

    def test_the_scored_and_the_trained_sample_have_initializers_of_their_own(
        self, tmp_path: Path
    ) -> None:
        config = quick(steps=0)
        config.init.scored, config.init.trained = "he", "heuristic_uniform"
        run = finished_run(config, tmp_path / "he")
        # U[-1/8, 1/8] for 64 inputs; He's normal has 3 of 1000 beyond 0.53.
        kernel = run.params()["Dense_0/kernel"]
        assert 0.12 < np.abs(kernel).max() <= 0.125
        he = sampled(run, "scored")["Dense_0/kernel"]
        assert np.std(he) == pytest.approx(np.sqrt(2 / 64), rel=0.02)
        mask = run.mask()
        other = self.run(tmp_path / "fan_in").mask()
        assert any((mask[name] != other[name]).any() for name in mask)

    def test_rounds_over_several_batches(self, tmp_path: Path) -> None:
        run = self.run(tmp_path, rounds=2, num_batches=3, sparsity=0.97)
        assert run.network["kept"] == round(0.03 * (WEIGHTS + BIASES))
        assert run.network["prunes"] == 2

    def test_saliency_of_one_class(self) -> None:
        config = quick(batch_class=7)
        config.prune.batch_size = 50
        batch = assembly.saliency_batch(assembly.assemble(config), 0)
        assert batch.images.shape == (50, 8, 8, 1)
        assert np.all(np.asarray(batch.labels) == 7)

    def test_a_class_without_examples_is_refused(self) -> None:
        with pytest.raises(ValueError, match="classes of digits are 0 to 9"):
            assembly.assemble(quick(batch_class=10))

    def test_random_labels_have_nothing_to_do_with_the_images(self) -> None:
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
