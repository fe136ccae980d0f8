"""Twenty networks side by side, against one and against twenty runs of one."""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import networks, timing
from snipjax import masks, models, optim, training
from snipjax.shrink.cost import times_in_turns
from snipjax.training import side_by_side

NAME, SEEDS, STEPS, EPOCHS = "lenet_300_100", 20, 270, 20
COMMAND = (
    *(sys.executable, "train.py", "--config", "configs/mnist_lenet300.py"),
    *(f"--config.train.steps={540 * EPOCHS}", "--config.optimizer.decay_every=5400"),
    "--config.train.steps_per_dispatch=540",
)


def member(name: str, key: jax.Array) -> training.TrainState:
    """Returns the training state of one network, masked."""
    image = networks.batch(name).images[:1]
    sample = models.create(name, 10).init(key, image, train=False)
    mask = networks.five_percent(sample["params"])
    pruned = {**sample, "params": masks.apply(mask, sample["params"])}
    return training.init_state(pruned, _optimizer(mask), key)


def _optimizer(mask: Any) -> Any:
    return optim.sparse(training.sgd(0.1), mask)


def steps(
    name: str, num_steps: int, state: training.TrainState, examples: training.Batch
) -> Any:
    """Returns the state after the steps of one dispatch, as a run takes them."""
    model = models.create(name, 10)
    optimizer = _optimizer(state.opt_state.mask)
    return training.over_batches(
        lambda state, batch, key: training.train_step(
            state, batch, model=model, optimizer=optimizer
        ),
        state,
        examples,
        start=state.step,
        key=state.key,
        num_steps=num_steps,
        batch_size=100,
    )[0]


def repeated(
    name: str, function: Callable[..., training.TrainState], state: Any
) -> Callable[[], training.TrainState]:
    """Returns a function that goes on from the state at each call."""
    batch = networks.batch(name)
    examples = training.Batch(
        *(jnp.tile(x, (27,) + (1,) * (x.ndim - 1)) for x in batch)
    )
    compiled = jax.jit(function, donate_argnums=0)

    def go_on() -> training.TrainState:
        nonlocal state
        state = compiled(state, examples)
        return state

    return go_on


def dispatches(
    name: str = NAME, *, seeds: int = SEEDS, num_steps: int = STEPS
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Returns what makes a dispatch of one network, and of many in each form.

    The forms are as a run has them, under ``jax.vmap``, and one after the other.
    """
    one = functools.partial(steps, name, num_steps)
    axes = side_by_side.AXES

    def as_run(state: training.TrainState, examples: training.Batch) -> Any:
        networks = side_by_side.over_networks(one, state, examples)
        return networks._replace(step=state.step + num_steps)

    def in_turn(state: training.TrainState, examples: training.Batch) -> Any:
        after = jax.lax.map(
            lambda rest: one(training.TrainState(state.step, *rest), examples),
            state[1:],
        )
        return after._replace(step=state.step + num_steps)

    vmapped = jax.vmap(one, in_axes=(axes, None), out_axes=axes)
    member_by_key = functools.partial(member, name)

    def stacked() -> training.TrainState:  # new for each, because states are donated
        keys = jax.random.split(jax.random.key(0), seeds)
        return jax.jit(jax.vmap(member_by_key, out_axes=axes))(keys)

    return {
        "one alone": lambda: repeated(name, one, member_by_key(jax.random.key(0))),
        "as a run": lambda: repeated(name, as_run, stacked()),
        "jax.vmap": lambda: repeated(name, vmapped, stacked()),
        "jax.lax.map": lambda: repeated(name, in_turn, stacked()),
    }


def seconds_of_run(data_dir: str | None, *arguments: str) -> float:
    """Returns seconds of a whole command, started with everything compiled."""
    with tempfile.TemporaryDirectory() as directory:
        command = [*COMMAND, *arguments, f"--workdir={Path(directory) / 'run'}"]
        if data_dir:
            command.append(f"--data_dir={data_dir}")
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="as that of train.py")
    run = functools.partial(seconds_of_run, parser.parse_args().data_dir)
    forms = dispatches()
    functions = [forms[name]() for name in ("one alone", "as a run", "jax.vmap")]
    one, as_run, vmapped = times_in_turns(functions, repeats=7)
    twenty = [SEEDS * seconds for seconds in one]
    name = f"{STEPS} steps of {SEEDS} {NAME}"
    rows = [
        timing.row(f"{name}, side by side", "one after the other", as_run, twenty),
        timing.row(f"{name}, jax.vmap", "one after the other", vmapped, twenty),
    ]
    run("--config.train.steps=540", f"--config.seeds={SEEDS}")  # compiles
    together = [run(f"--config.seeds={SEEDS}")]
    single = [SEEDS * run(f"--config.seed={seed}") for seed in (1, 2, 3)][1:]
    rows.append(
        timing.row(
            f"train.py, {SEEDS} seeds of {EPOCHS} epochs",
            f"{SEEDS} runs (two, times {SEEDS // 2})",
            together * len(single),
            single,
            target=0.6,
        )
    )
    timing.report("seeds", rows)


if __name__ == "__main__":
    main()
