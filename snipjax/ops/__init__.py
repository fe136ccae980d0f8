"""Convolution and pooling that are fast on the CPU too."""

from snipjax.ops.convolution import (
    Padding,
    Pairs,
    avg_pool,
    conv_general_dilated,
    max_pool,
)

__all__ = ["Padding", "Pairs", "avg_pool", "conv_general_dilated", "max_pool"]
