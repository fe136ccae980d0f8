"""ResNet-50 on ImageNet, streamed, on all devices there are: 90 epochs, SNIP at 90%.

Needs TFDS's ``imagenet2012`` in ArrayRecord files, or folders of JPEGs
(``--config.dataset.name=folder:/data/imagenet``). A tenth of the training images
is held out to choose a checkpoint with; ImageNet's validation images are the test.
At about this sparsity SNIP is published with 60.98% accuracy on ResNet-50, random masks
with 65.30% (NTK-SAP, ICLR 2023): see docs/how-to-choose.md for other criteria.
``--config.mesh='data=8,model=4'`` splits parameters over four devices too. The schedule
is from Goyal et al., "Accurate, Large Minibatch SGD", 2017, without its warm-up.
"""

from ml_collections import ConfigDict

from snipjax.config import default

_BATCH = 1024
_STEPS_PER_EPOCH = 1126  # of 1,153,050 examples, 90% of the 1,281,167
_EPOCHS = 90


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "imagenet2012"
    config.dataset.stream = True
    config.dataset.image_size = 224
    config.dataset.view = "imagenet"
    config.dataset.workers = 8
    config.model.name = "resnet_50"
    config.model.dtype = "bfloat16"
    config.prune.batch_size = 256
    config.prune.num_batches = 4
    config.train.steps = _EPOCHS * _STEPS_PER_EPOCH
    config.train.batch_size = _BATCH
    config.optimizer.learning_rate = 0.1 * _BATCH / 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_every = 30 * _STEPS_PER_EPOCH
    config.train.eval_every = _STEPS_PER_EPOCH
    config.train.checkpoint_every = _STEPS_PER_EPOCH
    config.train.steps_per_dispatch = 2
    return config
