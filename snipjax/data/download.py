"""Preparation by TFDS of datasets that are not on disk, also without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import json
import os
import shlex
import shutil
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snipjax.data.sources import DatasetError, in_words
from snipjax.data.tfds import Name, find, find_layout, parse, variants

if TYPE_CHECKING:  # a start from the cache does not import it
    import tensorflow_datasets as tfds

_PROBE_SECONDS = 4.0


def find_or_prepare(
    name: str, data_dir: str | os.PathLike[str] | None, *, any_shape: bool
) -> Path:
    """Returns the directory of a dataset of TFDS, prepared now if it is missing."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(data_dir or default).expanduser().absolute()
    parsed = parse(name)
    return find(parsed, root) or _prepare(parsed, root, any_shape)


def _prepare(name: Name, data_dir: Path, any_shape: bool) -> Path:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.name not in known:
        raise _unknown(name, data_dir, known)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_tensorflow_stand_in())
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            builder = tfds.builder(str(name), data_dir=data_dir)
        except Exception as error:  # a version it has not, an import it needs, ...
            raise DatasetError(
                f"TFDS cannot set up {str(name)!r}: "
                f"{in_words(error.__cause__ or error)}."
                + _prepared_instead(name, data_dir)
            ) from error
        image = find_layout(builder.info, any_shape=any_shape).image
        host = _unreachable_host(builder.url_infos or ())
        if host:
            reason = f"{host} cannot be reached to download it"
            raise _not_prepared(name, data_dir, any_shape, reason)
        _encode_with_pil(builder.info.features[image])
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
            stack.callback(tfds.enable_progress_bar)
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # builders raise whatever their own code runs into
            reason = f"TFDS cannot prepare it: {in_words(error)}"
            raise _not_prepared(name, data_dir, any_shape, reason) from error
    return Path(builder.data_dir)


def _prepared_instead(name: Name, data_dir: Path) -> str:
    prepared = sorted(str(variant) for variant, _ in variants(name.name, data_dir))
    return f" Prepared in {data_dir}: {', '.join(prepared)}." if prepared else ""


def _unknown(name: Name, data_dir: Path, known: list[str]) -> DatasetError:
    on_disk = [path.parent.name for path in data_dir.glob("*/*/")]
    names = sorted({"digits", *known, *on_disk})
    nearest = difflib.get_close_matches(name.name.lower(), names)
    return DatasetError(
        f"There is no dataset {name.name!r}, neither prepared in {data_dir} nor "
        f"among the {len(known)} that TFDS can prepare. "
        + (f"Did you mean {' or '.join(map(repr, nearest))}? " if nearest else "")
        + "The embedded dataset 'digits' always works."
    )


def _not_prepared(
    name: Name, data_dir: Path, any_shape: bool, reason: str
) -> DatasetError:
    directory = data_dir if data_dir.is_dir() else f"{data_dir} (which does not exist)"
    quoted, place = json.dumps(str(name)), json.dumps(str(data_dir))
    stream = ", stream=True" if any_shape else ""
    ours = f"from snipjax import data; data.load({quoted}, {place}{stream})"
    theirs = (
        f"import tensorflow_datasets as tfds; tfds.builder({quoted}, "
        f'data_dir={place}).download_and_prepare(file_format="array_record")'
    )
    return DatasetError(
        f"The dataset {str(name)!r} is not prepared in {directory}, and {reason}."
        + _prepared_instead(name, data_dir)
        + "\nTo prepare it, run this where there is a network, and copy the directory "
        f"{data_dir / name.name} from there if that is another machine:\n"
        f"  python -c {shlex.quote(ours)}\n"
        "or, in an environment with TensorFlow, which some datasets need for this:\n"
        f"  python -c {shlex.quote(theirs)}\n"
        "If it is prepared elsewhere, give that TFDS data directory as data_dir. To do "
        "without it, use the embedded dataset 'digits'."
    )


def _unreachable_host(urls: Iterable[str]) -> str | None:
    """Returns the host of the first of the URLs, unless it answers within seconds.

    TFDS itself would retry for minutes, both without an answer and with the answer of
    a proxy for a dead host. The thread is there because looking up a name has no
    timeout.
    """
    import requests

    answers = []

    def ask(url: str) -> None:
        with contextlib.suppress(requests.RequestException):
            answers.append(requests.head(url, timeout=_PROBE_SECONDS).status_code)

    for url in [url for url in urls if url.startswith("http")][:1]:
        thread = threading.Thread(target=ask, args=(url,), daemon=True)
        thread.start()
        thread.join(_PROBE_SECONDS)
        if not set(answers) - {500, 502, 503, 504}:
            return urllib.parse.urlsplit(url).netloc
    return None


@contextlib.contextmanager
def _tensorflow_stand_in() -> Iterator[None]:
    """Has TFDS work on files through Python instead of importing TensorFlow.

    TFDS imports TensorFlow when it first uses it, and to prepare MNIST, CIFAR and most
    other images uses nothing of it but functions on local files. Code that needs more
    fails with an AttributeError that names it.
    """
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    gfile = types.SimpleNamespace(
        GFile=open,
        copy=shutil.copyfile,
        exists=os.path.exists,
        glob=glob.glob,
        isdir=os.path.isdir,
        listdir=os.listdir,
        remove=os.remove,
        walk=os.walk,
    )
    stand_in = types.ModuleType("tensorflow")
    vars(stand_in).update(
        compat=types.SimpleNamespace(as_text=os.fsdecode, as_bytes=os.fsencode),
        io=types.SimpleNamespace(gfile=gfile),
    )
    imported = vars(tensorflow)
    before = imported.get("_module")
    imported["_module"] = stand_in
    try:
        yield
    finally:
        imported["_module"] = before
        if before is None:
            del imported["_module"]


def _encode_with_pil(feature: tfds.features.Image) -> None:
    """Has TFDS encode arrays by PIL: it would run a TensorFlow graph for it."""
    from PIL import Image

    encode = feature.encode_example
    encoding = feature.encoding_format or "png"

    def encode_example(image: Any) -> bytes:
        if not isinstance(image, np.ndarray):
            return encode(image)
        buffer = io.BytesIO()
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        # The quality that TensorFlow encodes with; PNG has no use for it.
        Image.fromarray(pixels).save(buffer, encoding, quality=95)
        return encode(buffer.getvalue())

    feature.encode_example = encode_example
