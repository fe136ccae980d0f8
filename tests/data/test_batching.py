"""Batches: their order, their parts on several processes, and their workers."""

import multiprocessing
import os
import signal
from pathlib import Path

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from snipjax import data
from snipjax.data import views
from tests.data.builders import Numbers, refused, run_python

SIZES = {"batch_size": 4, "image_size": 8}


def numbers(
    total: int, num_steps: int | None, **settings: int
) -> grain.DatasetIterator:
    settings = {"seed": 0, "threads": 0, "image_size": 1} | settings
    source = Numbers(total)
    return data.batches(source, num_steps=num_steps, view=views.whole, **settings)


def order(total: int, num_steps: int, **settings: int) -> np.ndarray:
    """Indices of the examples of a stream's steps, ``[steps, local batch]``."""
    return np.array([batch.labels for batch in numbers(total, num_steps, **settings)])


class TestOrder:
    @hypothesis.settings(max_examples=10)
    @hypothesis.given(
        total=st.integers(1, 30), part=st.integers(1, 30), seed=st.integers(0, 2**40)
    )
    def test_every_example_comes_once_in_every_epoch(
        self, total: int, part: int, seed: int
    ) -> None:
        size = min(part, total)
        steps = -(-3 * total // size)
        labels = order(total, steps, batch_size=size, seed=seed).ravel()
        for epoch in range(3):
            indices = labels[epoch * total : (epoch + 1) * total]
            np.testing.assert_array_equal(np.sort(indices), np.arange(total))

    @hypothesis.settings(max_examples=10)
    @hypothesis.given(
        total=st.integers(25, 60),
        processes=st.sampled_from([2, 3, 4]),
        part=st.integers(1, 6),
        start=st.integers(0, 20),
    )
    def test_from_any_step_the_parts_of_all_processes_are_the_batch_of_one(
        self, total: int, processes: int, part: int, start: int
    ) -> None:
        settings = {"batch_size": processes * part, "num_steps": start + 3}
        whole = order(total, **settings)
        settings |= {"process_count": processes, "start_step": start}
        parts = [order(total, process_index=i, **settings) for i in range(processes)]
        assert all(labels.shape == (3, part) for labels in parts)
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[start:])

    def test_epochs_and_seeds_have_orders_of_their_own(self) -> None:
        orders = [*order(200, 3, batch_size=200)]
        orders += [*order(200, 3, batch_size=200, seed=1)]
        assert len({tuple(one) for one in orders}) == 6

    def test_does_not_change_between_versions(self) -> None:
        """Runs that go on need the order they began with."""
        expected = [[4, 6, 9, 7], [5, 3, 1, 8]]
        assert order(10, 2, batch_size=4, seed=3).tolist() == expected

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
        if "21" not in str(settings):
            with pytest.raises(ValueError, match=message):
                data.evaluation_batches(Numbers(20), image_size=1, **settings)


class TestRandomness:
    def images(self, **settings: int) -> np.ndarray:
        source = data.load("synthetic:12x20x16x3/4", stream=True).train
        stream = data.batches(source, seed=3, image_size=8, threads=0, **settings)
        return np.stack([batch.images for batch in stream])

    def test_views_do_not_depend_on_the_number_of_processes(self) -> None:
        settings = {"batch_size": 6, "num_steps": 4}
        whole = self.images(**settings)
        settings |= {"start_step": 2, "process_count": 3}
        parts = [self.images(process_index=i, **settings) for i in range(3)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[2:])

    def test_an_example_is_seen_differently_in_every_epoch(self) -> None:
        first, second = self.images(batch_size=12, num_steps=2)
        assert not any((image == first).all((1, 2, 3)).any() for image in second)


class TestEvaluation:
    @hypothesis.settings(max_examples=10)
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
            data.evaluation_batches(
                Numbers(total),
                batch_size=size,
                image_size=1,
                threads=0,
                process_index=i,
                process_count=processes,
            )
            for i in range(processes)
        ]
        steps = list(zip(*parts, strict=True))
        assert len(steps) == -(-total // size)
        batches = [batch for step in steps for batch in step]
        assert {batch.images.shape for batch in batches} == {(part, 1, 1, 1)}
        labels = np.concatenate([batch.labels for batch in batches])
        weights = np.concatenate([batch.weights for batch in batches])
        assert set(np.unique(weights)) <= {0, 1}
        np.testing.assert_array_equal(labels[weights == 1], np.arange(total))
        np.testing.assert_array_equal(labels[weights == 0], 0)


class TestWorkers:
    """Two processes started once, for what can only be seen with them."""

    def test_workers_give_the_same_and_pass_on_what_goes_wrong(
        self, photos: Path
    ) -> None:
        source = data.load(f"folder:{photos}", stream=True).train
        settings = SIZES | {"seed": 1, "num_steps": 3}
        alone = data.batches(source, **settings)
        expected = [next(alone) for _ in range(2)]
        last = order(len(source), 3, batch_size=4, seed=1)[2, 0]
        broken = Path(source.where(last))
        broken.write_bytes(b"this is not an image")
        stream = data.batches(source, workers=2, **settings)
        for batch in expected:
            actual = next(stream)
            np.testing.assert_array_equal(actual.images, batch.images)
            np.testing.assert_array_equal(actual.labels, batch.labels)
        with refused(f"{broken} cannot be read"):
            next(stream)
        stream.close()
        assert multiprocessing.active_children() == []

    @pytest.mark.slow
    def test_a_worker_outlasts_the_end_of_a_job_and_a_killed_one_is_an_error(
        self,
    ) -> None:
        """Launchers tell every process of a job to end; the first saves, and ends."""
        source = data.load("synthetic:1000x8x8x3/4", stream=True).train
        batches = data.batches(source, seed=0, workers=1, **SIZES)
        with data.to_device(batches) as batches:
            next(batches)
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGTERM)
            for _ in range(20):
                next(batches)
            assert worker.is_alive()
            os.kill(worker.pid, signal.SIGKILL)
            said = r"reads images was killed.*fewer config\.dataset\.workers"
            with pytest.raises(OSError, match=said):
                for _ in range(1000):
                    next(batches)
        assert multiprocessing.active_children() == []

    @pytest.mark.slow
    @pytest.mark.parametrize("end", ["return", "raise", "interrupt", "kill"])
    def test_no_worker_outlives_a_program_and_none_holds_it_up(
        self, tmp_path: Path, end: str
    ) -> None:
        """A worker that went on would hold the pipe of the output open."""
        (tmp_path / "program.py").write_text(
            "import multiprocessing, os, signal, sys\n"
            "from snipjax import data\n"
            "def main():\n"
            "    source = data.load('synthetic:1000x8x8x3/4', stream=True).train\n"
            "    batches = data.to_device(data.batches(\n"
            "        source, seed=0, workers=2, batch_size=4, image_size=8))\n"
            "    next(batches)\n"
            "    print(len(multiprocessing.active_children()), flush=True)\n"
            "    if sys.argv[1] == 'raise': raise SystemExit('raised')\n"
            "    if sys.argv[1] == 'interrupt': os.kill(os.getpid(), signal.SIGINT)\n"
            "    if sys.argv[1] == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
            "if __name__ == '__main__': main()\n"
        )
        program = run_python(tmp_path / "program.py", end)
        expected = {"return": 0, "raise": 1, "interrupt": 130, "kill": -9}
        assert program.returncode in (expected[end], -signal.SIGINT)
        assert program.stdout == "2\n"
        if end != "kill":
            assert "leaked" not in program.stderr
