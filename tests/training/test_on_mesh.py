"""One network on a mesh with a stream of batches, most of it on eight devices."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from snipjax import assembly, experiment, models
from snipjax import config as configs
from snipjax.training import rundir
from tests.training import eight_devices, mesh_programs


def on_mesh(**fields: Any) -> ConfigDict:
    """The digits on one device; fields of a section by ``section__name``."""
    config = configs.default()
    config.mesh = "data=1"
    for name, value in fields.items():
        *section, name = name.split("__")
        (config[section[0]] if section else config)[name] = value
    return config


def test_on_eight_devices() -> None:
    eight_devices.check("eight_devices_on_mesh.py", "eight_devices_sharding.py")


@pytest.mark.slow
def test_choices_on_eight_devices() -> None:
    eight_devices.check("eight_devices_on_mesh.py", marked="slow")


def test_a_mesh_of_more_devices_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="host_platform_device_count=512"):
        experiment.run(on_mesh(mesh="data=512"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_on_another_mesh_with_other_workers_but_not_from_memory(
    tmp_path: Path,
) -> None:
    written = on_mesh(wandb="project").to_dict()
    rundir.write_json(tmp_path / rundir.CONFIG, written)
    with experiment.opened(on_mesh(mesh="model=1", dataset__workers=2), tmp_path):
        pass
    rundir.write_json(tmp_path / rundir.CONFIG, on_mesh(mesh="").to_dict())
    with pytest.raises(ValueError, match="mesh: data=1 here,  there"):
        experiment.run(on_mesh(), tmp_path)


class TestAFolder:
    """A run goes on with the data that it was started on, or it is an error."""

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

        monkeypatch.setattr(assembly, "algorithm", killed)
        config = on_mesh(
            dataset__name=f"folder:{photos}",
            dataset__stream=True,
            dataset__image_size=8,
            train__batch_size=4,
            prune__batch_size=4,
        )

        def start() -> None:
            with pytest.raises(KeyboardInterrupt):
                experiment.run(config, tmp_path / "run")

        start()
        return start

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            (lambda dog: dog.rename(dog.parent / "wolf"), "class.1: wolf here, dog"),
            (lambda dog: (dog / "19.png").unlink(), "examples.train: 28 here, 29"),
            (
                lambda dog: (dog / "19.png").rename(dog / "x.png"),
                "digest.test: .* here",
            ),
            (
                lambda dog: [Image.new("RGB", (8, 8)).save(x) for x in dog.iterdir()],
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
        start()  # as it was, it goes on
        files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
        change(photos / "dog")
        with pytest.raises(ValueError, match=rf"started on other data.*{difference}"):
            start()
        assert all(path.read_bytes() == text for path, text in files.items())


def test_the_size_of_images_is_of_square_arrays_or_must_be_given() -> None:
    def size(image: Any, **fields: Any) -> int:
        dataset: Any = SimpleNamespace(name="photos", train=[(image, 0)])
        return assembly.image_size(on_mesh(**fields), dataset)

    assert size(np.zeros((8, 8, 1), np.uint8)) == 8
    assert size(np.zeros((8, 8, 1), np.uint8), dataset__image_size=32) == 32
    for image in (b"\xff\xd8", np.zeros((8, 9, 1), np.uint8)):
        with pytest.raises(ValueError, match=r"image_size is 0.*photos.*e\.g\. 224"):
            size(image)


def test_remat_is_of_blocks_where_a_model_has_them() -> None:
    loss_fn = abs
    model, transform = assembly.rematerialized(models.create("vit_ti_16", 10))
    assert model.remat is not None
    assert transform(loss_fn) is loss_fn
    model, transform = assembly.rematerialized(models.create("lenet_300_100", 10))
    assert model == models.create("lenet_300_100", 10)
    assert transform(loss_fn)(-2.0) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
def test_pruning_takes_no_more_memory_than_a_training_step(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = mesh_programs.of_two_blocks("data=1", num_batches=2, rounds=rounds)
    leaves = jax.tree.leaves(assembly.abstract_state(setup).params)
    count = sum(leaf.size for leaf in leaves)
    step = mesh_programs.bytes_at_most(mesh_programs.train_step(setup))
    # Parameters, gradient, momentum and mask, but that each gradient can go early.
    assert 9 * count < step < 13 * count
    recorder = mesh_programs.Recorder(monkeypatch)
    recorder.prune(setup)
    assert max(recorder.bytes) < step
    # Made when all else is gone: of parameters, mask and momentum, and nothing more.
    start = mesh_programs.bytes_at_most(recorder.programs[-1])
    assert start == pytest.approx(9 * count, rel=0.01)
