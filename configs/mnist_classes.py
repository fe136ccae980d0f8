"""The connections that SNIP keeps of MNIST's pixels, scored on one class at a time.

Nothing is trained: the result is the picture ``first_layers.png``, the paper's
figure 2, at three sparsities.
"""

from ml_collections import ConfigDict

from snipjax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.dataset.name = "mnist"
    config.seeds = 20  # their mean is drawn
    config.vary = (
        "prune.sparsity=0.9,0.95,0.99",
        "prune.batch_class=0,1,2,3,4,5,6,7,8,9",
    )
    config.train.steps = 0
    return config
