"""Files: masks and parameters, and pretrained weights of other libraries."""

from snipjax.io.arrays import load_arrays, save_arrays
from snipjax.io.masks import load_mask, save_mask

__all__ = ["load_arrays", "load_mask", "save_arrays", "save_mask"]
