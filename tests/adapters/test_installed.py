"""An adapter whose library is not installed says what to install."""

import importlib
import sys

import pytest

from snipjax import adapters


@pytest.mark.parametrize(("name", "library"), [("nnx", "flax"), ("equinox",) * 2])
def test_a_library_that_is_not_installed(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    monkeypatch.delitem(sys.modules, f"snipjax.adapters.{name}", raising=False)
    monkeypatch.delitem(vars(adapters), name, raising=False)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {library}"):
        importlib.import_module(f"snipjax.adapters.{name}")
    with pytest.raises(ModuleNotFoundError, match=f"pip install {library}"):
        getattr(adapters, name)
