"""Experiments on a mesh from streams."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict
from PIL import Image

import snipjax
from snipjax import config as configs
from snipjax import experiment, models, training
from snipjax.data import streams
from snipjax.training import distributed, large, rundir


def on_mesh(**fields: Any) -> ConfigDict:
    """The digits on one device; fields of a section by ``section__name``."""
    config = configs.default()
    config.mesh = "data=1"
    for name, value in fields.items():
        *section, name = name.split("__")
        (config[section[0]] if section else config)[name] = value
    return config


def test_on_eight_devices() -> None:
    eight_devices.check("eight_devices_large.py")


@pytest.mark.slow
def test_choices_on_eight_devices() -> None:
    eight_devices.check("eight_devices_large.py", marked="slow")


class TestMistakes:
    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"mesh": "data:4"}, "config.mesh is 'data:4'"),
            ({"mesh": "rows=4"}, "has an axis 'rows'"),
            ({"mesh": "data=512"}, "host_platform_device_count=512"),
            ({"seeds": 2}, "one network at a time"),
            ({"vary": ("prune.sparsity=0.9,0.95",)}, "one network at a time"),
            ({"dataset__random_labels": True}, "dataset.random_labels is True"),
            ({"prune__batch_class": 1}, "prune.batch_class is 1"),
            ({"mesh": "", "train__remat": True}, "train.remat is True"),
            ({"mesh": "", "dataset__workers": 2}, "dataset.workers is 2"),
            ({"model__name": "lenet"}, "did you mean"),
            ({"train__batch_size": 10_000}, "only 1294 training examples"),
            ({"prune__batch_size": 10_000}, "only 1294 training examples"),
        ],
    )
    def test_are_errors(
        self, fields: dict[str, Any], problem: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=problem):
            large.run(on_mesh(**fields), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_run_in_memory_is_another(self, tmp_path: Path) -> None:
        config = on_mesh(mesh="")
        rundir.write_json(tmp_path / rundir.CONFIG, config.to_dict())
        with pytest.raises(ValueError, match="mesh: data=1 here,  there"):
            large.run(on_mesh(), tmp_path)


class TestAFolder:
    """What a run is resumed on is what it was started on, or it is an error."""

    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        for name in ("cat", "dog"):
            for i in range(20):
                file = tmp_path / "photos" / name / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((8, 8, 3), 5 * i + 90 * (name == "cat"), np.uint8)
                Image.fromarray(pixels).save(file)
        return tmp_path / "photos"

    @pytest.fixture
    def start(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], None]:
        """Starts or resumes a run that is killed when it comes to prune."""

        def killed(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(large, "prune", killed)
        config = on_mesh(
            dataset__name=f"folder:{photos}",
            dataset__stream=True,
            dataset__image_size=8,
            train__batch_size=4,
            prune__batch_size=4,
        )

        def start() -> None:
            with pytest.raises(KeyboardInterrupt):
                large.run(config, tmp_path / "run")

        start()
        return start

    def test_that_is_as_it_was_is_gone_on_with(self, start: Callable) -> None:
        start()

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            (lambda photos: shutil.rmtree(photos / "dog"), "class.1: absent here, dog"),
            (
                lambda photos: (photos / "dog").rename(photos / "wolf"),
                "class.1: wolf here, dog there",
            ),
            (
                lambda photos: (photos / "dog" / "19.png").unlink(),
                "examples.train: 28 here, 29 there",
            ),
            (
                lambda photos: (photos / "dog/19.png").rename(photos / "dog/x.png"),
                "digest.test: .* here, .* there",
            ),
            (
                lambda photos: [
                    Image.new("RGB", (8, 8)).save(file)
                    for file in (photos / "dog").iterdir()
                ],
                "mean: .* here, .* there",
            ),
        ],
    )
    def test_that_changed_is_refused(
        self,
        change: Callable[[Path], None],
        difference: str,
        start: Callable,
        photos: Path,
        tmp_path: Path,
    ) -> None:
        files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
        change(photos)
        with pytest.raises(ValueError, match=rf"started on other data.*{difference}"):
            start()
        assert all(path.read_bytes() == text for path, text in files.items())


def test_processes_must_have_config_code_and_directory_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [large.facts_of_start(tmp_path, on_mesh())]
    assert {f"config.{name}" for name in configs.field_names()} < facts[0].keys()
    monkeypatch.setattr(snipjax, "__version__", "0.0.0")
    facts.append(large.facts_of_start(tmp_path, on_mesh()))
    (tmp_path / "saliency.py").write_text("snip = None\n")
    monkeypatch.setattr(snipjax, "__file__", str(tmp_path / "__init__.py"))
    facts.append(large.facts_of_start(tmp_path / "run", on_mesh(seed=3)))
    seed, version, workdir = sorted(distributed.different(facts))
    assert seed == "config.seed is 0 in process 0, 3 in process 2"
    assert workdir == f"workdir is {tmp_path} in process 0, {tmp_path}/run in process 2"
    assert version.startswith("the version of snipjax is ")
    # Of process 2 it is the same, of other code.
    assert re.search(r"0\.0\.0 .* in process 1, 0\.0\.0 .* in process 2$", version)


def test_what_fails_after_pruning_costs_no_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(large, "report_pruning", full_disk)
    with pytest.raises(OSError, match="No space left"):
        large.run(on_mesh(), tmp_path)
    monkeypatch.setattr(large, "prune", lambda *args: pytest.fail("prunes again"))
    monkeypatch.setattr(large, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        large.run(on_mesh(), tmp_path)
    # Of LeNet-300-100's 50,610 weights and biases, a tenth.
    mask = np.load(tmp_path / "mask.npz")
    assert sum(int(mask[name].sum()) for name in mask) == 5061


class TestImageSize:
    class Sources:
        name = "photos"

        def __init__(self, image: Any) -> None:
            self.train = [(image, 0)]

    def test_is_that_of_arrays(self) -> None:
        sources = self.Sources(np.zeros((8, 8, 1), np.uint8))
        assert large.image_size(on_mesh(), sources) == 8
        assert large.image_size(on_mesh(dataset__image_size=32), sources) == 32

    @pytest.mark.parametrize("image", [b"\xff\xd8", np.zeros((8, 9, 1), np.uint8)])
    def test_must_be_given_for_others(self, image: Any) -> None:
        with pytest.raises(ValueError, match=r"image_size is 0.*photos.*e\.g\. 224"):
            large.image_size(on_mesh(), self.Sources(image))


def test_every_view_of_streams_can_be_named() -> None:
    for view in streams.VIEWS:
        configs.validate(on_mesh(dataset__view=view))


def test_remat_is_of_blocks_where_a_model_has_them() -> None:
    loss_fn = abs
    model, transform = large.rematerialized(models.create("vit_ti_16", 10))
    assert model.remat is not None
    assert transform(loss_fn) is loss_fn
    model, transform = large.rematerialized(models.create("lenet_300_100", 10))
    assert model == models.create("lenet_300_100", 10)
    assert transform(loss_fn)(-2.0) == 2.0


def bytes_of(program: Any) -> int:
    """What a program holds: what it is given, returns and makes on the way."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


