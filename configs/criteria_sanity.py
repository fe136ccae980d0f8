"""Sanity checks of three criteria: re-sampled, shuffled and inverted.

A mask that is as good with a fresh sample of the weights, or shuffled within each
layer, is no more than a density for each layer. Inverted, the connections of the lowest
scores are kept. LeNet-300-100 on MNIST, as in configs/criteria.py.
"""

from ml_collections import ConfigDict

from configs import criteria


def get_config() -> ConfigDict:
    config = criteria.get_config()
    config.prune.sparsity = 0.98
    config.vary = (
        "prune.method&prune.temperature=snip&1.0,grasp&200.0,synflow&1.0",
        "prune.fresh_init&prune.shuffle&prune.invert="
        "False&False&False,True&False&False,False&True&False,False&False&True",
    )
    return config
