"""LeNet-5-Caffe on MNIST without some units: SNIP's choice and a random one, over all
layers and with the same share of each; with a quarter and a tenth of the operations."""

from ml_collections import ConfigDict

from snipjax.config import default

_STEPS_PER_EPOCH = 540  # of 54,000 examples, 10% of the 60,000 being held out


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.model.name = "lenet_5_caffe"
    config.vary = (
        "prune.method&prune.select="
        "snip&units,snip&units_layerwise,magnitude&units,random&units,"
        "random&units_layerwise",
        "prune.keep_flops=0.25,0.1",
    )
    config.seeds = 3
    config.optimizer.learning_rate = 0.05
    config.optimizer.decay_every = 4 * _STEPS_PER_EPOCH
    config.train.steps = 10 * _STEPS_PER_EPOCH
    config.train.eval_every = _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = 54
    config.train.checkpoint_every = 10 * _STEPS_PER_EPOCH
    return config
