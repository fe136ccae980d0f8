"""Pruning modules of other libraries in one call: Flax NNX and Equinox.

:mod:`snipjax.adapters.nnx` and :mod:`snipjax.adapters.equinox` import their library
when they are first used. Flax Linen, Haiku, Keras and plain pytrees need no adapter.
"""

import importlib
import types

__all__ = ["equinox", "nnx"]


def __getattr__(name: str) -> types.ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
