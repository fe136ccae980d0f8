"""The published figures are those of the papers, and are found by our names."""

import pytest

from snipjax.results import published
from snipjax.results.published import find

# As the SNIP paper prints table 2, and its own lines of table 1:
# network, data set, sparsity (%), dense error, SNIP error.
SNIP = """
LeNet-300-100 mnist   95 1.7   1.6
LeNet-300-100 mnist   98 1.7   2.4
LeNet-5-Caffe mnist   98 0.9   0.8
LeNet-5-Caffe mnist   99 0.9   1.1
AlexNet-s     cifar10 90 14.12 14.99
AlexNet-b     cifar10 90 13.92 14.50
VGG-C         cifar10 95 6.82  7.27
VGG-D         cifar10 95 6.76  7.09
VGG-like      cifar10 97 8.26  8.00
WRN-16-8      cifar10 95 6.21  6.63
WRN-16-10     cifar10 95 5.91  6.43
WRN-22-8      cifar10 95 6.14  5.85
LSTM-s        mnist   95 1.88  1.57
LSTM-b        mnist   95 1.15  1.35
GRU-s         mnist   95 1.87  2.41
GRU-b         mnist   95 1.71  1.52
"""
# Table 1's competitors: LeNet-300-100 sparsity (%) and error, LeNet-5-Caffe's.
COMPETITORS = """
LWC   91.7 1.6 91.7 0.8
DNS   98.2 2.0 99.1 0.9
LC    99.0 3.2 99.0 1.1
SWS   95.6 1.9 99.5 1.0
SVD   98.5 1.9 99.6 0.8
OBD   92.0 2.0 92.0 2.7
L-OBS 98.5 2.0 99.0 2.1
"""


def our_name(network: str) -> str:
    return network.lower().replace("-", "_")


@pytest.mark.parametrize("line", SNIP.strip().splitlines())
def test_snip_and_the_dense_reference_are_found(line: str) -> None:
    network, dataset, percent, dense, snip = line.split()
    name = our_name(network)
    assert published.NETWORKS[name] == network
    assert find(dataset, name, "snip", float(percent) / 100).error == float(snip)
    assert find(dataset, name, "none", 0.0).error == float(dense)


@pytest.mark.parametrize("line", COMPETITORS.strip().splitlines())
def test_competitors_are_found(line: str) -> None:
    method, percent_300, error_300, percent_5, error_5 = line.split()
    for network, percent, error in (
        ("lenet_300_100", percent_300, error_300),
        ("lenet_5_caffe", percent_5, error_5),
    ):
        row = find("mnist", network, method, float(percent) / 100)
        assert row.error == float(error)
        assert row.method == method


def test_sparse_momentum_is_found_by_either_spelling() -> None:
    assert find("mnist", "lenet_300_100", "sparse_momentum", 0.95).error == 1.53
    assert find("mnist", "lenet_5_caffe", "Sparse momentum", 0.99).error == 0.83


def test_of_a_dense_network_the_sparsity_is_not_looked_at() -> None:
    assert find("mnist", "gru_b", "none", 0.95) == find("mnist", "gru_b", "none", 0.0)


def test_there_are_no_other_rows() -> None:
    competitors, snip, sparse_momentum, dense = 2 * 7, 16, 4, 14
    assert len(published.ROWS) == competitors + snip + sparse_momentum + dense
    assert len(set(published.ROWS)) == len(published.ROWS)


def test_a_sparsity_is_found_as_a_whole_number_of_connections_gives_it() -> None:
    kept = round(266_610 * 0.02)
    assert find("mnist", "lenet_300_100", "snip", 1 - kept / 266_610).error == 2.4
    assert find("mnist", "lenet_300_100", "snip", 0.979) is None


@pytest.mark.parametrize(
    ("dataset", "network", "method"),
    [
        ("digits", "lenet_300_100", "snip"),
        ("mnist", "vgg_d", "snip"),
        ("mnist", "lenet_300_100", "random"),
    ],
)
def test_what_was_not_published_is_not_found(
    dataset: str, network: str, method: str
) -> None:
    assert find(dataset, network, method, 0.95) is None


def test_every_row_says_where_its_method_is_described() -> None:
    for row in published.ROWS:
        assert row.link.startswith("https://")
        assert row.reference.endswith(")")  # the year
        assert published.METHODS[row.method].link == row.link
