"""Objects that a configuration names by an import path, ``package.module:name``."""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Names of data sets that have a colon are no import paths.
_PATH = re.compile(r"(?!folder:|synthetic:)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_import_path(name: str) -> bool:
    """Returns whether a name in a configuration is an import path.

    >>> is_import_path("my_package.nets:Net"), is_import_path("folder:photos")
    (True, False)
    """
    return bool(_PATH.fullmatch(name))


def load(path: str, field: str) -> Any:
    """Returns the object at an import path, like ``my_package.nets:Net``.

    The current directory is searched for the module first. Errors name ``field``, the
    dotted name of the configuration's field.
    """
    name, attribute = path.split(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a user's module is code, and can raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            reason = f"there is no module '{missing}' in {here} or installed"
        else:
            reason = f"importing '{name}' failed: {type(error).__name__}: {error}"
        raise ValueError(f"config.{field} is '{path}', but {reason}") from error
    if not hasattr(module, attribute):
        nearest = difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.0)
        raise ValueError(
            f"config.{field} is '{path}', but module '{name}' has no '{attribute}'; "
            f"did you mean '{nearest[0]}'?"
        )
    return getattr(module, attribute)


def load_function(
    path: str,
    field: str,
    arguments: Sequence[str],
    keywords: Sequence[str] = (),
    offers: Sequence[str] = (),
) -> Callable[..., Any]:
    """Returns the function at an import path, which takes the given arguments.

    ``arguments`` name the positional ones, ``keywords`` the others; ``offers`` are
    keywords that it may take.
    """
    function = load(path, field)
    keywords = (*keywords, *taken(function, offers))
    call = ", ".join([*arguments, *(f"{keyword}=..." for keyword in keywords)])
    if not callable(function):
        raise ValueError(
            f"config.{field} is '{path}', a {type(function).__name__}; it must be a "
            f"function of ({call})"
        )
    try:
        inspect.signature(function).bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ValueError(
            f"config.{field} is '{path}', which does not take ({call}): {error}"
        ) from None
    return function


def taken(function: Any, offers: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the keywords on offer that a function takes.

    >>> taken(lambda images, *, key: None, ["key", "rate"])
    ('key',)
    """
    parameters = inspect.signature(function).parameters if callable(function) else ()
    return tuple(offer for offer in offers if offer in parameters)


def call(
    path: str,
    field: str,
    returns: type,
    required: Mapping[str, Any],
    offers: Mapping[str, Any],
) -> Any:
    """Returns the value of the function at an import path, of the type ``returns``.

    The keyword arguments are ``required``, and what the function takes of ``offers``.
    """
    function = load(path, field)
    given = {k: offers[k] for k in taken(function, [*offers])} | dict(required)
    value = load_function(path, field, (), tuple(given))(**given)
    if not isinstance(value, returns):
        raise ValueError(
            f"config.{field} is '{path}', which makes a {type(value).__name__}; it "
            f"must make a {returns.__module__}.{returns.__name__}"
        )
    return value
