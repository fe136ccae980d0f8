"""Published figures to put beside measured ones: tables 1 and 2 of the SNIP paper.

Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
Sensitivity", ICLR 2019, with its competitors on the LeNets, and sparse momentum on the
same networks (Dettmers, Zettlemoyer, 2019). Errors are in percent, as printed.
"""

from collections.abc import Mapping
from typing import NamedTuple

EPOCHS = 250  # of training in the SNIP paper, where its error is the best of all epochs

NETWORKS: Mapping[str, str] = {
    "lenet_300_100": "LeNet-300-100",
    "lenet_5_caffe": "LeNet-5-Caffe",
    "alexnet_s": "AlexNet-s",
    "alexnet_b": "AlexNet-b",
    "vgg_c": "VGG-C",
    "vgg_d": "VGG-D",
    "vgg_like": "VGG-like",
    "wrn_16_8": "WRN-16-8",
    "wrn_16_10": "WRN-16-10",
    "wrn_22_8": "WRN-22-8",
    "lstm_s": "LSTM-s",
    "lstm_b": "LSTM-b",
    "gru_s": "GRU-s",
    "gru_b": "GRU-b",
}


class Method(NamedTuple):
    """A method as the SNIP paper's table 1 describes it."""

    name: str
    full_name: str
    reference: str
    link: str
    criterion: str
    pretraining: str  # whether a network is trained before it is pruned
    prunings: str  # how often
    hyperparameters: str  # whether there are more than training has
    objective: str  # whether the training objective is augmented
    constraints: str  # whether the method depends on the architecture


class Row(NamedTuple):
    """One published error; the dense networks are the SNIP paper's."""

    reference: str  # to the description of the method, e.g. "Han et al. (2015)"
    link: str
    method: str  # as in METHODS
    network: str  # as in snipjax.models
    dataset: str
    sparsity: float  # pruned / prunable, 0 of a dense network
    error: float  # on test data, in percent