@pytest.mark.slow
def test_pruning_takes_no_more_memory_than_a_training_step() -> None:
    config = on_mesh(model__name="vit_ti_16", prune__num_batches=2, prune__rounds=2)
    config.dataset.update(name="synthetic:64x32x32x3/10", stream=True)
    config.train.batch_size = config.prune.batch_size = 8
    plan = large.assemble(config)
    model = plan.parts.model.clone(depth=2)
    plan = plan._replace(parts=plan.parts._replace(model=model))
    leaves = jax.tree.leaves(large.abstract_state(plan).params)
    count = sum(leaf.size for leaf in leaves)

    step = bytes_of(large.compiled_train_step(plan))
    # Parameters, gradient, momentum and mask, but that each gradient can go early.
    assert 9 * count < step < 13 * count
    mask = count  # of the round before, while sensitivities are added up
    assert bytes_of(large.compiled_addition(plan)) + mask < step
    # When parameters are gone.
    assert bytes_of(large.compiled_selection(plan, 1)) < step
    assert bytes_of(large.compiled_selection(plan, 2)) < step
    # Made when all else is gone: of parameters, mask and momentum, and nothing more.
    initial_state = bytes_of(large.compiled_initial_state(plan))
    assert initial_state == pytest.approx(9 * count, rel=0.01)


