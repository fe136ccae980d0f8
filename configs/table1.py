"""Table 1 of the paper, run: every method, both LeNets, MNIST, 100 and 40 epochs.

``--config.quick=True`` takes a tenth of the steps of LeNet-300-100 and a twentieth of
LeNet-5-Caffe's: minutes for all, to see that it works.
``--config.methods=snip,lwc`` runs some of the methods, and
``--config.frontier=0.9,0.95,0.98,0.99`` every method at more sparsities.
"""

from ml_collections import ConfigDict

from snipjax.studies.table1 import default


def get_config() -> ConfigDict:
    return default()
