"""What rows, networks, data sets and methods are called."""

from snipjax.results import published
from snipjax.results.report.aggregation import Row

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "digits": "scikit-learn digits"}
_OURS = {
    "snip": ("SNIP", published.METHODS["SNIP"]),
    "none": ("dense", None),
    "magnitude": ("magnitude at initialization", published.METHODS["LWC"]),
    "random": ("random pruning", None),
}


def title(row: Row) -> str:
    """Returns what a row is of, e.g. ``LeNet-300-100 on MNIST, SNIP at 98%``."""
    return f"{network_name(row)} on {dataset_name(row)}, {row_label(row)}"


def network_name(row: Row) -> str:
    """Returns the published name of a row's network."""
    return published.NETWORKS.get(row.model, row.model)


def dataset_name(row: Row) -> str:
    """Returns the name of a row's data set in prose."""
    return DATASETS.get(row.dataset, row.dataset)


def name_and_origin(method: str) -> tuple[str, published.Method | None]:
    """Returns a method's name, and where its criterion comes from."""
    if method in _OURS:
        return _OURS[method]
    names = {name.lower(): name for name in published.METHODS}
    name = names.get(method.lower().replace("_", " "))
    return (name, published.METHODS[name]) if name else (method, None)


def method_name(row: Row) -> str:
    """Returns the name of a row's method in prose."""
    return name_and_origin(row.method)[0]


def row_label(row: Row) -> str:
    """Returns what tells a row from others of its network."""
    sparsity = "" if row.method == "none" else f" at {sparsity_text(row)}"
    return method_name(row) + sparsity + _remark(row)


def row_kind(row: Row) -> str:
    """Returns what rows that differ only in sparsity have in common."""
    return method_name(row) + _remark(row)


def _remark(row: Row) -> str:
    return f" ({row.settings})" if row.settings else ""


def sparsity_text(row: Row) -> str:
    """Returns a row's sparsity in percent."""
    return f"{100 * row.sparsity:.4g}%"
