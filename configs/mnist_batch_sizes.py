"""Saliency from 1, 10, 100, 1,000 and all examples, and the error that each leads to.

LeNet-300-100 on MNIST at 98%, twenty epochs of five seeds.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.prune.sparsity = 0.98
    config.seeds = 5
    config.vary = ("prune.batch_size=1,10,100,1000,54000",)
    config.train.steps = 20 * _STEPS_PER_EPOCH
    config.optimizer.decay_every = 10 * _STEPS_PER_EPOCH
    config.train.eval_every = 2 * _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
