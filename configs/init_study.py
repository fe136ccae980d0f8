"""Initializations compared by the signal, the connections SNIP keeps and the error.

LeNet-300-100 on MNIST; ``--config.model.name=vgg_like --config.dataset.name=cifar10``
makes the study of a VGG, and ``--config.train.steps=0`` leaves the training out.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.prune.sparsity = 0.95
    config.seeds = 5
    config.signal_seeds = 5
    config.vary = (
        "init.scored&init.trained=heuristic_uniform,glorot_uniform,random_normal,"
        "truncated_normal,xavier,he,fan_in",
    )
    config.train.steps = 20 * _STEPS_PER_EPOCH
    config.optimizer.decay_every = 10 * _STEPS_PER_EPOCH
    config.train.eval_every = 2 * _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