_SNIP_LINK = "https://arxiv.org/abs/1810.02340"
_METHODS = (  # in the order of Method's fields
    Method(
        "Dense",
        "the network unpruned",
        "Lee et al. (2019)",
        _SNIP_LINK,
        *6 * ("-",),
    ),
    Method(
        "LWC",
        "Learning Weights and Connections",
        "Han et al. (2015)",
        "https://arxiv.org/abs/1506.02626",
        *("magnitude", "yes", "many", "yes", "no", "yes"),
    ),
    Method(
        "DNS",
        "Dynamic Network Surgery",
        "Guo et al. (2016)",
        "https://arxiv.org/abs/1608.04493",
        *("magnitude", "yes", "many", "yes", "no", "yes"),
    ),
    Method(
        "LC",
        "Learning-Compression",
        "Carreira-Perpiñán and Idelbayev (2018)",
        "https://openaccess.thecvf.com/content_cvpr_2018/html/"
        "Carreira-Perpinan_Learning-Compression_Algorithms_for_CVPR_2018_paper.html",
        *("magnitude", "yes", "many", "yes", "yes", "no"),
    ),
    Method(
        "SWS",
        "Soft Weight-Sharing",
        "Ullrich et al. (2017)",
        "https://arxiv.org/abs/1702.04008",
        *("Bayesian", "yes", "soft", "yes", "yes", "no"),
    ),
    Method(
        "SVD",
        "Sparse Variational Dropout",
        "Molchanov et al. (2017)",
        "https://arxiv.org/abs/1701.05369",
        *("Bayesian", "yes", "soft", "yes", "yes", "no"),
    ),
    Method(
        "OBD",
        "Optimal Brain Damage",
        "LeCun et al. (1990)",
        "https://papers.nips.cc/paper/250-optimal-brain-damage",
        *("Hessian", "yes", "many", "yes", "no", "no"),
    ),
    Method(
        "L-OBS",
        "Layer-wise Optimal Brain Surgeon",
        "Dong et al. (2017)",
        "https://arxiv.org/abs/1705.07565",
        *("Hessian", "yes", "many", "yes", "no", "yes"),
    ),
    Method(
        "SNIP",
        "Single-shot Network Pruning",
        "Lee et al. (2019)",
        _SNIP_LINK,
        *("connection sensitivity", "no", "1", "no", "no", "no"),
    ),
    Method(
        "Sparse momentum",
        "Sparse networks from scratch",
        "Dettmers and Zettlemoyer (2019)",
        "https://arxiv.org/abs/1907.04840",
        *6 * ("-",),  # not in table 1
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}
# Methods of a configuration.
NAMES: Mapping[str, str] = {
    "none": "Dense",
    "lwc": "LWC",
    "dns": "DNS",
    "lc": "LC",
    "sws": "SWS",
    "sparse_vd": "SVD",
    "obd": "OBD",
    "lobs": "L-OBS",
    "snip": "SNIP",
    "sparse_momentum": "Sparse momentum",
}


def _row(method: str, network: str, dataset: str, percent: float, error: float) -> Row:
    source = METHODS[method]
    sparsity = round(percent / 100, 4)
    return Row(source.reference, source.link, method, network, dataset, sparsity, error)


_TABLE_1 = (  # method; sparsity (%) and error of LeNet-300-100, then LeNet-5-Caffe
    ("Dense", 0.0, 1.7, 0.0, 0.9),
    ("LWC", 91.7, 1.6, 91.7, 0.8),
    ("DNS", 98.2, 2.0, 99.1, 0.9),
    ("LC", 99.0, 3.2, 99.0, 1.1),
    ("SWS", 95.6, 1.9, 99.5, 1.0),
    ("SVD", 98.5, 1.9, 99.6, 0.8),
    ("OBD", 92.0, 2.0, 92.0, 2.7),
    ("L-OBS", 98.5, 2.0, 99.0, 2.1),
    ("SNIP", 95.0, 1.6, 98.0, 0.8),
    ("SNIP", 98.0, 2.4, 99.0, 1.1),
    ("Sparse momentum", 95.0, 1.53, 98.0, 0.76),
    ("Sparse momentum", 98.0, 1.99, 99.0, 0.83),
)
_TABLE_2 = (  # network, data set, sparsity (%), errors dense and of SNIP
    ("alexnet_s", "cifar10", 90.0, 14.12, 14.99),
    ("alexnet_b", "cifar10", 90.0, 13.92, 14.50),
    ("vgg_c", "cifar10", 95.0, 6.82, 7.27),
    ("vgg_d", "cifar10", 95.0, 6.76, 7.09),
    ("vgg_like", "cifar10", 97.0, 8.26, 8.00),
    ("wrn_16_8", "cifar10", 95.0, 6.21, 6.63),
    ("wrn_16_10", "cifar10", 95.0, 5.91, 6.43),
    ("wrn_22_8", "cifar10", 95.0, 6.14, 5.85),
    ("lstm_s", "mnist", 95.0, 1.88, 1.57),
    ("lstm_b", "mnist", 95.0, 1.15, 1.35),
    ("gru_s", "mnist", 95.0, 1.87, 2.41),
    ("gru_b", "mnist", 95.0, 1.71, 1.52),
)
ROWS: tuple[Row, ...] = (
    *(
        row
        for method, percent_300, error_300, percent_5, error_5 in _TABLE_1
        for row in (
            _row(method, "lenet_300_100", "mnist", percent_300, error_300),
            _row(method, "lenet_5_caffe", "mnist", percent_5, error_5),
        )
    ),
    *(
        row
        for network, dataset, percent, dense_error, error in _TABLE_2
        for row in (
            _row("Dense", network, dataset, 0.0, dense_error),
            _row("SNIP", network, dataset, percent, error),
        )
    ),
)


def find(dataset: str, network: str, method: str, sparsity: float) -> Row | None:
    """Returns the published row of a network at a sparsity, or None.

    The method is a name in :data:`METHODS`, or a method of a configuration. Sparsities
    may differ by 0.0005, since a whole number of connections is kept. The sparsity of
    a dense network does not matter.

    >>> find("mnist", "lenet_300_100", "snip", 0.98).error
    2.4
    """
    name = NAMES.get(method, method)
    place = dataset, network, name
    for row in ROWS:
        is_near = name == "Dense" or abs(row.sparsity - sparsity) < 0.0005
        if is_near and (row.dataset, row.network, row.method) == place:
            return row
    return None
