"""`snipjax.data.streams`: what a batch holds, where it comes from, and what goes wrong."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets_builders as builders
import grain
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from PIL import Image

from snipjax.data import datasets, streams
from snipjax.data.datasets import DatasetError
from snipjax.data.streams import Crop, folders

SIZES = {"batch_size": 4, "image_size": 8}


class Numbers:
    """Example ``i`` is a grey pixel, and its label says which it is."""

    channels = 1

    def __init__(self, total: int) -> None:
        self._total = total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 1, 1), index % 256, np.uint8), index

    def where(self, index: int) -> str:
        return f"number {index}"


def numbers(total: int, num_steps: int, **settings: int) -> np.ndarray:
    """Indices of the examples of a stream's steps, ``[steps, local batch]``."""
    settings = {"seed": 0, "threads": 0} | settings
    stream = streams.batches(
        Numbers(total),
        num_steps=num_steps,
        image_size=1,
        view=streams.whole,
        **settings,
    )
    return np.array([batch.labels for batch in stream])


def ramp(width: int, height: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row, up to 255."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)


def save(image: np.ndarray | Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file)


def colour(*values: int) -> np.ndarray:
    return np.full((5, 4, 3), values, np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of cats and ten of dogs, all different, of different sizes."""
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        for i in range(10):
            pixels = rng.integers(0, 256, (8 + i, 9, 3), np.uint8)
            save(pixels, tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def run_python(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(streams.__file__).parents[2])
    return subprocess.run(
        [sys.executable, str(file), *arguments],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestOrder:
    @hypothesis.settings(max_examples=20)
    @hypothesis.given(
        total=st.integers(1, 300), part=st.integers(1, 99), seed=st.integers(0, 2**40)
    )
    def test_every_example_comes_once_in_every_epoch(
        self, total: int, part: int, seed: int
    ) -> None:
        size = min(part, total)
        steps = -(-3 * total // size)
        order = numbers(total, steps, batch_size=size, seed=seed).ravel()
        for epoch in range(3):
            indices = order[epoch * total : (epoch + 1) * total]
            np.testing.assert_array_equal(np.sort(indices), np.arange(total))

    @hypothesis.settings(max_examples=20)
    @hypothesis.given(
        total=st.integers(100, 400),
        processes=st.sampled_from([2, 3, 4]),
        part=st.integers(1, 6),
        start=st.integers(0, 40),
    )
    def test_the_parts_of_all_processes_are_the_batch_of_one(
        self, total: int, processes: int, part: int, start: int
    ) -> None:
        settings = {"batch_size": processes * part, "start_step": start}
        whole = numbers(total, start + 3, **settings)
        parts = [
            numbers(
                total, start + 3, process_index=i, process_count=processes, **settings
            )
            for i in range(processes)
        ]
        assert all(labels.shape == (3, part) for labels in parts)
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)

    @hypothesis.settings(max_examples=10)
    @hypothesis.given(start=st.integers(0, 30), size=st.integers(1, 40))
    def test_a_stream_that_starts_later_goes_on_where_another_is(
        self, start: int, size: int
    ) -> None:
        whole = numbers(300, 33, batch_size=size)
        rest = numbers(300, 33, batch_size=size, start_step=start)
        np.testing.assert_array_equal(rest, whole[start:])

    def test_epochs_and_seeds_have_orders_of_their_own(self) -> None:
        orders = [*numbers(200, 3, batch_size=200)]
        orders += [*numbers(200, 3, batch_size=200, seed=1)]
        assert len({tuple(order) for order in orders}) == 6

    def test_an_example_may_come_at_any_place(self) -> None:
        """Of 400 seeds, half begin with an example of either half, within 4 sigma."""
        first = [numbers(300, 1, batch_size=1, seed=seed)[0, 0] for seed in range(400)]
        assert abs(np.sum(np.array(first) < 150) - 200) < 4 * np.sqrt(400 / 4)

    def test_nothing_is_left_after_the_last_step(self) -> None:
        assert len(numbers(10, 5, batch_size=4, start_step=5)) == 0
        assert len(numbers(10, 0, batch_size=4)) == 0

    def test_states_of_grain_are_places_in_the_stream(self) -> None:
        stream = streams.batches(
            Numbers(50), seed=0, batch_size=4, image_size=1, view=streams.whole
        )
        next(stream)
        state = stream.get_state()
        ahead = [next(stream).labels for _ in range(3)]
        stream.set_state(state)
        np.testing.assert_array_equal([next(stream).labels for _ in range(3)], ahead)
        stream.close()

    def test_a_stream_without_an_end_goes_on(self) -> None:
        order = grain.MapDataset.range(4).seed(0).shuffle().repeat()
        stream = streams.batches(
            Numbers(4),
            seed=0,
            batch_size=4,
            image_size=1,
            view=streams.whole,
            start_step=10**9,
        )
        np.testing.assert_array_equal(
            next(stream).labels, [order[4 * 10**9 + i] for i in range(4)]
        )
        stream.close()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 6, "process_count": 4}, "multiple of the 4 processes"),
            ({"batch_size": 0}, "must be a positive multiple"),
            (
                {"batch_size": 4, "process_count": 2, "process_index": 2},
                r"must be in \[0, 2\)",
            ),
            ({"batch_size": 21}, "only 20 examples; make it smaller"),
        ],
    )
    def test_batches_that_cannot_be_are_refused(
        self, settings: dict[str, int], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            numbers(20, 1, **settings)


class TestRandomness:
    def images(self, **settings: int) -> np.ndarray:
        source = streams.open("synthetic:12x20x16x3/4").train
        stream = streams.batches(source, seed=3, image_size=8, threads=0, **settings)
        return np.stack([batch.images for batch in stream])

    def test_views_do_not_depend_on_the_number_of_processes(self) -> None:
        whole = self.images(batch_size=6, num_steps=4)
        parts = [
            self.images(batch_size=6, num_steps=4, process_index=i, process_count=3)
            for i in range(3)
        ]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        later = self.images(batch_size=6, num_steps=4, start_step=3)
        np.testing.assert_array_equal(later, whole[3:])

    def test_an_example_is_seen_differently_in_every_epoch(self) -> None:
        first, second = self.images(batch_size=12, num_steps=2)
        assert not any((image == first).all((1, 2, 3)).any() for image in second)


class TestWorkers:
    """Two processes started once, for what can only be seen with them."""

    def test_workers_give_the_same_and_pass_on_what_goes_wrong(
        self, photos: Path
    ) -> None:
        source = streams.open(f"folder:{photos}").train
        settings = {"batch_size": 4, "seed": 1, "image_size": 8}
        alone = streams.batches(source, num_steps=3, **settings)
        expected = [next(alone) for _ in range(2)]
        last = numbers(len(source), 3, batch_size=4, seed=1)[2, 0]
        broken = Path(source.where(last))
        broken.write_bytes(b"this is not an image")
        stream = streams.batches(source, num_steps=3, workers=2, **settings)
        for batch in expected:
            actual = next(stream)
            np.testing.assert_array_equal(actual.images, batch.images)
            np.testing.assert_array_equal(actual.labels, batch.labels)
        with pytest.raises(DatasetError, match=f"{broken} cannot be read"):
            next(stream)
        stream.close()
        assert multiprocessing.active_children() == []

    @pytest.mark.slow
    def test_a_killed_worker_is_an_error(self) -> None:
        source = streams.open("synthetic:1000x8x8x3/4").train
        batches = streams.batches(source, seed=0, workers=2, **SIZES)
        with streams.to_device(batches) as batches:
            next(batches)
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            said = r"reads images was killed.*fewer config\.dataset\.workers"
            with pytest.raises(OSError, match=said):
                for _ in range(1000):
                    next(batches)
        assert multiprocessing.active_children() == []

    @pytest.mark.slow
    def test_a_worker_outlasts_the_end_of_a_whole_job(self) -> None:
        """Launchers tell every process of a job to end; the first saves, and ends."""
        source = streams.open("synthetic:1000x8x8x3/4").train
        batches = streams.batches(source, seed=0, workers=1, **SIZES)
        with streams.to_device(batches) as batches:
            next(batches)
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGTERM)
            for _ in range(20):
                next(batches)
            assert worker.is_alive()

    @pytest.mark.slow
    @pytest.mark.parametrize("end", ["return", "raise", "interrupt", "kill"])
    def test_no_worker_outlives_a_program_and_none_holds_it_up(
        self, tmp_path: Path, end: str
    ) -> None:
        file = tmp_path / "program.py"
        file.write_text(
            "import multiprocessing, os, signal, sys, time\n"
            "from snipjax import streams\n"
            "def main():\n"
            "    source = streams.open('synthetic:1000x8x8x3/4').train\n"
            "    batches = streams.to_device(streams.batches(\n"
            "        source, seed=0, workers=2, batch_size=4, image_size=8))\n"
            "    next(batches)\n"
            "    for child in multiprocessing.active_children(): print(child.pid)\n"
            "    sys.stdout.flush()\n"
            "    if sys.argv[1] == 'raise': raise SystemExit('raised')\n"
            "    if sys.argv[1] == 'interrupt': os.kill(os.getpid(), signal.SIGINT)\n"
            "    if sys.argv[1] == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
            "if __name__ == '__main__': main()\n"
        )
        program = run_python(file, end)
        expected = {"return": 0, "raise": 1, "interrupt": 130, "kill": -9}
        assert program.returncode in (expected[end], -signal.SIGINT)
        workers = program.stdout.split()
        assert len(workers) == 2
        deadline = time.monotonic() + 10
        while any(Path("/proc", pid).exists() for pid in workers):
            assert time.monotonic() < deadline, "workers go on without their parent"
            time.sleep(0.1)
        if end != "kill":
            assert "leaked" not in program.stderr


class TestViews:
    @hypothesis.given(
        width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 999)
    )
    def test_random_resized_crops_are_what_the_paper_says(
        self, width: int, height: int, seed: int
    ) -> None:
        crop = streams.random_resized_crop(np.random.default_rng(seed), (width, height))
        assert crop.left >= 0 and crop.left + crop.width <= width + 1e-6
        assert crop.top >= 0 and crop.top + crop.height <= height + 1e-6
        assert 3 / 4 - 1e-6 <= crop.width / crop.height <= 4 / 3 + 1e-6
        share = crop.width * crop.height / (width * height)
        assert share <= 1 + 1e-6
        if 1 / 2 <= width / height <= 2:  # else the box may have to be smaller
            assert share >= 0.08 - 1e-6

    def test_random_resized_crops_are_spread_as_the_paper_says(self) -> None:
        """On an image so large that the aspect ratio never matters for small areas."""
        rng = np.random.default_rng(0)
        crops = [streams.random_resized_crop(rng, (400, 400)) for _ in range(4000)]
        shares = np.array([crop.width * crop.height / 400**2 for crop in crops])
        ratios = np.array([crop.width / crop.height for crop in crops])
        small = shares < 0.5  # these fit with any aspect ratio: uniform in [0.08, 0.5]
        assert abs(shares[small].mean() - 0.29) < 0.01
        assert abs(np.log(ratios[small]).mean()) < 0.02
        assert abs(np.log(ratios[small]).std() - np.log(16 / 9) / 12**0.5) < 0.01
        assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.04

    def test_an_image_too_long_for_any_box_gives_its_middle(self) -> None:
        crop = streams.random_resized_crop(np.random.default_rng(0), (1000, 30))
        assert crop[:4] == (480, 0, 40, 30)

    @pytest.mark.parametrize("view", [streams.translated, streams.whole])
    def test_these_are_never_mirrored(self, view: streams.View) -> None:
        crops = [view(np.random.default_rng(i), (32, 32)) for i in range(100)]
        assert not any(crop.flip for crop in crops)

    def test_shifts_are_all_of_up_to_an_eighth(self) -> None:
        rng = np.random.default_rng(0)
        crops = [streams.translated_and_flipped(rng, (32, 16)) for _ in range(500)]
        assert {crop.left for crop in crops} == set(range(-4, 5))
        assert {crop.top for crop in crops} == set(range(-2, 3))
        assert {crop[2:4] for crop in crops} == {(32, 16)}
        assert 200 < sum(crop.flip for crop in crops) < 300

    def test_the_middle_is_that_of_256_pixels_cropped_to_224(self) -> None:
        assert streams.center_crop(None, (256, 256)) == Crop(16, 16, 224, 224)
        assert streams.center_crop(None, (512, 1024)) == Crop(32, 288, 448, 448)


class TestPixels:
    """What becomes of known pictures; all through one batch of a folder."""

    def first(
        self,
        image: np.ndarray | Image.Image,
        folder: Path,
        view: streams.View,
        size: int,
    ) -> np.ndarray:
        for i in range(9):
            save(image, folder / "train" / "only" / f"{i}.png")
        source = streams.open(f"folder:{folder}").train
        stream = streams.evaluation_batches(
            source, batch_size=1, image_size=size, view=view
        )
        return next(stream).images[0].astype(int)

    def test_a_whole_image_of_the_right_size_is_itself(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
        np.testing.assert_array_equal(
            self.first(image, tmp_path, streams.whole, 9), image
        )

    @pytest.mark.parametrize("size", [6, 40, 300])
    def test_a_crop_of_a_ramp_is_a_steeper_or_a_flatter_ramp(
        self, tmp_path: Path, size: int
    ) -> None:
        box = (20, 40, 120, 60)
        image = self.first(ramp(200, 180), tmp_path, lambda *_: Crop(*box), size)
        centers = (np.arange(size) + 0.5) / size
        inner = slice(size // 10 + 1, -(size // 10) - 1)  # else the box's edge is seen
        columns = 20 + centers * 120 - 0.5
        rows = 40 + centers * 60 - 0.5
        assert np.abs(image[inner, inner, 0] - columns[inner]).max() <= 1
        assert np.abs(image[inner, inner, 1] - rows[inner, None]).max() <= 1

    def test_a_mirrored_image_is_mirrored(self, tmp_path: Path) -> None:
        image = ramp(9, 9)
        flipped = self.first(image, tmp_path, lambda *_: Crop(0, 0, 9, 9, True), 9)
        np.testing.assert_array_equal(flipped, image[:, ::-1])

    def test_what_comes_in_from_outside_is_black(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).integers(1, 256, (8, 8, 3), np.uint8)
        shifted = self.first(image, tmp_path, lambda *_: Crop(-2, 3, 8, 8), 8)
        expected = np.zeros((8, 8, 3))
        expected[:5, 2:] = image[3:, :6]
        np.testing.assert_array_equal(shifted, expected)

    def test_a_large_photograph_is_decoded_coarsely_and_looks_the_same(
        self, tmp_path: Path
    ) -> None:
        pixels = ramp(256, 256).repeat(4, 0).repeat(4, 1)
        for i in range(9):
            file = tmp_path / "train" / "only" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, quality=95)
        source = streams.open(f"folder:{tmp_path}").train
        for view, low, side in (
            (streams.whole, 0, 256),
            (streams.center_crop, 16, 224),
        ):
            stream = streams.evaluation_batches(
                source, batch_size=1, image_size=32, view=view
            )
            image = next(stream).images[0].astype(int)
            expected = low + (np.arange(32) + 0.5) / 32 * side - 0.5
            assert np.abs(image[2:-2, 2:-2, 0] - expected[2:-2]).max() <= 4
            assert np.abs(image[2:-2, 2:-2, 1] - expected[2:-2, None]).max() <= 4

    @pytest.mark.parametrize(
        ("image", "suffix", "expected"),
        [
            (Image.new("L", (5, 4), 100), "png", (100, 100, 100)),
            (Image.new("LA", (5, 4), (100, 9)), "png", (100, 100, 100)),
            (Image.new("1", (5, 4), 1), "png", (255, 255, 255)),
            (Image.new("RGBA", (5, 4), (10, 20, 30, 40)), "png", (10, 20, 30)),
            (Image.new("RGB", (5, 4), (90, 80, 70)).quantize(2), "gif", (90, 80, 70)),
            (Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "tif", (255, 0, 0)),
            (Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "jpg", (255, 0, 0)),
            (Image.new("I;16", (5, 4), 100 * 256), "png", (100, 100, 100)),
        ],
        ids=[
            "grey",
            "grey+alpha",
            "1 bit",
            "rgba",
            "palette",
            "cmyk",
            "jpeg",
            "16 bit",
        ],
    )
    def test_other_images_among_rgb_ones_are_converted(
        self,
        tmp_path: Path,
        image: Image.Image,
        suffix: str,
        expected: tuple[int, int, int],
    ) -> None:
        for i in range(9):
            save(colour(1, 2, 3), tmp_path / "train" / "a" / f"{i}.png")
        save(image, tmp_path / "test" / "a" / f"other.{suffix}")
        save(colour(1, 2, 3), tmp_path / "test" / "a" / "rgb.png")
        source = streams.open(f"folder:{tmp_path}").test
        (batch,) = streams.evaluation_batches(source, batch_size=2, image_size=3)
        assert np.abs(batch.images[0].astype(int) - expected).max() <= 2
        np.testing.assert_array_equal(batch.images[1], colour(1, 2, 3)[:3, :3])


class TestFolders:
    def test_classes_are_sorted_and_parts_are_held_out_as_documented(
        self, photos: Path
    ) -> None:
        sources = streams.open(f"folder:{photos}", validation_fraction=0.25)
        assert sources.num_classes == 2
        files = [
            photos / name / f"{i}.png" for name in ("cat", "dog") for i in range(10)
        ]
        order = np.random.RandomState(0).permutation(20)
        test, rest = np.sort(order[:4]), np.sort(order[4:])
        held = np.sort(np.random.RandomState(0).permutation(16)[:4])
        for part, indices in (
            (sources.test, test),
            (sources.validation, rest[held]),
            (sources.train, np.delete(rest, held)),
        ):
            assert [part.where(i) for i in range(len(part))] == [
                str(files[i]) for i in indices
            ]
            assert [part[i] for i in range(len(part))] == [
                (files[i].read_bytes(), int(i >= 10)) for i in indices
            ]

    @pytest.mark.parametrize("name", ["validation", "val", "valid"])
    def test_splits_are_those_there_are(self, tmp_path: Path, name: str) -> None:
        for split, total in (("train", 5), (name, 2), ("test", 3)):
            for i in range(total):
                save(colour(i, 0, 0), tmp_path / split / "b" / f"{i}.JPEG")
        save(colour(9, 9, 9), tmp_path / "train" / "a" / "0.png")
        sources = streams.open(f"folder:{tmp_path}")
        assert [len(part) for part in sources[1:4]] == [6, 2, 3]
        assert [sources.train[i][1] for i in range(6)] == [0, 1, 1, 1, 1, 1]
        assert sources.test[0][1] == 1

    def test_without_a_test_split_that_for_validation_stands_in(
        self, tmp_path: Path
    ) -> None:
        for split, total in (("train", 10), ("val", 2)):
            for i in range(total):
                save(colour(i, 0, 0), tmp_path / split / "a" / f"{i}.png")
        sources = streams.open(f"folder:{tmp_path}", validation_fraction=0.3)
        assert [len(part) for part in sources[1:4]] == [7, 3, 2]
        assert sources.test.where(1) == str(tmp_path / "val" / "a" / "1.png")

    def test_what_is_no_image_is_ignored(self, photos: Path) -> None:
        (photos / "cat" / "notes.txt").write_text("taken in June")
        (photos / "cat" / ".hidden.png").write_bytes(b"")
        (photos / "cat" / "inner.png").mkdir()
        (photos / ".cache").mkdir()
        (photos / "README.md").write_text("photos")
        sources = streams.open(f"folder:{photos}")
        assert sources.num_classes == 2
        assert sum(map(len, sources[1:4])) == 20

    def test_images_may_lie_in_folders_of_their_class(self, tmp_path: Path) -> None:
        """As in Tiny ImageNet: ``train/<class>/images/``."""
        for name in ("a/images/1.png", "a/images/0.png", "a/2.png", "b/3.png"):
            save(colour(1, 2, 3), tmp_path / "train" / name)
        source = folders.splits(tmp_path).train
        assert [source.where(i) for i in range(4)] == [
            str(tmp_path / "train" / name)
            for name in ("a/2.png", "a/images/0.png", "a/images/1.png", "b/3.png")
        ]
        assert [source[i][1] for i in range(4)] == [0, 0, 0, 1]

    def test_a_folder_that_is_no_split_and_a_single_class_are_warned_of(
        self, tmp_path: Path
    ) -> None:
        for name in ("train/cat", "holdout/cat"):
            save(colour(1, 2, 3), tmp_path / name / "0.png")
        with pytest.warns(UserWarning) as said:
            folders.splits(tmp_path)
        assert [str(one.message).split(" in ")[0] for one in said][1] == "holdout"
        assert "has a single class, 'cat'" in str(said[0].message)

    def test_it_can_be_sent_to_another_process(self, photos: Path) -> None:
        source = streams.open(f"folder:{photos}").train
        copy = pickle.loads(pickle.dumps(source))
        assert [copy[i] for i in range(len(copy))] == [
            source[i] for i in range(len(source))
        ]

    def test_a_folder_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            DatasetError, match=f"no folder {tmp_path / 'x'}.*each class"
        ):
            streams.open(f"folder:{tmp_path / 'x'}")

    def test_a_folder_without_classes_is_named(self, tmp_path: Path) -> None:
        save(colour(0, 0, 0), tmp_path / "0.png")
        with pytest.raises(DatasetError, match=f"{tmp_path} has no folders in it"):
            streams.open(f"folder:{tmp_path}")

    def test_a_class_without_files_is_named(self, photos: Path) -> None:
        (photos / "emu").mkdir()
        message = rf"{photos / 'emu'} has no images: \.bmp, .*\.png"
        with pytest.raises(DatasetError, match=message):
            streams.open(f"folder:{photos}")

    def test_a_class_without_images_is_named(self, photos: Path) -> None:
        (photos / "emu").mkdir()
        (photos / "emu" / "emu.txt").write_text("an emu")
        with pytest.raises(DatasetError, match="emu has no images: none of its 1"):
            streams.open(f"folder:{photos}")

    def test_a_class_that_is_not_trained_on_is_named(self, tmp_path: Path) -> None:
        save(colour(0, 0, 0), tmp_path / "train" / "cat" / "0.png")
        save(colour(0, 0, 0), tmp_path / "val" / "dog" / "0.png")
        with pytest.raises(DatasetError, match=r"val/dog is a class that .*are cat\."):
            streams.open(f"folder:{tmp_path}")

    @pytest.mark.parametrize("content", [b"", b"not an image", "half"])
    def test_a_damaged_image_is_named(self, photos: Path, content: bytes | str) -> None:
        source = streams.open(f"folder:{photos}").test
        file = Path(source.where(1))
        if content == "half":
            content = file.read_bytes()[:-90]
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=f"{file} cannot be read: .*intact copy"):
            list(streams.evaluation_batches(source, **SIZES))

    def test_an_image_that_is_gone_is_named(self, photos: Path) -> None:
        source = streams.open(f"folder:{photos}").test
        Path(source.where(2)).unlink()
        with pytest.raises(DatasetError, match=f"{source.where(2)} cannot be read"):
            list(streams.evaluation_batches(source, **SIZES))


class TestRecords:
    """Datasets of TFDS in ArrayRecord files, of images of many sizes."""

    IMAGES = tuple(
        np.random.default_rng(i).integers(0, 256, (5 + i % 3, 4 + i % 5, 3), np.uint8)
        for i in range(30)
    )

    @pytest.fixture
    def data_dir(self, tmp_path: Path) -> Path:
        return self.prepare(
            tmp_path, {"train": self.records(), "test": self.records(7)}
        )

    def records(self, total: int = 30, label: int | None = None) -> list[dict]:
        return [
            {
                "image": builders.encoded(image),
                "label": i % 3 if label is None else label,
            }
            for i, image in enumerate(self.IMAGES[:total])
        ]

    def prepare(self, data_dir: Path, splits: dict[str, list[dict]]) -> Path:
        features = builders.image_and_label((None, None, 3))
        builders.prepare(data_dir, splits, features=features)
        return data_dir

    def pictures(self, source: streams.Source) -> list[tuple[bytes, int]]:
        return sorted(source[i] for i in range(len(source)))

    def test_are_those_that_were_written(self, data_dir: Path) -> None:
        sources = streams.open("tiny", data_dir)
        assert sources.num_classes == builders.NUM_CLASSES
        assert [len(part) for part in sources[1:4]] == [27, 3, 7]
        written = sorted((r["image"], r["label"]) for r in self.records())
        train, validation = map(self.pictures, (sources.train, sources.validation))
        assert sorted(train + validation) == written
        assert self.pictures(sources.test) == sorted(
            (r["image"], r["label"]) for r in self.records(7)
        )

    def test_come_in_batches_of_one_size(self, data_dir: Path) -> None:
        source = streams.open("tiny", data_dir).test
        batch, last = streams.evaluation_batches(source, **SIZES)
        assert batch.images.shape == last.images.shape == (4, 8, 8, 3)
        labels = np.concatenate([batch.labels, last.labels[:3]])
        np.testing.assert_array_equal(labels, [source[i][1] for i in range(7)])

    def test_are_split_as_in_memory(self, tmp_path: Path) -> None:
        splits = {"train": builders.records(builders.examples(50))}
        builders.prepare(tmp_path, splits)
        streamed = streams.open("tiny", tmp_path)
        loaded = streams.open("memory:tiny", tmp_path)
        for ours, theirs in zip(streamed[1:4], loaded[1:4]):
            assert len(ours) == len(theirs)
            for i in range(len(ours)):
                image, label = ours[i]
                assert image == builders.encoded(theirs[i][0])
                assert label == theirs[i][1]

    def test_without_labels_are_no_test_split(self, tmp_path: Path) -> None:
        splits = {
            "train": self.records(),
            "validation": self.records(7),
            "test": self.records(5, label=-1),
        }
        sources = streams.open("tiny", self.prepare(tmp_path, splits))
        assert [len(part) for part in sources[1:4]] == [27, 3, 7]

    def test_that_validate_are_not_held_out_a_second_time(self, tmp_path: Path) -> None:
        splits = {
            "train": self.records(),
            "validation": self.records(7),
            "test": self.records(5),
        }
        sources = streams.open("tiny", self.prepare(tmp_path, splits))
        assert [len(part) for part in sources[1:4]] == [30, 7, 5]

    def test_can_be_sent_to_another_process(self, data_dir: Path) -> None:
        source = streams.open("tiny", data_dir).train
        first = source[0]
        assert pickle.loads(pickle.dumps(source))[0] == first

    def test_a_missing_file_is_named_at_once(self, data_dir: Path) -> None:
        (file,) = (data_dir / "tiny" / "1.0.0").glob("tiny-train*")
        file.unlink()
        with pytest.raises(DatasetError, match=f"incomplete: {file} is missing"):
            streams.open("tiny", data_dir)

    @pytest.mark.parametrize("size", [0, 1000, 100_000])
    def test_a_file_cut_short_is_named(self, data_dir: Path, size: int) -> None:
        (file,) = (data_dir / "tiny" / "1.0.0").glob("tiny-train*")
        file.write_bytes(file.read_bytes()[:size])
        source = streams.open("tiny", data_dir).train
        stream = streams.batches(source, seed=0, **SIZES)
        with pytest.raises(DatasetError, match=rf"record \d+ of {file} cannot be read"):
            next(stream)
        stream.close()

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"image": b"no image", "label": 0}, "UnidentifiedImageError"),
            ({"image": builders.encoded(IMAGES[0]), "label": -1}, "its label is -1"),
        ],
    )
    def test_a_record_that_cannot_be_used_is_named(
        self, tmp_path: Path, record: dict, message: str
    ) -> None:
        splits = {"train": self.records(), "test": [record]}
        source = streams.open("tiny", self.prepare(tmp_path, splits)).test
        with pytest.raises(DatasetError, match=rf"record 0 of .*test.*{message}"):
            next(streams.evaluation_batches(source, **SIZES))

    def test_without_a_training_split_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no split named 'train'"):
            streams.open("tiny", self.prepare(tmp_path, {"test": self.records(5)}))

    def test_that_are_nowhere_are_told_how_to_get(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="is not prepared in") as missing:
            streams.open("imagenet2012", tmp_path)
        assert "streams.open(" in str(missing.value)
        with pytest.raises(DatasetError, match=r"Did you mean .*'imagenet2012'"):
            streams.open("imagnet2012", tmp_path)

    def test_need_no_tensorflow(self, data_dir: Path, tmp_path: Path) -> None:
        file = tmp_path / "program.py"
        file.write_text(
            "import sys\n"
            "from snipjax import streams\n"
            f"source = streams.open('tiny', {str(data_dir)!r}).test\n"
            "(batch,) = streams.evaluation_batches(\n"
            "    source, batch_size=7, image_size=8)\n"
            "print(batch.images.shape, 'tensorflow' in sys.modules)\n"
        )
        assert run_python(file).stdout == "(7, 8, 8, 3) False\n"


class TestSynthetic:
    def test_has_the_examples_that_its_name_says(self) -> None:
        sources = streams.open("synthetic:1281167x224x224x3/1000")
        assert sources.num_classes == 1000
        assert len(sources.train) == 1_281_167
        image, label = sources.train[1_281_166]
        assert (image.shape, image.dtype, label) == ((224, 224, 3), np.uint8, 166)

    def test_no_two_examples_are_the_same(self) -> None:
        sources = streams.open("synthetic:40x6x5x1/4")
        images = [part[i][0] for part in sources[1:4] for i in range(len(part))]
        assert len({image.tobytes() for image in images}) == 40 + 4 + 4

    def test_a_class_has_a_colour_that_tells_it_from_others(self) -> None:
        train, _, test = streams.open("synthetic:50x32x32x3/5")[1:4]
        means = {train[i][1]: train[i][0].mean((0, 1)) for i in range(5)}
        for i in range(len(test)):
            image, label = test[i]
            distances = {
                k: np.abs(image.mean((0, 1)) - mean).sum() for k, mean in means.items()
            }
            assert min(distances, key=distances.get) == label

    @pytest.mark.parametrize("spec", ["", "10", "10x8x8x3", "10x8x8x2/3", "0x8x8x3/3"])
    def test_what_is_no_name_is_refused(self, spec: str) -> None:
        with pytest.raises(
            DatasetError, match="for example synthetic:50000x32x32x3/10"
        ):
            streams.open(f"synthetic:{spec}")


class TestMemory:
    @pytest.mark.parametrize("name", ["digits", "memory:digits"])
    def test_has_what_is_loaded(self, name: str) -> None:
        digits = datasets.load("digits", validation_fraction=0.2)
        sources = streams.open(name, validation_fraction=0.2)
        assert sources.num_classes == 10
        for part, examples in zip(sources[1:4], digits[1:4]):
            batches = streams.evaluation_batches(
                part, batch_size=len(part), image_size=8, view=streams.whole
            )
            (batch,) = batches
            np.testing.assert_array_equal(batch.images, examples.images)
            np.testing.assert_array_equal(batch.labels, examples.labels)


class TestFacts:
    """They are others if the data are, and the same if nothing changed."""

    def test_of_a_folder(self, photos: Path) -> None:
        facts = streams.facts(streams.open(f"folder:{photos}"))
        # A fifth is held out to test, and of the other 16 a tenth to validate.
        assert facts["examples"] == {"train": 14, "validation": 2, "test": 4}
        assert (facts["num_classes"], facts["channels"]) == (2, 3)
        assert facts["class"] == {"0": "cat", "1": "dog"}
        assert streams.facts(streams.open(f"folder:{photos}")) == facts

    def test_of_files_of_other_names_are_others(self, photos: Path) -> None:
        before = streams.facts(streams.open(f"folder:{photos}"))
        for file in sorted((photos / "cat").iterdir()):
            file.rename(file.with_name(f"x{file.name}"))
        after = streams.facts(streams.open(f"folder:{photos}"))
        assert after.pop("digest") != before.pop("digest")
        assert after == before

    def test_of_classes_of_other_names_are_others(self, photos: Path) -> None:
        (photos / "dog").rename(photos / "wolf")
        facts = streams.facts(streams.open(f"folder:{photos}"))
        assert facts["class"] == {"0": "cat", "1": "wolf"}

    def test_of_a_folder_elsewhere_are_the_same(
        self, photos: Path, tmp_path: Path
    ) -> None:
        before = streams.facts(streams.open(f"folder:{photos}"))
        photos.rename(tmp_path / "elsewhere")
        assert streams.facts(streams.open(f"folder:{tmp_path}/elsewhere")) == before

    def test_of_records(self, tmp_path: Path) -> None:
        facts = []
        for i, total in enumerate((30, 30, 31)):
            records = builders.records(builders.examples(total))
            builders.prepare(tmp_path / str(i), {"train": records})
            facts.append(streams.facts(streams.open("tiny", tmp_path / str(i))))
        assert facts[0] == facts[1]
        assert facts[0]["digest"]["train"] != facts[2]["digest"]["train"]
        names = {str(i): str(i) for i in range(builders.NUM_CLASSES)}
        assert facts[0]["class"] == names

    def test_of_arrays_are_of_what_they_hold(self) -> None:
        digits = datasets.load("digits")
        facts = streams.facts(streams.in_memory(digits))
        assert streams.facts(streams.open("digits")) == facts
        images = digits.train.images.copy()
        images[0, 0, 0] ^= 1
        changed = digits._replace(train=digits.train._replace(images=images))
        digest = streams.facts(streams.in_memory(changed))["digest"]
        assert digest["train"] != facts["digest"]["train"]
        assert digest["test"] == facts["digest"]["test"]

    def test_of_what_is_computed(self) -> None:
        one, other = (
            streams.facts(streams.open(f"synthetic:{spec}"))
            for spec in ("10x8x8x3/5", "10x9x8x3/5")
        )
        assert one["digest"]["train"] != other["digest"]["train"]

    def test_of_sources_that_cannot_tell_are_their_numbers(self) -> None:
        sources = streams.Sources("numbers", *map(Numbers, (3, 2, 1)), num_classes=3)
        facts = streams.facts(sources)
        assert facts["examples"] == {"train": 3, "validation": 2, "test": 1}
        assert facts["digest"] == {"train": None, "validation": None, "test": None}


class TestEvaluation:
    @hypothesis.given(
        total=st.integers(1, 40),
        part=st.integers(1, 6),
        processes=st.sampled_from([1, 2, 3]),
    )
    def test_every_example_counts_exactly_once(
        self, total: int, part: int, processes: int
    ) -> None:
        size = part * processes
        parts = [
            list(
                streams.evaluation_batches(
                    Numbers(total),
                    batch_size=size,
                    image_size=1,
                    threads=0,
                    process_index=i,
                    process_count=processes,
                )
            )
            for i in range(processes)
        ]
        assert {len(batches) for batches in parts} == {-(-total // size)}
        assert streams.num_evaluation_batches(Numbers(total), size) == len(parts[0])
        labels, counted = (
            np.concatenate(
                [
                    getattr(batches[step], name)
                    for step in range(len(parts[0]))
                    for batches in parts
                ]
            )
            for name in ("labels", "counted")
        )
        assert {batch.images.shape for batches in parts for batch in batches} == {
            (part, 1, 1, 1)
        }
        assert set(np.unique(counted)) <= {0, 1}
        np.testing.assert_array_equal(labels[counted == 1], np.arange(total))
        np.testing.assert_array_equal(labels[counted == 0], 0)


class TestMeanAndStd:
    def test_are_those_of_all_pixels_where_the_sample_is_everything(self) -> None:
        digits = datasets.load("digits").validation
        source = streams.open("digits").validation
        mean, std = streams.mean_and_std(source, image_size=8, view=streams.whole)
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_allclose(mean, digits.images.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, digits.images.std((0, 1, 2)), rtol=1e-6)

    def test_are_those_of_the_documented_sample(self) -> None:
        digits = datasets.load("digits").train.images
        sample = digits[np.random.RandomState(0).permutation(len(digits))[:120]]
        mean, std = streams.mean_and_std(
            streams.open("digits").train,
            image_size=8,
            view=streams.whole,
            num_examples=120,
        )
        np.testing.assert_allclose(mean, sample.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, sample.std((0, 1, 2)), rtol=1e-6)


def counting(total: int, pulled: list[int]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(total):
        pulled.append(i)
        yield {"x": np.full((8, 2), i, np.float32), "y": np.arange(8)}


class TestOnDevice:
    def test_has_the_same_batches_in_order(self) -> None:
        with streams.to_device(counting(5, [])) as batches:
            seen = list(batches)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(seen))
        assert [int(batch["x"][0, 0]) for batch in seen] == list(range(5))
        np.testing.assert_array_equal(seen[4]["y"], np.arange(8))

    def test_a_sharding_is_that_of_every_leaf(self) -> None:
        mesh = jax.make_mesh((1,), ("data",))
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        with streams.to_device(counting(1, []), sharding) as batches:
            batch = next(batches)
        assert batch["x"].sharding == batch["y"].sharding == sharding
        np.testing.assert_array_equal(batch["y"], np.arange(8))

    @pytest.mark.slow
    def test_eight_devices_share_a_batch(self, tmp_path: Path) -> None:
        file = tmp_path / "program.py"
        file.write_text(
            "import os\n"
            "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'\n"
            "import jax, numpy as np\n"
            "from snipjax import streams\n"
            "mesh = jax.make_mesh((8,), ('data',))\n"
            "sharding = jax.NamedSharding(mesh, jax.P('data'))\n"
            "batch = next(streams.to_device(iter([np.arange(16)]), sharding))\n"
            "print([shard.data.tolist() for shard in batch.addressable_shards])\n"
        )
        expected = [[2 * i, 2 * i + 1] for i in range(8)]
        assert run_python(file).stdout == f"{expected}\n"

    def test_no_more_than_the_buffer_is_taken_ahead(self) -> None:
        pulled: list[int] = []
        with streams.to_device(counting(100, pulled), buffer=3) as batches:
            for used in range(1, 6):
                next(batches)
                deadline = time.monotonic() + 5
                while len(pulled) < used + 3 and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.05)
                assert len(pulled) == used + 3

    def test_an_error_comes_after_the_batches_before_it(self) -> None:
        def failing() -> Iterator[np.ndarray]:
            yield np.zeros(2)
            raise DatasetError("record 7 of shard 3 cannot be read")

        with streams.to_device(failing()) as batches:
            next(batches)
            with pytest.raises(DatasetError, match="record 7 of shard 3"):
                next(batches)
            assert list(batches) == []

    @pytest.mark.parametrize("how", ["close", "with", "drop"])
    def test_closing_it_ends_its_thread_and_the_batches(self, how: str) -> None:
        closed = threading.Event()

        def endless() -> Iterator[np.ndarray]:
            try:
                while True:
                    yield np.zeros(2)
            finally:
                closed.set()

        batches = streams.to_device(endless())
        next(batches)
        if how == "with":
            with batches:
                pass
        elif how == "close":
            batches.close()
        else:
            del batches
            gc.collect()
        assert closed.is_set()
        names = [thread.name for thread in threading.enumerate()]
        assert "snipjax-to-device" not in names
        if how != "drop":
            assert list(batches) == []
            batches.close()

    def test_an_empty_buffer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="buffer is 0"):
            streams.to_device(iter([]), buffer=0)
