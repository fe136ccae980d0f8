"""Training steps and pruning of a network on an accelerator, in one precision."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import TRANSFORMERS, Case, Precision
from benchmarks.operations import operations
from benchmarks.rows import Row, attempt, seconds
from snipjax import models, optim, pruning, training
from snipjax.models import transformer, vit

SPARSITY = 0.95
_FUSED = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


class Problem(NamedTuple):
    """A model, a sample of its variables, and a mini-batch."""

    model: nn.Module
    variables: Any
    batch: training.Batch


class NextToken(nn.Module):
    """Gives a network of tokens the signature of a network of images."""

    network: nn.Module

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        del train
        return self.network(tokens)


def network(case: Case, dtype: str, **settings: Any) -> nn.Module:
    """Returns the model of a case; settings are fields of a transformer."""
    settings["dtype"] = jnp.dtype(dtype)
    if case.name == "gpt2_medium":
        config = transformer.GPT2_MEDIUM
        return NextToken(transformer.Transformer(config, **settings))
    if case.name == "vit_b_16":
        return vit.vit_b_16(case.num_classes, **settings)
    return models.create(case.name, case.num_classes, **settings)


def problem(case: Case, dtype: str) -> Problem:
    """Returns a network with a mini-batch of noise."""
    rng, model = np.random.default_rng(0), network(case, dtype)
    if case.name == "gpt2_medium":
        inputs = rng.integers(0, case.num_classes, (case.batch_size, *case.shape))
        targets = rng.integers(0, case.num_classes, inputs.shape)
        one = inputs[:1, :8]
    else:
        inputs = rng.standard_normal((case.batch_size, *case.shape), np.float32)
        targets = rng.integers(0, case.num_classes, case.batch_size)
        one = inputs[:1]
    init = jax.jit(functools.partial(model.init, train=False))
    batch = training.Batch(jnp.asarray(inputs), jnp.asarray(targets))
    return Problem(model, init(jax.random.key(0), one), batch)


def rows(case: Case, precision: Precision) -> Iterator[Row]:
    """Yields a network's steps, dense and masked, its gradient, and its pruning."""
    about = {
        "network": case.name,
        "precision": precision.name,
        "batch": case.batch_size,
    }
    step = {"what": "step", **about}
    with jax.default_matmul_precision(precision.products):
        given = problem(case, precision.dtype)
        yield attempt({**step, "case": "dense"}, lambda: step_row(given) | peak())
        if case.name in TRANSFORMERS and precision.dtype == "bfloat16":
            yield attempt(
                {**step, "case": "dense, cuDNN's attention"},
                lambda: step_row(
                    given._replace(
                        model=network(case, precision.dtype, attention=_FUSED)
                    )
                ),
            )
        params, batch = given.variables["params"], given.batch
        lowered = (
            lower_step(given, masked=True),
            jax.jit(jax.grad(loss_fn(given))).lower(params, batch),
            jax.jit(functools.partial(prune, given)).lower(params, batch),
        )
        with ThreadPoolExecutor() as pool:  # XLA compiles them at the same time
            masked, gradient, pruned = (pool.submit(x.compile) for x in lowered)
        for name, program in (("gradient", gradient), ("prune", pruned)):
            yield attempt(
                {"what": name, **about}, lambda p=program: call_row(p, params, batch)
            )
        yield attempt(
            {**step, "case": "masked"},
            lambda: measured_step(given, masked.result(), is_masked=True),
        )


def loss_fn(given: Problem) -> Callable[..., jax.Array]:
    """Returns the loss of training, which a gradient and a criterion take."""
    stats = given.variables.get("batch_stats", {})
    return training.batch_loss(given.model, stats)


def prune(given: Problem, params: Any, batch: Any) -> Any:
    """Returns the network pruned by SNIP, and its mask."""
    return pruning.prune(loss_fn(given), params, batch, SPARSITY)


def new_state(given: Problem, *, masked: bool) -> training.TrainState:
    """Returns the state before the first step; a mask keeps everything.

    The time of a step does not depend on what a mask keeps.
    """
    params = given.variables["params"]
    optimizer = training.sgd(0.01)
    if masked:
        shapes = jax.eval_shape(functools.partial(prune, given), params, given.batch)
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes[1])
        optimizer = optim.sparse(optimizer, mask)
    variables = jax.tree.map(jnp.copy, given.variables)  # a step is given its state
    return training.init_state(variables, optimizer, jax.random.key(1))


def take_step(model: nn.Module, masked: bool, state: Any, batch: Any) -> Any:
    """Returns the state after a step as a run takes it, and its metrics."""
    optimizer = training.sgd(0.01)
    if masked:
        optimizer = optim.sparse(optimizer, state.opt_state.mask)
    return training.train_step(state, batch, model=model, optimizer=optimizer)


def lower_step(given: Problem, *, masked: bool) -> Any:
    """Returns a training step, lowered."""
    function = functools.partial(take_step, given.model, masked)
    shapes = jax.eval_shape(functools.partial(new_state, given, masked=masked))
    return jax.jit(function, donate_argnums=0).lower(shapes, given.batch)


def step_row(given: Problem) -> Row:
    """Compiles and measures a dense step, with the rate of its products."""
    start = perf_counter()
    compiled = lower_step(given, masked=False).compile()
    taken = perf_counter() - start
    row = measured_step(given, compiled, is_masked=False)
    params = jax.eval_shape(lambda: given.variables["params"])
    count = operations(jax.grad(loss_fn(given)), params, given.batch)
    rate = 1e-12 * count / row["seconds"]
    return {**row, "TFLOP/s": rate, "compile seconds": taken}


def measured_step(given: Problem, compiled: Any, *, is_masked: bool) -> Row:
    """Returns the seconds of a compiled step that goes on from its own state."""
    state = new_state(given, masked=is_masked)

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, given.batch)
        return state, metrics

    return {"seconds": seconds(step, jax.block_until_ready), "GB": gigabytes(compiled)}


def call_row(program: Future[Any], params: Any, batch: Any) -> Row:
    """Returns the seconds of a function of params and batch."""
    compiled = program.result()
    taken = seconds(lambda: compiled(params, batch), jax.block_until_ready, repeats=3)
    return {"seconds": taken, "GB": gigabytes(compiled)}


def gigabytes(compiled: Any) -> float:
    """Returns the memory of arguments, results and temporaries by XLA's account."""
    memory = compiled.memory_analysis()
    if memory is None:
        return float("nan")
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return 1e-9 * (size + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def peak() -> Row:
    """Returns the most memory that this process has had, where a device tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    size = stats.get("peak_bytes_in_use")
    return {"peak GB": 1e-9 * size} if size else {}
