"""What is installed is what is imported."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

from snipjax import extra, train

ROOT = Path(__file__).parent.parent
# From the name of a module to the name of its package.
PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "sklearn": "scikit-learn",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
# JAX imports flatbuffers for its exports, TensorFlow Datasets the others; neither
# declares them.
IMPORTED_ELSEWHERE = {"flatbuffers", "importlib_resources", "array_record"}


def imported(*paths: str) -> set[str]:
    """Returns the packages that modules import, here or within functions."""
    names: set[str] = set()
    files = [f for path in paths for f in ROOT.glob(path)]
    for node in (n for f in files for n in ast.walk(ast.parse(f.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    modules = {name.partition(".")[0] for name in names}
    third_party = modules - {"snipjax"} - set(sys.stdlib_module_names)
    return {PACKAGES.get(name, name) for name in third_party}


def required(extra: str | None = None) -> set[str]:
    """Returns the packages that the base install, or an extra, asks for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options, extras = setup["options"], setup["options.extras_require"]
    text = extras[extra] if extra else options["install_requires"]
    return set(re.findall(r"^(\w[\w-]*)", text, re.MULTILINE))


def test_the_base_install_is_what_the_core_imports() -> None:
    rooms = ("_src", "masks", "optim", "saliency", "shrink")
    core = [f"snipjax/{room}/*.py" for room in rooms]
    assert imported("snipjax/pruning.py", *core) == required()


def test_the_extra_of_training_is_what_the_rest_imports() -> None:
    rest = imported("train.py", "configs/*.py", "snipjax/**/*.py") - required()
    rest -= {"equinox"}  # which its adapter imports when it is first used
    assert rest == required("train") - IMPORTED_ELSEWHERE


def test_what_is_missing_is_said_at_the_start() -> None:
    packages = {PACKAGES.get(name, name) for name in extra.MODULES}
    assert packages == required("train") - IMPORTED_ELSEWHERE
    with pytest.raises(ValueError, match=r"^no_such_module cannot .*\[train\]"):
        extra.check_installed(["jax", "no_such_module"])


def test_a_command_that_lacks_packages_names_them_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as raised:
        train.main()
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: absl, flax, ")
    assert error.endswith("pip install 'snipjax[train]'\n")
