"""A cell of table 1, and the directory that is named by it."""

import re
from typing import NamedTuple

_NAME = re.compile(
    r"(?P<network>\w+)-(?P<method>\w+)"
    r"(?:-(?P<sparsity>0(?:\.\d+)?|\d(?:\.\d+)?e-\d+))?-seed(?P<seed>\d+)"
)


class Cell(NamedTuple):
    """One network, pruned by one method to one sparsity with one seed."""

    network: str
    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its directory, e.g. ``lenet_300_100-snip-0.95-seed0``."""
        sparsity = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.network}-{self.method}{sparsity}-seed{self.seed}"


def named(name: str) -> Cell | None:
    """Returns the cell whose directory has a name; None if it is that of none.

    Example:
      >>> named("lenet_300_100-snip-0.95-seed0")
      Cell(network='lenet_300_100', method='snip', sparsity=0.95, seed=0)
      >>> named("notes")
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    sparsity, seed = float(match["sparsity"] or 0.0), int(match["seed"])
    cell = Cell(match["network"], match["method"], sparsity, seed)
    return cell if cell.name == name else None
