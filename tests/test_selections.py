"""Selections by name in a configuration, wherever the networks are."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from snipjax import assembly, build, masks
from snipjax import config as configs
from tests import devices, runs

pytestmark = pytest.mark.usefixtures("compile_once")
# LeNet-300-100 on the digits.
LAYERS = {"Dense_0/kernel": 64 * 300, "Dense_1/kernel": 30_000, "Dense_2/kernel": 1000}
TOTAL = sum(LAYERS.values())


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


# At a sparsity of one half, by the formulas.
ERK = (364 * 24_100 / 764, 400 * 24_100 / 764, 1000)  # the last layer is dense
COUNTS = {
    "uniform": (9600, 15_000, 500),
    "uniform_plus": (19_200, 5700, 200),
    "erdos_renyi": ERK,
    "erk": ERK,
    "smart_ratio": (13_922.8, 10_877.2, 300),  # densities as 12 to 6, and 0.3
}


def check(name: str, network: dict[str, int]) -> None:
    assert sum(network.values()) == TOTAL // 2
    np.testing.assert_allclose([*network.values()], COUNTS[name], atol=0.6)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "erk" else pytest.mark.slow)
        for name in build.ALLOCATIONS
    ],
)
def test_densities_by_name_of_two_networks_at_once(name: str) -> None:
    for network in kept(config_with(select=name, seeds=2)):
        check(name, network)


def check_on_a_mesh() -> None:
    for name in ("erk", "smart_ratio"):
        (network,) = kept(config_with(select=name, mesh="data=4,model=2"))
        check(name, network)


@pytest.mark.slow
def test_densities_by_name_on_a_mesh_of_eight_devices() -> None:
    program = "from tests import test_selections; test_selections.check_on_a_mesh()"
    subprocess.run(
        [sys.executable, "-c", program],
        env=devices(8),
        check=True,
    )


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


def test_the_order_of_layers_is_the_order_of_use() -> None:
    config = config_with()
    config.model.name = "resnet_20"
    order = assembly.layer_order(assembly.assemble(config))
    kernels = [name for name in order if name.endswith("/kernel")]
    assert kernels[0] == "Conv_0/kernel" and kernels[-1] == "Dense_0/kernel"
    assert len(kernels) == 22
    assert len({*order}) == len(order)


def test_a_random_mask_of_erk_is_the_line_to_beat() -> None:
    """Two draws have the densities in common, and not the connections."""
    setup = assembly.assemble(config_with(method="random", select="erk"))
    score, _, batch = assembly.algorithm(setup)
    found = [
        runs.named(setup.placement(range(seed, seed + 1)).score(score, batch)[1])
        for seed in (0, 1)
    ]
    for layer in LAYERS:
        a, b = (named[layer][0] for named in found)
        assert a.sum() == b.sum()
        assert np.any(a != b) or a.all()
