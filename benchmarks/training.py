"""Training steps: against PyTorch, Flax's default convolution, and dense ones."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax

from benchmarks import networks, timing


def with_plain_convolution(name: str) -> Callable[[], Any]:
    """Returns the training step with Flax's own convolution and pooling."""
    import flax.linen as nn

    from snipjax.models import layers

    plain = {"conv_general_dilated": jax.lax.conv_general_dilated}
    keywords = {**layers.Conv.keywords, **plain}
    pooling = {"window_shape": (2, 2), "strides": (2, 2)}
    with (
        mock.patch("snipjax.models.vgg.Conv", functools.partial(nn.Conv, **keywords)),
        mock.patch(
            "snipjax.models.vgg.max_pool", functools.partial(nn.max_pool, **pooling)
        ),
    ):
        step = networks.training_step(name)
        jax.block_until_ready(step())  # traces while the patches hold
    return step


def main() -> None:
    rows = [
        timing.compare(
            (f"training step, {name}", networks.training_step(name)),
            ("PyTorch", networks.torch_training_step(name)),
            repeats=repeats,
            calls=calls,
            target=1.0,
        )
        for name, repeats, calls in (
            ("lenet_5_caffe", 15, 30),
            ("vgg_like", 7, 1),
            ("vgg_d", 7, 1),
        )
    ]
    steps, torch_step = 30, networks.torch_training_step("lenet_5_caffe")
    rows.append(
        timing.compare(
            (
                f"{steps} steps in one program, lenet_5_caffe",
                networks.training_steps("lenet_5_caffe", steps),
            ),
            ("PyTorch", timing.repeated(torch_step, steps)),
            repeats=15,
            target=1.0,
        )
    )
    rows += [
        timing.compare(
            (
                f"{steps} steps in one program, {name}",
                networks.training_steps(name, steps),
            ),
            (
                "as many calls of one step",
                timing.repeated(networks.training_step(name), steps),
            ),
            repeats=repeats,
        )
        for name, steps, repeats in (
            ("lenet_300_100", 540, 9),
            ("lenet_5_caffe", 30, 9),
            ("vgg_d", 3, 3),
        )
    ]
    rows += [
        timing.compare(
            (
                f"masked training step, {name}",
                networks.training_step(name, networks.five_percent),
            ),
            ("dense", networks.training_step(name)),
            repeats=repeats,
            calls=calls,
            target=1.05,
        )
        for name, repeats, calls in (
            ("lenet_300_100", 31, 200),
            ("lenet_5_caffe", 15, 30),
            ("vgg_d", 9, 1),
        )
    ]
    rows += [
        timing.compare(
            (
                f"{steps} steps, RigL every {every}, {name}",
                networks.training_steps(
                    name, steps, functools.partial(networks.moving, every=every)
                ),
            ),
            ("static mask", networks.training_steps(name, steps, networks.static)),
            repeats=repeats,
            target=1.1,
        )
        for name, steps, every, repeats in (
            ("lenet_300_100", 500, 100, 9),
            ("lenet_5_caffe", 100, 100, 5),
            ("vgg_like", 4, 2, 3),
        )
    ]
    rows.append(
        timing.compare(
            ("training step, vgg_d", networks.training_step("vgg_d")),
            ("Flax's default convolution", with_plain_convolution("vgg_d")),
            repeats=3,
            target=0.25,
        )
    )
    timing.report("training", rows)


if __name__ == "__main__":
    main()
