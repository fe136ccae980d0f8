"""A process of test_distributed.py: ``<port> <processes> <id> <directory>``.

Trains a run without interruption, then one that goes on from a checkpoint of it.
"""

import json
import shutil
import sys
from pathlib import Path

from snipjax import config as configs
from snipjax import distributed, large, rundir


def main(port: str, processes: str, process_id: str, directory: str) -> None:
    distributed.initialize(f"localhost:{port}", int(processes), int(process_id))
    config = configs.default()
    config.mesh = f"data={processes}"
    config.train.update(steps=4, eval_every=2, checkpoint_every=2, steps_per_dispatch=1)
    whole, resumed = Path(directory) / "whole", Path(directory) / "resumed"
    results = [large.run(config, whole)]

    def interrupted() -> None:
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / "checkpoints" / "4")
        (resumed / rundir.RESULT).unlink()

    distributed.by_first(interrupted)
    results.append(large.run(config, resumed))
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
