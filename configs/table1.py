"""Table 1 of the paper, run: every method, both LeNets, MNIST, 100 epochs.

``--config.quick=True`` gives every network a fiftieth of its steps: minutes for all,
to see that it works. ``--config.methods=snip,lwc`` runs some of the methods,
``--config.frontier=0.9,0.95,0.98,0.99`` every method at more sparsities.
"""

from ml_collections import ConfigDict

from snipjax.table1 import default


def get_config() -> ConfigDict:
    return default()
