"""LeNet-300-100 on the embedded digits, on a mesh of 8 devices, in under a minute.

Any machine has 8 devices if ``XLA_FLAGS=--xla_force_host_platform_device_count=8`` is
set; ``--config.mesh=data=1`` is for one.
"""

from ml_collections import ConfigDict

from snipjax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.mesh = "data=4,model=2"
    config.prune.batch_size = 104
    config.train.batch_size = 104
    config.train.steps = 400
    config.train.eval_every = 100
    config.train.checkpoint_every = 200
    config.train.steps_per_dispatch = 20
    return config
