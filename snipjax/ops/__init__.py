"""Convolution and pooling that are fast on the CPU too."""

from snipjax.ops.convolution import conv_general_dilated
from snipjax.ops.pooling import avg_pool, max_pool

__all__ = ["avg_pool", "conv_general_dilated", "max_pool"]
