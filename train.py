"""Prunes a network at initialization and trains it.

python train.py --config configs/digits_lenet300.py
python train.py --config configs/mnist_lenet300.py --config.prune.sparsity=0.9,0.98
python train.py --config configs/table1.py
python train.py --config configs/digits_lenet300.py --config.model.name=nets:Net
"""

import sys

try:
    from absl import flags
    from ml_collections import config_flags

    from snipjax import cli
except ModuleNotFoundError as error:
    sys.exit(f"train.py: no module '{error.name}'; pip install --editable '.[train]'")

config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/.", lock_config=True
)
flags.DEFINE_string(
    "workdir", None, "The run's directory; by default one under runs/ by its name."
)
flags.DEFINE_string("data_dir", None, "TFDS data directory; by default TFDS's own.")
flags.DEFINE_string(
    "coordinator_address", None, "Of several processes: <host>:<port> of process 0."
)
flags.DEFINE_integer(
    "num_processes", None, "How many processes run this command together."
)
flags.DEFINE_integer("process_id", None, "The number of this process, from 0 on.")

if __name__ == "__main__":
    cli.start(sys.argv, __doc__)
