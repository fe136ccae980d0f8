"""PyTorch's training steps and selections on an accelerator, beside ours."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import torch_networks
from benchmarks.cases import Case, Precision
from benchmarks.rows import Row, attempt, seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With CUDA graphs too, where the time of launches counts.
_MODES = {("vgg_d", "bfloat16"): ("default", "reduce-overhead")}


def rows(case: Case, precision: Precision) -> Iterator[Row]:
    """Yields the compiled steps of a network."""
    for mode in _MODES.get((case.name, precision.name), ("default",)):
        about = {
            "what": "step",
            "case": f"PyTorch, torch.compile, {mode}",
            "network": case.name,
            "precision": precision.name,
            "batch": case.batch_size,
        }
        yield attempt(about, lambda mode=mode: step_row(case, precision, mode))


def step_row(case: Case, precision: Precision, mode: str) -> Row:
    """Compiles and measures a step, with the most memory that it took."""
    torch.compiler.reset()
    step = training_step(case, precision, mode=mode)
    start = time.perf_counter()
    wait(step())
    row = {"compile seconds": time.perf_counter() - start}
    row["seconds"] = seconds(step, wait)
    if DEVICE == "cuda":
        row["peak GB"] = 1e-9 * torch.cuda.max_memory_allocated()
    return row


def training_step(
    case: Case, precision: Precision, **settings: Any
) -> Callable[[], Any]:
    """Returns a function that takes one more step; settings are of `torch.compile`."""
    torch.set_float32_matmul_precision(precision.torch_products)
    torch.backends.cudnn.allow_tf32 = precision.torch_products == "high"
    torch.backends.cudnn.benchmark = True
    model = torch_networks.create(case.name).to(DEVICE)
    if case.name == "gpt2_medium":
        shape = case.batch_size, case.shape[0]
        inputs, targets = torch.randint(case.num_classes, (2, *shape), device=DEVICE)
    else:
        model = model.to(memory_format=torch.channels_last)
        *size, channels = case.shape
        inputs = torch.randn(case.batch_size, channels, *size, device=DEVICE)
        inputs = inputs.to(memory_format=torch.channels_last)
        targets = torch.randint(case.num_classes, (case.batch_size,), device=DEVICE)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )
    is_half = precision.dtype == "bfloat16"

    # Whole graphs of static shapes, or an error: never parts that run eagerly.
    @torch.compile(fullgraph=True, dynamic=False, **settings)
    def loss_fn(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=is_half):
            logits = model(inputs)
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), targets.flatten()
        )

    def step() -> Any:
        loss = loss_fn(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def selections(millions: tuple[int, ...], sparsity: float) -> Iterator[Row]:
    """Yields the time of PyTorch's selections of the largest scores."""
    for count in (10**6 * number for number in millions):
        about = {"what": "selection", "scores": count}
        kept = round(count * (1 - sparsity))
        functions = {
            "torch.topk": lambda scores, kept=kept: torch.topk(scores, kept)[0][-1],
            "torch.kthvalue": lambda scores, kept=kept: torch.kthvalue(
                scores, len(scores) - kept + 1
            )[0],
        }
        for name, function in functions.items():
            yield attempt(
                {**about, "case": name}, lambda f=function, n=count: select_row(f, n)
            )


def select_row(function: Callable[[torch.Tensor], Any], count: int) -> Row:
    """Measures a selection of products of normals, as saliencies are."""
    scores = torch.randn(count, device=DEVICE).mul_(torch.randn(count, device=DEVICE))
    scores.abs_()
    return {"seconds": seconds(lambda: function(scores), wait, repeats=3)}


def wait(result: Any) -> None:
    """Waits until PyTorch has computed everything."""
    del result
    if DEVICE == "cuda":
        torch.cuda.synchronize()
