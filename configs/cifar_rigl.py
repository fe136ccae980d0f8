"""WRN-22-2 on CIFAR-10, a random mask of ERK densities at 80% that moves by RigL.

``--config.optimizer.sparse.name=static`` and ``set`` are its rivals. From the dense
network, ``--config.prune.method=none --config.optimizer.sparse.name=gradual_magnitude
--config.optimizer.sparse.sparsity=0.8`` prunes little by little.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 351  # of 45,000 examples, 10% of the 50,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "cifar10"
    config.model.name = "wrn_22_2"
    config.prune.method = "random"
    config.prune.select = "erk"
    config.prune.prunable = "kernels"
    config.prune.sparsity = 0.8
    config.prune.batch_size = 128
    config.optimizer.sparse.name = "rigl"
    config.train.steps = 250 * _STEPS_PER_EPOCH
    config.train.batch_size = 128
    config.optimizer.decay_every = 30_000
    config.optimizer.decay_factor = 0.2
    config.train.flip = True
    config.train.translate = 4
    config.train.eval_every = _STEPS_PER_EPOCH
    config.train.checkpoint_every = _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = 39
    return config
