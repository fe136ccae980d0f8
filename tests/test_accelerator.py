"""Rows of an accelerator: each is known or named as failed, whatever else happens."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, jobs, tables
from benchmarks import rows as measurements
from benchmarks.operations import operations


def read(out: Path) -> list[tuple[str, str]]:
    """Returns the kinds of rows in a file, and their jobs."""
    return [(row["what"], row.get("job", "")) for row in tables.read(out)]


class TestJobs:
    """Each a process, in the time there is."""

    def test_a_job_over_its_time_is_killed_with_its_workers(
        self, tmp_path: Path
    ) -> None:
        # A worker that holds the pipe open must not keep the benchmark waiting.
        code = "import os, time; print(1, flush=True); os.fork(); time.sleep(60)"
        start = time.monotonic()
        seen = []
        with (tmp_path / "log").open("w") as log, pytest.raises(TimeoutError):
            for line in accelerator.lines([sys.executable, "-c", code], log, 2.0):
                seen.append(line)
        assert seen == ["1\n"]
        assert time.monotonic() - start < 30

    def test_a_job_that_crashes_is_told_by_its_code(self, tmp_path: Path) -> None:
        code = "import os; print(1, flush=True); os.abort()"
        with (tmp_path / "log").open("w") as log:
            lines = accelerator.lines([sys.executable, "-c", code], log, 60.0)
            assert next(lines) == "1\n"
            with pytest.raises(ChildProcessError, match="-6"):
                next(lines)

    def test_failures_are_named_and_the_file_says_what_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rows(job: str, *_: Any) -> Iterator[measurements.Row]:
            kind = "failed" if job == "seeds" else "done"
            yield {"what": kind, "job": job}

        monkeypatch.setattr(accelerator, "rows", rows)
        out = tmp_path / "rows.jsonl"
        arguments = ["--out", str(out), "--parts", "seeds", "stream"]
        assert accelerator.main(arguments) == 1
        assert read(out) == [("failed", "seeds"), ("done", "stream")]
        # The same command goes on with what is not done.
        accelerator.main([*arguments, "--minutes", "0"])
        assert tables.read(out)[-1] == {"what": "out of time", "left": ["seeds"]}

    @pytest.mark.slow
    def test_every_job_has_rows_in_miniature(self, tmp_path: Path) -> None:
        out = tmp_path / "rows.jsonl"
        accelerator.main(["--small", "--minutes", "30", "--out", str(out)])
        done = {job for kind, job in read(out) if kind == "done"}
        assert {job for job in jobs.jobs(True) if "torch" not in job} <= done
        kinds = [kind for kind, job in read(out) if job == "lenet_300_100 bfloat16"]
        assert kinds == ["step", "gradient", "prune", "step", "done"]
        assert all(row.get("exact", True) for row in tables.read(out))


def test_a_row_that_fails_says_which_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def too_large() -> measurements.Row:
        raise MemoryError("out of\nmemory " + 1000 * "x")

    row = measurements.attempt({"what": "step", "network": "vgg_d"}, too_large)
    assert (row["what"], row["measured"]) == ("failed", "step")
    assert row["network"] == "vgg_d"
    assert row["error"].startswith("MemoryError: out of memory xxx")
    assert len(row["error"]) <= 300
    assert "in too_large" in capsys.readouterr().err


class TestOperations:
    """Counted by hand."""

    def test_strided_convolutions_and_their_gradients(self) -> None:
        layout = ("NHWC", "HWIO", "NHWC")

        def convolved(kernels: jax.Array, images: jax.Array) -> jax.Array:
            out = jax.lax.conv_general_dilated(
                images, kernels, (2, 2), "VALID", dimension_numbers=layout
            )
            return jnp.sum(out**2)

        kernels, images = jnp.ones((2, 2, 3, 5)), jnp.ones((4, 8, 8, 3))
        one = 2 * 4 * 4 * 4 * 5 * 2 * 2 * 3
        assert operations(convolved, kernels, images) == one
        # The gradient of the images has products with zeros, which do not count.
        both = jax.grad(convolved, (0, 1))
        assert operations(both, kernels, images) == pytest.approx(3 * one, rel=0.2)

    def test_loops_and_calls(self) -> None:
        def powers(x: jax.Array) -> jax.Array:
            step = jax.jit(lambda y, _: (y @ x, None))
            return jax.lax.scan(step, x, length=7)[0]

        assert operations(powers, jnp.ones((3, 3))) == 7 * 2 * 27


class TestTables:
    def test_seconds_become_shares_of_limits_and_of_rivals(
        self, tmp_path: Path
    ) -> None:
        about = {"precision": "tf32", "network": "n", "job": "n tf32"}
        step = {"what": "step", **about}
        rows = [
            {"what": "copy", "GB/s": 8.0, "job": "limits"},
            {"what": "product", "precision": "tf32", "TFLOP/s": 50.0},
            {**step, "case": "dense", "seconds": 0.2, "TFLOP/s": 20.0},
            {**step, "case": "masked", "seconds": 0.25},
            {**step, "case": "PyTorch, torch.compile, default", "seconds": 0.4},
            {"what": "gradient", **about, "seconds": 0.1},
            {"what": "prune", **about, "seconds": 0.15},
            {"what": "selection", "case": "c", "scores": 2 * 10**9, "seconds": 3.0},
            {"what": "failed", "error": "a|b\nc", "job": "seeds"},
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        found = {
            text.split()[1]: text.splitlines() for text in tables.accelerator(path)
        }
        head, _, dense, masked, theirs = found["step"][2:]
        assert head.endswith(
            "| seconds | TFLOP/s | to PyTorch | of products | to dense |"
        )
        assert dense.endswith("| 0.2 | 20 | 0.5 | 0.4 |  |")
        assert masked.endswith("| 0.25 |  | 0.625 |  | 1.25 |")
        assert theirs.endswith("| 0.4 |  |  |  |  |")
        assert found["prune"][-1].endswith("| 0.15 | 1.5 |")
        # Two billion scores of four bytes at 8 GB/s are a second.
        assert found["selection"][-1] == "| c | 2000000000 | 3 | 3 |"
        assert found["failed"][-1] == "| a/b c | seeds |"
