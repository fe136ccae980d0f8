"""Compares steps per second from a stream with the same step fed from memory.

The two take turns in one process. With ``--threads 0 --workers 0`` nothing is read
ahead but by the thread that puts batches on the device.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from snipjax import data, models, training
from snipjax.training import console

_VIEW = data.VIEWS["translate_flip"].train


def training_step(name: str, num_classes: int, batch: Any) -> Callable[[Any], Any]:
    """Returns a function that takes a step on a batch of images as they are stored."""
    model = models.create(name, num_classes)
    optimizer = training.sgd(0.01)
    mean, std = data.mean_and_std(
        data.Arrays(np.asarray(batch.images), np.asarray(batch.labels))
    )
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), batch.images[:1].astype(np.float32))
    state = training.init_state(variables, optimizer, jax.random.key(1))

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state: training.TrainState, batch: Any) -> Any:
        images = data.standardize(batch.images, mean, std)
        batch = training.Batch(images, batch.labels)
        return training.train_step(state, batch, model=model, optimizer=optimizer)

    def step(batch: Any) -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return step


def seconds_per_step(
    step: Callable[[Any], Any], batches: Iterator[Any], steps: int, ahead: int
) -> float:
    """Returns the mean over some steps, after those whose batches may be ready."""
    for _ in range(ahead):
        jax.block_until_ready(step(next(batches)))
    start = time.perf_counter()
    for _ in range(steps):
        # As a loop that looks at its loss: no step is begun before the last one ended.
        jax.block_until_ready(step(next(batches)))
    return (time.perf_counter() - start) / steps


def host_seconds_per_image(source: data.Source, image_size: int) -> float:
    """Returns the processor's time to read, decode and resize one, in one thread."""
    batches = data.batches(
        source, batch_size=100, seed=0, image_size=image_size, view=_VIEW, threads=0
    )
    next(batches)
    start = time.process_time()
    for _ in range(10):
        next(batches)
    return (time.process_time() - start) / 1000


def pairs(
    dataset: data.Dataset,
    model: str,
    *,
    image_size: int,
    batch_size: int = 128,
    workers: int = 0,
    threads: int = 1,
    buffer: int = 2,
    steps: int = 30,
    repeats: int = 5,
) -> list[tuple[float, float]]:
    """Returns seconds per step from a stream and from memory, taken in turns."""
    stream = data.batches(
        dataset.train,
        batch_size=batch_size,
        seed=0,
        image_size=image_size,
        view=_VIEW,
        workers=workers,
        threads=threads,
        buffer=buffer,
    )
    # Of each worker, in its process and in ours, and on the device.
    ahead = buffer * (2 * max(workers, 1) + 1)
    with data.to_device(stream, buffer=buffer) as streamed:
        kept = [next(streamed) for _ in range(4)]
        in_memory = itertools.cycle(kept)
        step = training_step(model, dataset.num_classes, kept[0])
        jax.block_until_ready(step(kept[0]))
        return [
            (
                seconds_per_step(step, streamed, steps, ahead),
                seconds_per_step(step, in_memory, steps, 1),
            )
            for _ in range(repeats)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10", help="as data.load takes it")
    parser.add_argument("--data_dir", help="as that of train.py")
    parser.add_argument("--model", default="alexnet_s", help="of snipjax.models")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--buffer", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="timed at a time")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    dataset = data.load(args.dataset, args.data_dir, stream=True)
    series = pairs(
        dataset,
        args.model,
        image_size=args.image_size,
        batch_size=args.batch_size,
        workers=args.workers,
        threads=args.threads,
        buffer=args.buffer,
        steps=args.steps,
        repeats=args.repeats,
    )
    row = timing.row(
        f"seconds per step from a stream, {args.model} at {args.image_size} pixels, "
        f"workers {args.workers}, threads {args.threads}",
        "the same step fed from memory on the device",
        *zip(*series),
        target=1 / 0.9,
    )
    timing.report("streaming", [row])
    console.say(
        f"{1 / row.seconds:.3g} steps/s from the stream, "
        f"{1 / row.against_seconds:.3g} from memory: ratio {1 / row.ratio:.3f} (target "
        "at least 0.9)"
    )
    host = host_seconds_per_image(dataset.train, args.image_size)
    console.say(f"{1e6 * host:.0f} microseconds of one core to make an image")


if __name__ == "__main__":
    main()
