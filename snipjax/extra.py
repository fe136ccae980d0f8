"""The packages that training needs beside the core, looked for before any is loaded."""

import importlib.util
from collections.abc import Sequence

# Modules of the extra `train`.
MODULES = (
    *("absl", "flax", "grain", "jinja2", "loky", "matplotlib", "ml_collections"),
    *("orbax", "pandas", "PIL", "requests", "rich", "safetensors", "sklearn"),
    *("tensorboardX", "tensorflow_datasets"),
)


def check_installed(modules: Sequence[str] = MODULES) -> None:
    """Raises a ``ValueError`` that names the modules that cannot be found."""
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} cannot be imported; training needs the extra: "
            "pip install 'snipjax[train]'"
        )
