"""Pruning neural networks at initialization, as pure functions on pytrees.

:mod:`snipjax.saliency` scores connections, :mod:`snipjax.masks` turns scores into
masks, :mod:`snipjax.pruning` does both in one call, :mod:`snipjax.optim` keeps pruned
entries at zero during training, and :mod:`snipjax.shrink` makes networks without the
units that a mask prunes. Modules are imported when they are first used.
"""

import importlib
import types

__version__ = "0.1.0"

_CORE = ("adapters", "masks", "optim", "pruning", "saliency", "shrink")
_TRAIN = (
    "config",
    "data",
    "experiment",
    "initializers",
    "io",
    "methods",
    "models",
    "ops",
    "results",
    "sweep",
    "training",
)
_MODULES = (*_CORE, *_TRAIN)


def __getattr__(name: str) -> types.ModuleType:
    if name in _MODULES:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if name in _CORE:
                raise
            message = f"snipjax.{name} needs {error.name}: pip install 'snipjax[train]'"
            raise ModuleNotFoundError(message, name=error.name) from None
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted((*globals(), *_MODULES))
