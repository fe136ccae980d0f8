"""Sanity checks of three criteria: re-sampled, shuffled and inverted.

A mask that is as good with a fresh sample of the weights does not depend on their
values; one that is as good shuffled within each layer is no more than a density for
each layer. Inverted, the connections of the lowest scores are kept. LeNet-300-100 on
MNIST, trained as in configs/criteria.py.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.seeds = 5
    config.vary = (
        "prune.method=snip,grasp,synflow",
        "prune.fresh_init&prune.shuffle&prune.invert="
        "False&False&False,True&False&False,False&True&False,False&False&True",
    )
    config.prune.sparsity = 0.98
    config.prune.prunable = "kernels"
    config.prune.effective = True
    config.train.steps = 20 * _STEPS_PER_EPOCH
    config.optimizer.decay_every = 10 * _STEPS_PER_EPOCH
    config.train.eval_every = 2 * _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
