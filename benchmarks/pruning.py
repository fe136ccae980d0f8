"""Pruning in one call, against one gradient and against PyTorch."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks import networks, timing
from snipjax import masks, pruning

NAME, SPARSITY = "vgg_d", 0.95


def prune() -> Callable[[], Any]:
    """Returns a function that scores, selects and applies the mask, compiled once."""
    params, examples = networks.variables(NAME)["params"], networks.batch(NAME)
    loss_fn = networks.loss_fn(NAME)
    compiled = jax.jit(
        lambda params, examples: pruning.prune(
            loss_fn, params, examples, SPARSITY, prunable=masks.weights_and_biases
        )
    )
    return lambda: compiled(params, examples)


def gradient() -> Callable[[], Any]:
    """Returns a function that takes one gradient of the same loss and batch."""
    params, examples = networks.variables(NAME)["params"], networks.batch(NAME)
    compiled = jax.jit(jax.grad(networks.loss_fn(NAME)))
    return lambda: compiled(params, examples)


def torch_prune() -> Callable[[], Any]:
    """Returns single-shot pruning in PyTorch: topk on concatenated scores."""
    import torch

    from benchmarks import torch_networks

    network = torch_networks.create(NAME).eval()
    images, labels = networks.torch_batch(NAME)
    prunable = [
        parameter
        for module in network
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        for parameter in module.parameters()
    ]

    def prune() -> Any:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, prunable)
        with torch.no_grad():
            scores = [(g * w).abs() for g, w in zip(gradients, prunable)]
            flat = torch.cat([score.flatten() for score in scores])
            flat /= flat.sum()
            count = round(flat.numel() * (1 - SPARSITY))
            mask = torch.zeros_like(flat, dtype=torch.bool)
            mask[torch.topk(flat, count, sorted=False).indices] = True
            parts = mask.split([score.numel() for score in scores])
            return [w * part.view_as(w) for w, part in zip(prunable, parts)]

    return prune


def main() -> None:
    repeats = 7
    rows = [
        timing.compare(
            (f"pruning.prune, {NAME}", prune()),
            ("one gradient", gradient()),
            repeats=repeats,
            target=1.25,
        ),
        timing.compare(
            (f"pruning.prune, {NAME}", prune()),
            ("PyTorch, topk on concatenated scores", torch_prune()),
            repeats=repeats,
            target=0.8,
        ),
    ]
    timing.report("pruning", rows)


if __name__ == "__main__":
    main()
