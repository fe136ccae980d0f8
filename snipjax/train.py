"""Prunes a network at initialization and trains it.

python -m snipjax.train --config digits_lenet300
python -m snipjax.train --config mnist_lenet300 --config.prune.sparsity=0.9,0.98
python -m snipjax.train --config table1
python -m snipjax.train --config digits_lenet300 --config.model.name=nets:Net

A file of your own goes by its path, and train.py of a clone is the same program:

python train.py --config configs/digits_lenet300.py
"""

import sys
from typing import NoReturn

from snipjax import extra


def define_flags() -> None:
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a name in configs/, or a file."
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


def main() -> NoReturn:
    try:
        extra.check_installed()
    except ValueError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    from snipjax import cli

    define_flags()
    cli.start(sys.argv, str(__doc__))


if __name__ == "__main__":
    main()
