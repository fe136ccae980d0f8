"""A training step of our networks and of the same in PyTorch, on the same data."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks, models, optim, training

IMAGES = {
    "lenet_5_caffe": (100, 28, 28, 1),
    "lenet_300_100": (100, 28, 28, 1),
    "vgg_d": (128, 32, 32, 3),
    "vgg_like": (128, 32, 32, 3),
}


def batch(name: str) -> training.Batch:
    """Returns a mini-batch of noise of the network's usual shape."""
    rng = np.random.default_rng(0)
    shape = IMAGES[name]
    return training.Batch(
        jnp.asarray(rng.standard_normal(shape), jnp.float32),
        jnp.asarray(rng.integers(0, 10, shape[0]), jnp.int32),
    )


def variables(name: str) -> chex.ArrayTree:
    """Returns a sample of the network's variables."""
    model = models.create(name, 10)
    init = jax.jit(functools.partial(model.init, train=False))
    return init(jax.random.key(0), batch(name).images[:1])


def training_step(
    name: str, make_mask: Callable[[chex.ArrayTree], chex.ArrayTree] | None = None
) -> Callable[[], Any]:
    """Returns a function that takes one more step at each call.

    Args:
      name: name of the network.
      make_mask: function from params to a mask; by default the step is dense.
    """
    model, examples = models.create(name, 10), batch(name)
    sample = variables(name)
    optimizer = training.sgd(0.1)
    if make_mask is not None:
        optimizer = optim.sparse(optimizer, make_mask(sample["params"]))
    state = training.init_state(sample, optimizer, jax.random.key(1))
    compiled = jax.jit(
        functools.partial(training.train_step, model=model, optimizer=optimizer),
        donate_argnums=0,
    )

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, examples)
        return state.params, metrics

    return step


def training_steps(
    name: str,
    count: int,
    restricted: Callable[[Any, chex.ArrayTree], Any] = lambda optimizer, params: (
        optimizer
    ),
) -> Callable[[], Any]:
    """Returns a function that takes steps in one program, as train.py does.

    Args:
      name: name of the network.
      count: number of steps.
      restricted: ``(optimizer, params) -> optimizer``; by default the steps are dense.
    """
    model, examples = models.create(name, 10), batch(name)
    sample = variables(name)
    optimizer = restricted(training.sgd(0.1), sample["params"])
    state = training.init_state(sample, optimizer, jax.random.key(1))

    def body(state: training.TrainState, _: None) -> tuple[training.TrainState, Any]:
        return training.train_step(state, examples, model=model, optimizer=optimizer)

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state: training.TrainState) -> tuple[training.TrainState, Any]:
        return jax.lax.scan(body, state, length=count)

    def steps() -> Any:
        nonlocal state
        state, metrics = compiled(state)
        return state.params, metrics

    return steps


def static(inner: Any, params: chex.ArrayTree) -> Any:
    """Returns the optimizer of 5% of the connections."""
    return optim.sparse(inner, five_percent(params))


def moving(inner: Any, params: chex.ArrayTree, every: int = 100) -> Any:
    """Returns the optimizer of 5% of the connections that move by RigL."""
    return optim.rigl(inner, five_percent(params), every=every, stop=2**30)


def five_percent(params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns a mask that keeps the largest 5% of each layer."""
    magnitudes = jax.tree.map(jnp.abs, params)
    return masks.layerwise_topk(magnitudes, 0.95, masks.weights_and_biases)


def loss_fn(name: str) -> Callable[[chex.ArrayTree, training.Batch], chex.Array]:
    """Returns the loss of the saliency pass, of a sample's batch statistics."""
    stats = variables(name).get("batch_stats", {})
    return training.inference_loss(models.create(name, 10), stats)


def torch_batch(name: str) -> Any:
    """Returns the same mini-batch as PyTorch's tensors, channels first."""
    import torch

    images, labels = batch(name)
    images = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(np.asarray(labels), dtype=torch.long)


def torch_training_step(name: str) -> Callable[[], Any]:
    """Returns a function that takes one more step at each call, in PyTorch."""
    import torch

    from benchmarks import torch_networks

    network = torch_networks.create(name)
    images, labels = torch_batch(name)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
