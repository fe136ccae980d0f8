"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import snipjax

sys.path.append(str(Path(__file__).parents[1] / "docs"))
import public

MODULES = [
    module.name for module in pkgutil.walk_packages(snipjax.__path__, "snipjax.")
]
GLOBALS = {"jax": jax, "jnp": jnp, "snipjax": snipjax}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    examples = doctest.DocTestFinder().find(module, extraglobs=GLOBALS)
    # Strings below constants and types are docstrings that doctest does not find.
    for constant, text in public.constants(name).items():
        examples.append(
            doctest.DocTestParser().get_doctest(
                text, vars(module) | GLOBALS, constant, module.__file__, None
            )
        )
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        runner.run(example)
    assert runner.failures == 0
