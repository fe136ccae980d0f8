"""A round of pruning by each criterion, in gradients of the same network and batch.

Names of criteria after the module's choose some: `python -m benchmarks.criteria grasp`.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from benchmarks import networks, timing
from snipjax import masks, models, pruning, saliency, training
from snipjax.training import Batch

NAME, SPARSITY = "vgg_d", 0.95
# A round takes at most so many gradients; without a number it is for information.
TARGETS: Mapping[str, float | None] = {
    "snip": 1.3,
    "force": 1.3,
    "synflow": 1.3,
    "synflow_l2": 1.3,
    "grasp": 3.5,
    "prospr": 8.0,
    "prospr_first_order": None,
    "ntk_sap": None,
    "magnitude": None,
    "random": None,
    "grasp_magnitude": None,
    "fisher": None,
    "taylor_fisher": None,
    "obd": None,
    "taylor": None,
}


def network(params: chex.ArrayTree, inputs: chex.Array) -> chex.Array:
    """Returns the logits in evaluation mode, with the statistics of a new network."""
    return with_statistics(networks.variables(NAME).get("batch_stats", {}))(
        params, inputs
    )


def with_statistics(stats: chex.ArrayTree) -> Callable[..., chex.Array]:
    """Returns the network in evaluation mode, with these statistics of a batch."""
    return lambda params, inputs: models.create(NAME, 10).apply(
        {"params": params, "batch_stats": stats}, inputs, train=False
    )


def normalized_by(
    params: chex.ArrayTree, inputs: chex.Array
) -> Callable[..., chex.Array]:
    """Returns the network with the statistics of these params on these inputs."""
    stats = networks.variables(NAME).get("batch_stats", {})
    model = models.create(NAME, 10)
    return with_statistics(training.batch_statistics(model, params, stats, inputs))


def sample(key: chex.PRNGKey, shape: tuple[int, ...]) -> chex.ArrayTree:
    """Returns parameters at random."""
    model = models.create(NAME, 10)
    return model.init(key, jnp.zeros((1, *shape)), train=False)["params"]


def criterion(name: str, examples: Batch) -> saliency.Criterion:
    """Returns the criterion of that name, with all that it takes."""
    images = examples.images
    offers = {"apply_fn": network, "inputs": images}
    shape = images.shape[1:]
    keywords: dict[str, Any] = {
        "synflow": offers,
        "synflow_l2": offers,
        "ntk_sap": {
            **offers,
            "init_fn": functools.partial(sample, shape=shape),
            "normalized_by": normalized_by,
        },
    }
    function = getattr(saliency, "snip" if name == "force" else name)
    return functools.partial(function, **keywords.get(name, {}))


def prune(name: str) -> Callable[[], Any]:
    """Returns a function that scores once, selects and applies the mask."""
    params, examples = networks.variables(NAME)["params"], networks.batch(NAME)
    loss_fn = networks.loss_fn(NAME)

    @jax.jit
    def compiled(params: chex.ArrayTree, examples: Batch, key: chex.PRNGKey) -> Any:
        return pruning.prune(
            loss_fn,
            params,
            examples,
            SPARSITY,
            criterion=criterion(name, examples),
            prunable=masks.kernels,
            key=key,
            may_return=name == "force",
        )

    return lambda: compiled(params, examples, jax.random.key(0))


def gradient() -> Callable[[], Any]:
    """Returns a function that takes one gradient of the same loss and batch."""
    params, examples = networks.variables(NAME)["params"], networks.batch(NAME)
    compiled = jax.jit(jax.grad(networks.loss_fn(NAME)))
    return lambda: compiled(params, examples)


def main(*names: str) -> None:
    """Times the criteria of these names, or all."""
    one_gradient = gradient()
    rows = [
        timing.compare(
            (f"a round of {name}, {NAME}", prune(name)),
            ("one gradient", one_gradient),
            repeats=1 if TARGETS[name] is None else 3,
            target=TARGETS[name],
        )
        for name in names or TARGETS
    ]
    timing.report("criteria", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
