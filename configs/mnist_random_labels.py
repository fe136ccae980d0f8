"""Dense and pruned networks on random labels: which of them learns them by heart.

LeNet-300-100 on MNIST, 90% and 98% pruned or not, without weight decay and with a
constant learning rate. Look at ``curves.png``: training error over the steps.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.dataset.random_labels = True
    config.vary = ("prune.sparsity=0.0,0.9,0.98",)
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.0
    config.train.steps = 60 * _STEPS_PER_EPOCH
    config.optimizer.schedule = "constant"
    config.train.eval_every = 2 * _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
