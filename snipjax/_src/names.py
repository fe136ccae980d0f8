"""Names of parameters, as readers sort them."""

import re


def natural_order(name: str) -> list[str | int]:
    """Returns a key that sorts names as readers count: 2 before 10.

    Example:
      >>> sorted(["Conv_10", "Conv_2", "Dense_0"], key=natural_order)
      ['Conv_2', 'Conv_10', 'Dense_0']
    """
    parts = re.split(r"(\d+)", name)  # numbers at odd places
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
