"""Bytes that devices exchange for saliency, selection and a training step.

    python -m benchmarks.communication resnet_50 --image_size=64 --classes=1000

Programs are compiled for meshes of 8 to 64 simulated devices, never run, and their
collectives counted by the algorithms on a ring (`bytes_per_device`). For up to
4,096 devices the collectives of the smallest mesh are taken, in groups of the size that
they have there; rows of both kinds show how far the two agree. Each device has the same
number of examples on every mesh.

Two things are as on the CPU that compiles: gradients are reduced whole and cut, where
accelerators scatter them for half of that; and a loop is counted once. Selection has
loops, of at most 8 + 4 * 32 rounds each; what it exchanges is given for all of them.
"""

import argparse
import functools
import os
from collections.abc import Sequence
from typing import Any

from benchmarks import collectives

_COMPILED, _LARGEST = 64, 4096
# Every fourth guess is by bisection, from the eighth on: snipjax/masks/selection.py.
_ROUNDS = 8 + 4 * 32


def programs(setup: Any) -> dict[str, list[Any]]:
    """Returns the collectives of each program of an experiment.

    Args:
      setup: the parts of an experiment on a mesh, of `snipjax.assembly.assemble`.
    """
    import jax

    from snipjax import assembly, build, saliency
    from snipjax.training import on_mesh, sharding

    task, mesh, config = setup.task, setup.mesh, setup.config
    state = assembly.abstract_state(setup)
    batch = on_mesh.abstract_batch(mesh, setup.stream, config.prune.batch_size)

    def scores(params: Any, batch_stats: Any, batch: Any) -> Any:
        loss_fn = assembly.scored_loss(setup, {"batch_stats": batch_stats})
        return sharding.constrained(mesh, saliency.snip(loss_fn, params, batch))

    def select(scores: Any) -> Any:
        sparsity, prunable = config.prune.sparsity, build.prunable(config)
        return build.select(config)(scores, sparsity, prunable)

    placed = sharding.tree_shardings(mesh, state.params)
    with jax.set_mesh(mesh):
        compiled = {
            "saliency": jax.jit(scores, out_shardings=placed)
            .lower(state.params, state.batch_stats, batch)
            .compile(),
            "selection": jax.jit(select).lower(state.params).compile(),
            "training step": on_mesh.compiled_train_step(
                task, mesh, state, setup.stream
            ),
        }
    return {name: collectives.collectives(it) for name, it in compiled.items()}


def on_more(exchanged: Sequence[Any], data: int, model: int, more: int) -> list[Any]:
    """Returns the same collectives where the data axis is longer.

    Args:
      exchanged: of a mesh whose ``data``, ``model`` and product all differ.
      data: the axis's length there.
      model: length of the other axis, which stays.
      more: the axis's length.
    """
    sizes = {1: 1, model: model, data: more, data * model: more * model}
    return [one._replace(group_size=sizes[one.group_size]) for one in exchanged]


def row(devices: int, exchanged: dict[str, list[Any]], how: str) -> str:
    """Returns a line of the table."""

    sent = {
        name: collectives.bytes_per_device(all_) for name, all_ in exchanged.items()
    }
    return (
        f"{devices:>7}  {sent['saliency'] / 1e6:>13.3f}  "
        f"{_ROUNDS * sent['selection'] / 1e6:>14.4f}  "
        f"{sent['training step'] / 1e6:>18.3f}  {how}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet_18")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--model", type=int, default=2, help="devices along model")
    parser.add_argument("--compiled", type=int, default=_COMPILED, help="at most")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={arguments.compiled} "
        "--xla_backend_optimization_level=0"
    )
    import jax

    from snipjax import assembly
    from snipjax import config as configs

    size, model = arguments.image_size, arguments.model
    config = configs.default()
    config.dataset.name = f"synthetic:4096x{size}x{size}x3/{arguments.classes}"
    config.dataset.stream = True
    config.model.name = arguments.network
    formula = functools.partial(on_more, data=8 // model, model=model)
    smallest, devices = None, 8
    while devices <= _LARGEST:
        if devices <= arguments.compiled:
            config.mesh = f"data={devices // model},model={model}"
            config.prune.batch_size = config.train.batch_size = 2 * devices
            setup = assembly.assemble(config)
            exchanged = programs(setup)
            if smallest is None:
                smallest = exchanged
                params = jax.tree.leaves(assembly.abstract_state(setup).params)
                count = sum(leaf.size for leaf in params)
                print(
                    f"\n{arguments.network}: {count:,} parameters, "
                    f"{4 * count / 1e6:.3f} MB, model={model}; MB sent by each device\n"
                    "devices  saliency (MB)  selection (MB)  training step (MB)"
                )
            print(row(devices, exchanged, "compiled"), flush=True)
        by_formula = {
            name: formula(all_, more=devices // model)
            for name, all_ in smallest.items()
        }
        print(row(devices, by_formula, "by the formulas"), flush=True)
        devices *= 2


if __name__ == "__main__":
    main()
