"""The digits, and the dense network on them, which every method starts from."""

import jax
import pytest

from snipjax import config as configs
from snipjax import experiment
from snipjax.methods import Outcome, dense


@pytest.fixture(scope="session")
def digits() -> experiment.Parts:
    config = configs.default()
    config.train.steps = config.train.eval_every = 60
    return experiment.assemble(config)


@pytest.fixture(scope="session")
def pretrained(digits: experiment.Parts) -> Outcome:
    return dense(digits)


@pytest.fixture(scope="session")
def prunable_count(pretrained: Outcome) -> int:
    return sum(mask.size for mask in jax.tree.leaves(pretrained.mask))
