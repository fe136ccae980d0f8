"""Selections by name in a configuration, wherever the networks are."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, masks
from snipjax import config as configs
from tests import devices, runs

pytestmark = pytest.mark.usefixtures("compile_once")
# LeNet-300-100 on the digits.
LAYERS = {"Dense_0/kernel": 64 * 300, "Dense_1/kernel": 30_000, "Dense_2/kernel": 1000}


def config_with(**fields: Any) -> ConfigDict:
    config = runs.quick(steps=0, sparsity=0.5, prunable="kernels", **fields)
    config.prune.batch_size = config.train.batch_size = 104
    configs.validate(config)
    return config


def kept(config: ConfigDict) -> list[dict[str, int]]:
    """How many connections each network keeps of each layer."""
    setup = assembly.assemble(config)
    score, _, batch = assembly.algorithm(setup)
    seeds = range(config.seed, config.seed + config.seeds)
    _, mask = setup.placement(seeds).score(score, batch)
    named = runs.named(mask)
    if not config.mesh:
        return [{n: int(named[n][i].sum()) for n in LAYERS} for i in range(len(seeds))]
    return [{n: int(named[n].sum()) for n in LAYERS}]


def check(network: dict[str, int]) -> None:
    """Half of all: 0.3 of the last layer, and of the others as 12 to 6."""
    assert sum(network.values()) == sum(LAYERS.values()) // 2
    np.testing.assert_allclose([*network.values()], [13_922.8, 10_877.2, 300], atol=0.6)


def test_an_allocation_by_name_of_two_networks_at_once() -> None:
    for network in kept(config_with(select="smart_ratio", seeds=2)):
        check(network)


def check_on_a_mesh() -> None:
    (network,) = kept(config_with(select="smart_ratio", mesh="data=4,model=2"))
    check(network)


@pytest.mark.slow
def test_an_allocation_by_name_on_a_mesh_of_eight_devices() -> None:
    program = "from tests import test_selections; test_selections.check_on_a_mesh()"
    subprocess.run([sys.executable, "-c", program], env=devices(8), check=True)


def with_a_dense_end(scores: Any, sparsity: float, prunable: Any, *, order: Any) -> Any:
    """Keeps the last layer whole, and half of every other."""
    last = [name for name in order if name.endswith("kernel")][-1]
    densities = masks.uniform(scores, sparsity, prunable)
    densities["Dense_2"]["kernel"] = 1.0
    assert last == "Dense_2/kernel"
    return masks.by_density(scores, densities, prunable)


def test_a_selection_of_ones_own_is_offered_the_order_of_layers() -> None:
    config = config_with(select=f"{__name__}:with_a_dense_end")
    (network,) = kept(config)
    assert network["Dense_2/kernel"] == 1000
