"""VGG-D on CIFAR-10 by the paper's protocol: 250 epochs, SNIP at 95%.

``--config.model.name=vgg_like --config.prune.sparsity=0.97`` is the paper's other row.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 351  # of 45,000 examples, 10% of the 50,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "cifar10"
    config.model.name = "vgg_d"
    config.prune.sparsity = 0.95
    config.prune.batch_size = 128
    config.train.steps = 250 * _STEPS_PER_EPOCH
    config.train.batch_size = 128
    config.optimizer.decay_every = 30_000
    config.train.flip = True
    config.train.translate = 4
    config.train.eval_every = _STEPS_PER_EPOCH
    config.train.checkpoint_every = _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = 9
    return config
