"""What the benchmarks' figures are: alternate timings, and ratios of medians."""

import functools
import importlib
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, paper, scale, tables, timing
from snipjax import arguments, cli, masks, models
from snipjax.results import reading
from tests.test_train import flags_of


def test_functions_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    series = timing.alternating(
        (lambda: calls.append("a"), lambda: calls.append("b")), repeats=3
    )
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in series] == [3, 3]


def test_a_row_is_the_ratio_of_medians_with_the_spread_of_neighbours() -> None:
    row = timing.row("ours", "theirs", [1.0, 2.0, 9.0], [4.0, 4.0, 6.0], target=0.6)
    assert (row.seconds, row.against_seconds, row.ratio) == (2.0, 4.0, 0.5)
    assert row.spread == (0.25, 1.5)


def test_a_report_is_a_file_from_which_a_table_of_markdown_is_made(
    tmp_path: Path,
) -> None:
    row = timing.row("ours", "theirs", [1.0], [2.0], target=1.0)
    timing.report("loop", [row], tmp_path / "new" / "loop.json")
    written = json.loads((tmp_path / "new" / "loop.json").read_text())
    assert written["rows"][0]["ratio"] == 0.5
    assert written["machine"]["versions"]["jax"]
    (text,) = tables.tables(tmp_path / "new")
    assert text.startswith("## loop\n")
    assert "| ours | theirs | 1 | 2 | 0.500 | 0.500-0.500 | 1 |\n" in text


@pytest.mark.parametrize(
    "name",
    [
        *(
            "criteria",
            "convolution",
            "loop",
            "pruning",
            "seeds",
            "selection",
            "startup",
        ),
        *("streaming", "training", "communication"),
    ],
)
def test_every_benchmark_can_be_started(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_densities_are_of_types_of_layers() -> None:
    rows = [
        masks.Row("block_0/query/kernel", (2, 2), 1, 4, 0.25),
        masks.Row("block_1/attention_out/kernel", (2, 2), 2, 4, 0.5),
        masks.Row("block_1/mlp_in/kernel", (2, 4), 2, 8, 0.25),
        masks.Row("tokens/embedding", (5, 2), 5, 10, 0.5),
        masks.Row("Conv_0/kernel", (3, 3, 1, 2), 9, 18, 0.5),
    ]
    assert scale.density_by_type(masks.Summary(rows)) == {
        "attention": 3 / 8,
        "convolution 3x3": 0.5,
        "embedding": 0.5,
        "mlp": 0.25,
    }


def test_a_case_that_fails_costs_the_others_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale.show([{"case": "transformer_1b", "tiny": True, "error": "-9: it was killed"}])
    assert "transformer_1b failed, -9: it was killed" in capsys.readouterr().out


class TestPaper:
    """Runs of the paper's whole protocol, in the time there is."""

    @pytest.mark.parametrize("row", paper.ROWS)
    def test_every_row_is_the_whole_protocol(self, row: str) -> None:
        command = paper.command(row, Path("runs"))
        with flags_of(tuple(command[3:])) as argv:
            config = cli.parse(arguments.with_config_path(argv))
        epoch = 540 if config.dataset.name == "mnist" else 351
        assert config.train.steps == 250 * epoch
        for every in (config.train.eval_every, config.train.checkpoint_every):
            assert every % config.train.steps_per_dispatch == 0

    def test_a_command_is_interrupted_when_the_time_is_over(self) -> None:
        waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass"
        start = time.monotonic()
        assert not paper.run([sys.executable, "-c", waits], 1.0)
        assert time.monotonic() - start < 50
        assert paper.run([sys.executable, "-c", "pass"], 60.0)

    @pytest.mark.slow
    def test_a_row_in_miniature_is_a_run_for_the_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fields = ("dataset.name=digits", "train.steps=20", "seeds=2")
        dispatch = ("train.steps_per_dispatch=10", "train.eval_every=10")
        more = [f"--config.{field}" for field in (*fields, *dispatch)]
        rows = ["--rows", "lenet_300_100", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["paper", *rows, *more])
        paper.main()
        found = reading.read(tmp_path).sparsity.round(2)
        assert sorted(found) == [0.9, 0.9, 0.95, 0.95, 0.98, 0.98]


class TestAccelerator:
    """Rows on a CPU in miniature."""

    @pytest.mark.slow
    def test_a_network_has_a_row_for_each_figure(self) -> None:
        (case,), precision = accelerator.SMALL, accelerator.PRECISIONS[1]
        rows = list(accelerator.network(case, precision))
        assert [row["what"] for row in rows][:3] == ["step", "prune", "step"]
        assert rows[0]["GB"] > 3 * 4e-9 * 266_610  # params, momentum and gradient
        flops = rows[0]["TFLOP/s"] * rows[0]["seconds"]
        # A product for the logits, two for gradients but for the inputs', and four
        # operations a parameter for momentum and step.
        products = 2 * 4 * (3 * 266_200 - 235_200)
        assert 1e12 * flops == pytest.approx(products + 4 * 266_610, rel=0.02)

    def test_a_part_that_fails_costs_the_others_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails() -> None:
            raise MemoryError("too large")

        row = {"what": "copy", "seconds": 0.123456}
        parts = {"limits": [fails, lambda: iter([row])]}
        monkeypatch.setattr(accelerator, "parts", lambda small: parts)
        out = tmp_path / "rows.jsonl"
        monkeypatch.setattr(sys, "argv", ["accelerator", "--small", "--out", str(out)])
        accelerator.main()
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["what"] for line in lines] == ["machine", "failed", "copy"]
        assert lines[-1]["seconds"] == 0.1235

    def test_rows_become_tables_with_shares_of_the_limit(self, tmp_path: Path) -> None:
        step = {"what": "step", "precision": "tf32", "TFLOP/s": 20.0, "network": "n"}
        rows = [
            {"what": "product", "precision": "tf32", "TFLOP/s": 50.0},
            step,
            {**step, "case": "masked", "seconds": 0.25},
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        limits, steps = tables.accelerator(path)
        assert limits.startswith("## product\n\n| precision | TFLOP/s |\n")
        assert steps.splitlines()[-1] == "| tf32 | 20 | n | 0.4 | masked | 0.25 |"

    @pytest.mark.slow
    def test_a_stream_feeds_a_step(self) -> None:
        (row,) = accelerator.stream(True)
        assert row["seconds"] > 0 < row["from memory"]

    @pytest.mark.slow
    def test_selections_are_exact(self) -> None:
        ours = [r for r in accelerator.selections(True) if "masks" in r["case"]]
        assert all(row["exact"] for row in ours)

    def test_networks_of_pytorch_have_as_many_parameters(self) -> None:
        torch_networks = pytest.importorskip("benchmarks.torch_networks")
        for name in ("vgg_d", "wrn_16_8"):
            model, images = models.create(name, 10), jnp.zeros((1, 32, 32, 3))
            init = functools.partial(model.init, train=False)
            params = jax.eval_shape(init, jax.random.key(0), images)["params"]
            ours = sum(leaf.size for leaf in jax.tree.leaves(params))
            theirs = sum(p.numel() for p in torch_networks.create(name).parameters())
            assert theirs == ours
