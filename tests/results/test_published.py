"""The published figures are those of the papers, and are found by our names."""

import pytest

from snipjax.results import published
from snipjax.results.published import find


@pytest.mark.parametrize(
    ("dataset", "network", "method", "sparsity", "error"),
    [
        ("mnist", "lenet_300_100", "snip", 0.95, 1.6),
        ("mnist", "lenet_300_100", "snip", 1 - 5332 / 266_610, 2.4),  # a whole number
        ("mnist", "lenet_300_100", "snip", 0.979, None),
        ("mnist", "lenet_300_100", "none", 0.95, 1.7),  # dense, whatever was asked for
        ("digits", "lenet_300_100", "snip", 0.95, None),
        ("mnist", "lenet_5_caffe", "lwc", 0.917, 0.8),
        ("mnist", "lenet_5_caffe", "sparse_momentum", 0.99, 0.83),
        ("mnist", "gru_b", "snip", 0.95, 1.52),
        ("cifar10", "wrn_22_8", "none", 0.0, 6.14),
        ("mnist", "vgg_d", "snip", 0.95, None),
    ],
)
def test_an_error_is_found_by_network_method_and_sparsity(
    dataset: str, network: str, method: str, sparsity: float, error: float | None
) -> None:
    row = find(dataset, network, method, sparsity)
    assert (row and row.error) == error


def test_every_row_of_the_papers_is_there_once() -> None:
    competitors, snip, sparse_momentum, dense = 2 * 7, 16, 4, 14
    assert len({*published.ROWS}) == competitors + snip + sparse_momentum + dense
    for row in published.ROWS:
        assert published.METHODS[row.method].link == row.link
