"""LeNet-300-100 on MNIST, SNIP at 98% and connections that move by RigL.

``--config.prune.method=random --config.prune.select=erk`` starts from a random mask of
ERK densities, and ``--config.optimizer.sparse.name=set`` lets connections grow at
random. ``--config.model.name=lenet_5_caffe`` is the other network of the paper.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.prune.sparsity = 0.98
    config.optimizer.sparse.name = "rigl"
    config.train.steps = 250 * _STEPS_PER_EPOCH
    config.train.eval_every = _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = _STEPS_PER_EPOCH
    config.train.checkpoint_every = 25 * _STEPS_PER_EPOCH
    return config
