"""Trains the paper's rows by its whole protocol, the cheapest first.

    python -m benchmarks.paper --minutes 9 --out runs/paper

Each row is a run of ``snipjax.train`` in a directory of its own. When the time is over,
the run that is under way writes a checkpoint, and the same command goes on later. A row
that fails is named, and the others go on. After each row, `benchmarks.paper_results`
writes what is known. ``python -m snipjax.report runs/paper`` makes the page of it.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import paper_results
from benchmarks.rows import last_line

LEAST_SECONDS = 60  # in which a row comes as far as a checkpoint
# XLA does not hear an interrupt while it compiles, and an epoch may be under way.
MOST_SECONDS_TO_END = 45
# By default, a GPU rounds the factors of float32 products to TF32.
_FULL_PRECISION = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


class Row(NamedTuple):
    """A configuration, the fields that differ from it, and the environment."""

    config: str
    fields: tuple[str, ...]
    environment: Mapping[str, str] = {}


def mnist(config: str, *fields: str) -> Row:
    """Returns a row on MNIST in float32, with an epoch in each dispatch."""
    every = "train.steps_per_dispatch=540", "train.checkpoint_every=27000"
    return Row(config, (*fields, *every), _FULL_PRECISION)


def lenet(config: str, sparsity: float) -> Row:
    """Returns a row of twenty networks on MNIST."""
    return mnist(config, "seeds=20", f"prune.sparsity={sparsity}")


def recurrent(name: str, method: str = "snip") -> Row:
    """Returns a row of a recurrent network on MNIST."""
    fields = f"model.name={name}", f"prune.method={method}"
    return mnist("mnist_recurrent", *fields)


def cifar(config: str, name: str, sparsity: float, method: str = "snip") -> Row:
    """Returns a row of a network on CIFAR-10 in bfloat16."""
    fields = f"model.name={name}", f"prune.sparsity={sparsity}"
    every = "train.steps_per_dispatch=351", "train.checkpoint_every=3510"
    return Row(
        config, (*fields, f"prune.method={method}", "model.dtype=bfloat16", *every)
    )


_CIFAR = {
    "alexnet_s": ("cifar_alexnet", 0.9),
    "vgg_like": ("cifar_vgg", 0.97),
    "vgg_d": ("cifar_vgg", 0.95),
    "wrn_16_8": ("cifar_wrn", 0.95),
}
# By network and sparsity in percent; the cheapest first, dense networks last.
ROWS: Mapping[str, Row] = {
    "lenet_300_100.95": lenet("mnist_lenet300", 0.95),
    "lenet_300_100.98": lenet("mnist_lenet300", 0.98),
    "lenet_300_100.90": lenet("mnist_lenet300", 0.9),
    "lenet_5_caffe.98": lenet("mnist_lenet5", 0.98),
    "lenet_5_caffe.99": lenet("mnist_lenet5", 0.99),
    "lstm_s.95": recurrent("lstm_s"),
    "gru_s.95": recurrent("gru_s"),
    **{
        f"{name}.{100 * sparsity:.0f}": cifar(config, name, sparsity)
        for name, (config, sparsity) in _CIFAR.items()
    },
    **{f"{name}.dense": recurrent(name, "none") for name in ("lstm_s", "gru_s")},
    **{
        f"{name}.dense": cifar(config, name, sparsity, "none")
        for name, (config, sparsity) in _CIFAR.items()
    },
}


def command(row: str, out: Path, more: Sequence[str] = ()) -> list[str]:
    """Returns the command of a row; ``more`` has arguments of its program."""
    return [
        *(sys.executable, "-m", "snipjax.train", f"--config={ROWS[row].config}"),
        f"--workdir={out / row}",
        *(f"--config.{field}" for field in ROWS[row].fields),
        *more,
    ]


def run(
    command: Sequence[str],
    seconds: float,
    log: Path,
    environment: Mapping[str, str] = {},
) -> str:
    """Runs a command for some seconds and returns how it ended.

    It is then interrupted, and killed if it does not end: a checkpoint is whole or not
    there. The state is "finished", "unfinished", or "failed" with its last line.
    """
    with log.open("a+", errors="replace") as errors:
        begin = errors.tell()
        with subprocess.Popen(
            command, stderr=errors, env={**environment, **os.environ}
        ) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(MOST_SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()
                return "unfinished"
        return f"failed, {code}: {last_line(errors, begin)}" if code else "finished"


def chosen(names: Sequence[str]) -> list[str]:
    """Returns the rows that begin with one of some names, in the order of names.

    >>> chosen(["lstm_s", "lenet_5_caffe.98"])
    ['lstm_s.95', 'lstm_s.dense', 'lenet_5_caffe.98']
    """
    rows = [row for name in names for row in ROWS if row.startswith(name)]
    unknown = [n for n in names if not any(row.startswith(n) for row in ROWS)]
    if unknown:
        raise ValueError(f"no row begins with {unknown}; there are {', '.join(ROWS)}")
    return list(dict.fromkeys(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Trains the rows of the command line; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other arguments are of snipjax.train, for all rows.",
    )
    parser.add_argument("--minutes", type=float, default=9, help="stop after")
    parser.add_argument(
        "--row_minutes", type=float, default=float("inf"), help="stop each row after"
    )
    parser.add_argument(
        "--rows", nargs="+", default=[""], help="beginnings of names; all by default"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument(
        "--results", type=Path, help="a directory for what is known; --out by default"
    )
    asked, more = parser.parse_known_args(argv)
    out, results = asked.out, asked.results or asked.out
    for directory in (out, results):
        directory.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * asked.minutes
    states: dict[str, str] = {}
    for row in chosen(asked.rows):
        start = time.monotonic()
        if paper_results.is_finished(out / row):
            state = "finished before"
        elif end - start < LEAST_SECONDS:
            state = "no time"
        else:
            seconds = min(end - start, 60 * asked.row_minutes)
            log, environment = results / "paper.log", ROWS[row].environment
            state = run(command(row, out, more), seconds, log, environment)
        states[row] = state
        print(f"{row}: {state} ({time.monotonic() - start:.0f} s)", flush=True)
        paper_results.write(out, results, list(ROWS), states)
    print(paper_results.table(results / paper_results.ROWS))
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
