"""The paper's rows by its whole protocol, the cheapest first, in the time there is.

    python -m benchmarks.paper --minutes 9 --out runs/paper

Each row is a run of ``snipjax.train`` in a directory of its own. When the time is over,
the run that is under way writes a checkpoint, and the same command goes on later.
``python -m snipjax.results runs/paper`` makes the page of what is there.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_MNIST = (
    *("train.eval_every=5400", "train.steps_per_dispatch=5400"),
    "train.checkpoint_every=27000",
)
_CIFAR = (
    *("model.dtype=bfloat16", "train.steps_per_dispatch=351", "train.eval_every=3510"),
    "train.checkpoint_every=3510",
)


def lenet(config: str, sparsities: str) -> tuple[str, ...]:
    """Returns a run of twenty networks on MNIST at each of some sparsities."""
    return config, "seeds=20", f"prune.sparsity={sparsities}", *_MNIST


def recurrent(name: str) -> tuple[str, ...]:
    """Returns a recurrent network on MNIST, pruned and dense."""
    return "mnist_recurrent", f"model.name={name}", "prune.method=snip,none", *_MNIST


def cifar(config: str, name: str, sparsity: float) -> tuple[str, ...]:
    """Returns a network on CIFAR-10 in bfloat16, pruned and dense."""
    fields = (
        f"model.name={name}",
        f"prune.sparsity={sparsity}",
        "prune.method=snip,none",
    )
    return config, *fields, *_CIFAR


# A configuration and its fields; the cheapest first.
ROWS: Mapping[str, tuple[str, ...]] = {
    "lenet_300_100": lenet("mnist_lenet300", "0.9,0.95,0.98"),
    "lenet_5_caffe": lenet("mnist_lenet5", "0.98,0.99"),
    "lstm_s": recurrent("lstm_s"),
    "gru_s": recurrent("gru_s"),
    "alexnet_s": cifar("cifar_alexnet", "alexnet_s", 0.9),
    "vgg_like": cifar("cifar_vgg", "vgg_like", 0.97),
    "vgg_d": cifar("cifar_vgg", "vgg_d", 0.95),
    "wrn_16_8": cifar("cifar_wrn", "wrn_16_8", 0.95),
}


def command(row: str, out: Path, more: Sequence[str] = ()) -> list[str]:
    """Returns the command of a row; ``more`` has arguments of its program."""
    config, *fields = ROWS[row]
    return [
        *(sys.executable, "-m", "snipjax.train", f"--config={config}"),
        f"--workdir={out / row}",
        *(f"--config.{field}" for field in fields),
        *more,
    ]


def run(command: Sequence[str], seconds: float) -> bool:
    """Runs a command for some seconds; returns whether it has ended by itself.

    It is then interrupted, and waited for while it writes its checkpoint.
    """
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(max(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return False
    if code:
        raise SystemExit(code)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="stop after")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    arguments, more = parser.parse_known_args()
    end = time.monotonic() + 60 * arguments.minutes
    for row in arguments.rows:
        start = time.monotonic()
        if not run(command(row, arguments.out, more), end - start):
            print(f"{row}: not finished; the same command goes on", flush=True)
            return
        print(f"{row}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
