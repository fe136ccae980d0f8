"""Programs of an experiment on a mesh, and the memory that they take."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import pytest

from snipjax import assembly, models
from snipjax import config as configs
from snipjax.training import on_mesh, sharding


def two_blocks(num_classes: int) -> nn.Module:
    """A ViT-Ti of two blocks."""
    return models.create("vit_ti_16", num_classes).clone(depth=2)


def of_two_blocks(mesh: str, **prune: Any) -> assembly.Setup:
    """A network of many parameters on 8 images of 32x32: few activations."""
    config = configs.default()
    config.mesh = mesh
    config.dataset.update(name="synthetic:64x32x32x3/10", stream=True)
    config.model.name = f"{__name__}:two_blocks"
    config.train.batch_size = config.prune.batch_size = 8
    config.prune.update(prune)
    return assembly.assemble(config)


def bytes_at_most(program: Any) -> int:
    """What a program holds: what it is given, returns and makes on the way."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def live_bytes() -> int:
    """Bytes of arrays on the devices, as one device has them."""
    return sum(
        shards[0].data.nbytes
        for array in jax.live_arrays()
        if (shards := array.addressable_shards)
    )


class Recorder:
    """The programs that pruning compiles, with the bytes in use when they run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs: list[Any] = []
        self.bytes: list[int] = []
        self._before = live_bytes()
        self._compile = sharding.compiled_for_memory
        monkeypatch.setattr(sharding, "compiled_for_memory", self._compiled)

    def _compiled(self, mesh: Any, lowered: Any) -> Callable[..., Any]:
        program = self._compile(mesh, lowered)
        self.programs.append(program)
        memory = program.memory_analysis()

        def run(*args: Any) -> Any:
            given = memory.argument_size_in_bytes
            others = max(0, live_bytes() - self._before - given)
            self.bytes.append(others + bytes_at_most(program))
            return program(*args)

        return run

    def prune(self, setup: assembly.Setup) -> None:
        """Prunes a network, and starts its training."""
        score, start, batch = assembly.algorithm(setup)
        place = setup.placement(range(1))
        self.programs.clear()  # of evaluation
        scores, mask = place.score(score, batch)
        del scores  # as experiments do
        place.start(start, mask)


def train_step(setup: assembly.Setup) -> Any:
    """Returns the compiled training step."""
    return on_mesh.compiled_train_step(*_parts(setup))


def evaluation(setup: assembly.Setup) -> Any:
    """Returns the compiled evaluation of a batch."""
    return on_mesh.compiled_evaluation(*_parts(setup))


def _parts(setup: assembly.Setup) -> Any:
    return setup.task, setup.mesh, assembly.abstract_state(setup), setup.stream