def saliencies(
    plan: large.Plan, batches: list[training.Batch], flat: jax.Array
) -> np.ndarray:
    """|w * dL/dw| by its sum, of the loss over all batches at once."""
    _, unravel = ravel_pytree(experiment.scored_sample(plan.parts)["params"])
    images, labels = map(jnp.concatenate, zip(*batches))
    images = plan.parts.preprocess(images)

    def loss(flat: jax.Array) -> jax.Array:
        variables = {"params": unravel(flat)}
        logits = plan.parts.model.apply(variables, images, train=False)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    magnitude = np.abs(flat * jax.grad(loss)(flat))
    return magnitude / magnitude.sum()


def test_pruning_has_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    before, compiled_selection, floats = jax.live_arrays(), large.compiled_selection, []

    def watched(*args: Any) -> Callable[..., Any]:
        select = compiled_selection(*args)

        def watched_select(*args: Any) -> Any:
            known = {id(x) for x in before}
            new = [x for x in jax.live_arrays() if id(x) not in known]
            floats.append(sum(x.size for x in new if x.dtype == np.float32))
            return select(*args)

        return watched_select

    monkeypatch.setattr(large, "compiled_selection", watched)
    plan = large.assemble(on_mesh(prune__num_batches=2))
    batches = large.saliency_batches(plan)
    state, drawn = large.prune(plan, batches)
    # Sensitivities; the parameters that they are of are gone.
    assert floats == [pytest.approx(50_610, abs=1000)]
    known = {id(x) for x in [*before, *jax.tree.leaves((state, batches))]}
    others = [x for x in jax.live_arrays() if id(x) not in known]
    assert max((x.size for x in others), default=0) < 1000
    kept = jax.tree.leaves(state.opt_state.mask)
    assert drawn.scores.size == 50_610 == sum(m.size for m in kept if m.ndim)
    # Of the paper's weights and biases a tenth is kept, and so many are no less.
    assert np.sum(drawn.scores >= drawn.threshold) == sum(
        int(m.sum()) for m in kept if m.ndim
    )
    dense = ravel_pytree(experiment.scored_sample(plan.parts)["params"])[0]
    expected = saliencies(plan, batches, dense)
    np.testing.assert_allclose(drawn.scores, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.slow
def test_scores_are_of_what_is_left() -> None:
    plan = large.assemble(on_mesh(prune__num_batches=2, prune__rounds=2))
    batches = large.saliency_batches(plan)
    scores, mask = large.scores_and_mask(plan, batches)
    dense = ravel_pytree(experiment.scored_sample(plan.parts)["params"])[0]
    # A tenth is left in two rounds: first its square root, 16,004 of 50,610.
    first = saliencies(plan, batches, dense)
    left = jnp.where(first >= np.sort(first)[-16_004], dense, 0.0)
    second = saliencies(plan, batches, left)
    actual = ravel_pytree(scores)[0]
    np.testing.assert_allclose(actual, second, rtol=1e-3, atol=1e-8)
    keep = second >= np.sort(second)[-5061]
    assert np.mean(keep == ravel_pytree(mask)[0]) > 1 - 1e-4


def test_claim_is_of_the_directory(tmp_path: Path) -> None:
    with large.claim(tmp_path / "run", on_mesh()):
        (tmp_path / "run" / rundir.CONFIG).write_text(json.dumps(on_mesh().to_dict()))
        with (
            pytest.raises(ValueError, match="another process is using it"),
            large.claim(tmp_path / "run", on_mesh()),
        ):
            pass
    with large.claim(tmp_path / "run", on_mesh(mesh="model=1")):
        pass
