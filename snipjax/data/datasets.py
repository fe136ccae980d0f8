"""Image-classification datasets as arrays in host memory, split three ways.

``digits`` is embedded in scikit-learn and always works. Any other name is a dataset of
TensorFlow Datasets (TFDS), read from ArrayRecord files, without TensorFlow. It is
decoded once and cached; the next start reads the cache and does not even import TFDS.

    from snipjax.data import datasets

    mnist = datasets.load("mnist")
    mean, std = datasets.mean_and_std(mnist.train.images)
    batch = datasets.standardize(mnist.train.images[:100], mean, std)
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import hashlib
import importlib.metadata
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
import types
import urllib.parse
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

# Workers that decode, and starts from the cache, import neither of these.
if TYPE_CHECKING:
    import chex
    import tensorflow_datasets as tfds

# Held out of the training split where there is nothing else to test on.
TEST_FRACTION = 0.2
_CACHE_LAYOUT = 1
_UNFINISHED = ".unfinished"
_SECONDS_TO_WRITE = 60 * 60  # a file of the cache, at most
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# A worker takes about a second to start and decodes 10,000 small images in that time.
_IMAGES_PER_WORKER = 10_000
_BYTES_PER_CHUNK = 2**22
_PROBE_SECONDS = 4.0


class DatasetError(ValueError):
    """A dataset cannot be loaded. The message says why, and what to do about it."""


class Examples(NamedTuple):
    """Labelled images in host memory.

    Attributes:
      images: uint8 array of shape ``[n, h, w, c]``.
      labels: int32 array of shape ``[n]``, with values in ``[0, num_classes)``.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Images to train on, to choose a checkpoint with, and to report an error on.

    Attributes:
      name: the name the dataset was loaded by.
      train: the examples of the training split that are not held out.
      validation: the examples held out of the training split.
      test: the examples of the test split.
      num_classes: the number of classes.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.images.shape[1:]


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation_fraction: float = 0.1,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Returns an image-classification dataset as arrays.

    ``digits`` is scikit-learn's embedded set of 1,797 images of 8x8 pixels with values
    from 0 to 16. It has no test split, so a fixed fifth (359 images) is held out.

    Any other name is looked up in ``data_dir``, where TFDS keeps the datasets it has
    prepared, and is downloaded and prepared there by TFDS if it is missing. Without a
    version in the name, the newest version in ``data_dir`` is taken. A dataset without
    a test split gives its ``validation`` split as the test split; without either, a
    fixed fifth of its training split. The decoded arrays are cached, and decoded again
    if a file of the dataset changes its size or its time of modification.

    What is held out depends on the number of examples only: the first
    ``round(n * fraction)`` of ``np.random.RandomState(0).permutation(n)``, a stream
    that NumPy has frozen. Both parts keep the order of the original.

    Args:
      name: ``digits``, or a dataset of TFDS as ``name``, ``name/config``,
        ``name:version`` or ``name/config:version``.
      data_dir: the TFDS data directory. By default ``$TFDS_DATA_DIR``, or
        ``~/tensorflow_datasets`` if that is not set.
      validation_fraction: the share of the training split to hold out, in (0, 1).
      cache_dir: where decoded arrays are kept. By default ``$XDG_CACHE_HOME/snipjax``,
        or ``~/.cache/snipjax`` if that is not set.

    Returns:
      The dataset, with uint8 images of one shape and int32 labels.

    Raises:
      DatasetError: a ValueError. The dataset is unknown, cannot be downloaded, is not
        image classification with uint8 images of one shape, or is damaged.
      ValueError: ``validation_fraction`` leaves a part without examples.

    Example:
      >>> digits = load("digits")
      >>> digits.train.images.shape, digits.train.images.dtype
      ((1294, 8, 8, 1), dtype('uint8'))
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}, but it must be between 0 "
            "and 1: the share of the training split to hold out, for example 0.1."
        )
    if name == "digits":
        splits = _cached_digits(_cache_dir(cache_dir))
    else:
        splits = _tfds_splits(_parse(name), _data_dir(data_dir), _cache_dir(cache_dir))
    train, validation = _hold_out(splits.train, validation_fraction)
    return Dataset(name, train, validation, splits.test, splits.num_classes)


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each channel, over all pixels.

    Both are in the units of the images and computed from exact integer sums, a few
    images at a time, so that no copy of all images is made.

    Args:
      images: uint8 array of shape ``[n, h, w, c]``, the training images.

    Returns:
      Two float32 arrays of shape ``[c]``.

    Raises:
      ValueError: there are no images, or they are not uint8 of that shape.

    Example:
      >>> mean, std = mean_and_std(load("digits").train.images)
      >>> mean.shape, mean.dtype
      ((1,), dtype('float32'))
    """
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"images have shape {images.shape} and type {images.dtype}, but a mean "
            "needs uint8 images of shape [n, h, w, c] and at least one of them."
        )
    pixels = np.int64(images[..., 0].size)
    total, squares = 0, 0
    for chunk in np.array_split(images, -(-images.nbytes // _BYTES_PER_CHUNK)):
        # Over the images first: NumPy is slow to sum around a short last axis.
        total += chunk.sum(axis=0, dtype=np.int64).sum(axis=(0, 1))
        squares += np.square(chunk, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    squares = squares.sum(axis=(0, 1))
    mean = total / pixels
    variance = (squares - total * mean) / pixels
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def standardize(images: chex.Array, mean: chex.Array, std: chex.Array) -> chex.Array:
    """Returns images with every channel shifted by its mean and divided by its std.

    A pure function of arrays of NumPy or JAX, to be called on a batch under ``jit``. A
    channel that is constant (std 0) is only shifted.

    Args:
      images: array of shape ``[..., h, w, c]``, of any numeric type.
      mean: float32 array of shape ``[c]``.
      std: float32 array of shape ``[c]``.

    Returns:
      A float32 array of the shape of ``images``.

    Example:
      >>> images = load("digits").train.images
      >>> mean, std = mean_and_std(images)
      >>> abs(float(standardize(images, mean, std).mean())) < 1e-5
      True
    """
    return (images.astype(np.float32) - mean) / (std + (std == 0))


class _Splits(NamedTuple):
    train: Examples
    test: Examples
    num_classes: int


def hold_out(total: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of examples that stay and of those held out, both sorted.

    The rule is that of :func:`load`.

    Args:
      total: how many examples there are.
      fraction: the share of them to hold out.

    Returns:
      Two int64 arrays that together have each of ``range(total)`` once.

    Raises:
      ValueError: if one of them would be empty.

    Example:
      >>> stay, held = hold_out(5, 0.4)
      >>> stay.tolist(), held.tolist()
      ([1, 3, 4], [0, 2])
    """
    held = round(total * fraction)
    if not 0 < held < total:
        raise ValueError(
            f"Holding out a share of {fraction} of {total} examples takes {held} of "
            "them, which leaves a part empty. Choose another validation_fraction."
        )
    order = np.random.RandomState(0).permutation(total)
    return np.sort(order[held:]), np.sort(order[:held])


def _hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    kept, out = hold_out(len(examples.labels), fraction)
    return (
        Examples(examples.images[kept], examples.labels[kept]),
        Examples(examples.images[out], examples.labels[out]),
    )


def _cached_digits(cache_dir: Path) -> _Splits:
    # Importing scikit-learn takes a second.
    fingerprint = f"{_CACHE_LAYOUT} {importlib.metadata.version('scikit-learn')}"
    return _cached(cache_dir / "digits.npz", fingerprint, _digits)


def _digits() -> _Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    train, test = _hold_out(Examples(images, labels), TEST_FRACTION)
    return _Splits(train, test, num_classes=10)


# ------------------------------------------------------------ finding a dataset on disk


class _Wanted(NamedTuple):
    name: str
    config: str | None
    version: str | None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")


def _parse(name: str) -> _Wanted:
    pattern = r"(\w+)(?:/([\w.\-]+))?(?::(\d+\.\d+\.\d+))?"
    match = re.fullmatch(pattern, str(name), re.ASCII)
    if not match:
        raise DatasetError(
            f"{name!r} is not the name of a dataset. Give 'digits', or a dataset of "
            "TFDS as 'mnist', 'mnist:3.0.1', 'emnist/balanced' or "
            "'emnist/balanced:3.1.0'."
        )
    return _Wanted(*match.groups())


def _data_dir(given: str | os.PathLike[str] | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given or default).expanduser().absolute()


def _cache_dir(given: str | os.PathLike[str] | None) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "snipjax"
    return Path(given or default).expanduser().absolute()


def _tfds_splits(wanted: _Wanted, data_dir: Path, cache_dir: Path) -> _Splits:
    directory = _prepared_directory(wanted, data_dir)
    if directory is None:
        directory = _download_and_prepare(wanted, data_dir, _layout, "datasets.load")
    return _cached_tfds(wanted.name, directory, cache_dir)


def images_of_tfds(
    name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[Path, tfds.core.DatasetInfo, Layout]:
    """Returns where a dataset of TFDS lies, and what it says about itself.

    Unlike those that :func:`load` takes, its images may have different sizes.

    Args:
      name: as for :func:`load`.
      data_dir: as for :func:`load`.

    Returns:
      Its directory, its info, and where the images and labels are in its records.

    Raises:
      DatasetError: as :func:`load`.
    """
    wanted, root = _parse(name), _data_dir(data_dir)
    directory = _prepared_directory(wanted, root)
    if directory is None:
        directory = _download_and_prepare(wanted, root, layout, "streams.open")
    info = open_tfds(directory).info
    return directory, info, layout(info)


def _prepared_directory(wanted: _Wanted, data_dir: Path) -> Path | None:
    """Where the newest version of the dataset wanted is, found without TFDS."""
    root = data_dir / wanted.name
    config = wanted.config or _default_config(root)
    found = {
        version: directory
        for found_config, version, directory in _prepared_variants(root)
        if found_config == config and wanted.version in (None, version)
    }
    newest = max(found, key=lambda v: [int(part) for part in v.split(".")], default="")
    return found.get(newest)


def _prepared_variants(root: Path) -> Iterator[tuple[str | None, str, Path]]:
    """Config, version and directory of every variant that TFDS has prepared."""
    for features in (*root.glob("*/features.json"), *root.glob("*/*/features.json")):
        directory = features.parent
        config = None if directory.parent == root else directory.parent.name
        if re.fullmatch(r"\d+\.\d+\.\d+", directory.name, re.ASCII):
            yield config, directory.name, directory


def _default_config(root: Path) -> str | None:
    """The config that TFDS takes if none is named, as it noted when preparing one."""
    try:
        noted = json.loads((root / ".config" / "metadata.json").read_text())
        return noted["default_config_name"]
    except (OSError, ValueError, KeyError):
        return None


# ----------------------------------------------------------------------------- decoding


class Layout(NamedTuple):
    """Where the images and labels of a TFDS dataset are.

    Attributes:
      image: the key of the image in a record.
      label: the key of the label in a record.
      shape: height, width and channels of an image; None for those that differ.
      num_classes: the number of classes.
    """

    image: str
    label: str
    shape: tuple[int | None, int | None, int]
    num_classes: int


def _decode(directory: Path) -> _Splits:
    builder = open_tfds(directory)
    layout = _layout(builder.info)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    if "train" not in sizes:
        raise DatasetError(
            f"{builder.info.full_name} has no split named 'train', only "
            f"{sorted(sizes)}. snipjax needs one to prune and train on."
        )
    test = next((name for name in ("test", "validation") if name in sizes), None)
    with _parallel_map(sum(sizes.get(name, 0) for name in ("train", test))) as mapped:
        decode = functools.partial(_decode_split, directory, layout, mapped)
        train = decode("train", sizes["train"])
        if test is not None:
            return _Splits(train, decode(test, sizes[test]), layout.num_classes)
    return _Splits(*_hold_out(train, TEST_FRACTION), layout.num_classes)


def open_tfds(directory: Path) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a dataset that is prepared in ArrayRecord files."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # whatever reading damaged JSON ends in
        raise _damaged("The dataset", directory, error) from error
    formats = [known.value for known in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise DatasetError(
            f"{directory} is in {' and '.join(formats)} format, but snipjax reads "
            "array_record, which needs no TensorFlow. The converter does need it, so "
            "convert in an environment of its own:\n"
            "  pip install tensorflow apache-beam tensorflow-datasets "
            "importlib_resources\n"
            "  python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={shlex.quote(str(directory))} "
            "--out_file_format=array_record"
        )
    return builder


def _damaged(what: str, directory: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{what} in {directory} cannot be read: {in_words(error)}. "
        "Delete that directory and prepare the dataset again."
    )


def in_words(error: Exception) -> str:
    """Returns what an error says and of which type it is, for a longer message."""
    return f"{type(error).__name__}: {str(error).strip()}".rstrip(" .:")


def _layout(info: tfds.core.DatasetInfo) -> Layout:
    """The layout of images that fit in one array."""
    found = layout(info)
    if None in found.shape:
        reason = (
            f"its images have the shape {found.shape}, not one fixed shape "
            "(what can read those: --config.dataset.stream=True "
            "--config.dataset.image_size=64)"
        )
        raise _not_images(info, reason)
    return found


def layout(info: tfds.core.DatasetInfo) -> Layout:
    """Returns the layout; raises a `DatasetError` if it is no image classification."""
    import tensorflow_datasets as tfds

    refuse = functools.partial(_not_images, info)

    def only(feature_type: type, position: int) -> str:
        keys = [k for k in features if isinstance(features[k], feature_type)]
        if info.supervised_keys and len(info.supervised_keys) == 2:
            keys = [key for key in keys if key == info.supervised_keys[position]]
        if len(keys) != 1:
            raise refuse("it takes one image as the input and one class as the target")
        return keys[0]

    features = info.features or {}
    image_key = only(tfds.features.Image, 0)
    label_key = only(tfds.features.ClassLabel, 1)
    image, label = features[image_key], features[label_key]
    if image.np_dtype != np.uint8 or image.shape[-1] not in PIL_MODES:
        raise refuse("its images are not uint8 with 1, 3 or 4 channels")
    if not label.num_classes:
        raise refuse("it does not say how many classes it has")
    return Layout(image_key, label_key, image.shape, label.num_classes)


def _not_images(info: tfds.core.DatasetInfo, reason: str) -> DatasetError:
    return DatasetError(
        f"{info.full_name} is not an image-classification dataset that snipjax "
        f"can load: {reason}. It has the features {dict(info.features or {})} and "
        f"the supervised keys {info.supervised_keys}."
    )


@contextlib.contextmanager
def _parallel_map(images: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over as many processes as pay off for so many images.

    Threads do not: for small images most of the time goes to Python code under its
    lock. The processes of loky, unlike those of `multiprocessing`, neither run the
    user's main module again nor inherit JAX's threads.
    """
    import loky

    workers = min(loky.cpu_count(), images // _IMAGES_PER_WORKER)
    if workers < 2:
        yield map
        return
    with loky.ProcessPoolExecutor(
        workers, initializer=exit_with_parent, initargs=(os.getpid(),)
    ) as pool:
        yield pool.map


def exit_with_parent(parent: int) -> None:
    """Ends a worker whose parent was killed, which loky would leave waiting forever.

    The parent names itself: a worker that starts after its death would take the
    process that adopted it for the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_split(
    directory: Path,
    layout: Layout,
    mapped: Callable[..., Iterable[Examples]],
    split: str,
    total: int,
) -> Examples:
    images = np.empty((total, *layout.shape), np.uint8)
    labels = np.empty(total, np.int32)
    step = min(2000, _BYTES_PER_CHUNK // math.prod(layout.shape) + 1)
    chunks = [slice(i, min(i + step, total)) for i in range(0, total, step)]
    decode = functools.partial(_decode_chunk, directory, split)
    for chunk, examples in zip(chunks, mapped(decode, chunks), strict=True):
        images[chunk], labels[chunk] = examples
    return Examples(images, labels)


def _decode_chunk(directory: Path, split: str, chunk: slice) -> Examples:
    import tensorflow_datasets as tfds

    builder = open_tfds(directory)
    layout = _layout(builder.info)
    indices = range(chunk.start, chunk.stop)
    images = np.empty((len(indices), *layout.shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    index = chunk.start
    try:
        source = builder.as_data_source(
            split,
            decoders={layout.image: tfds.decode.SkipDecoding()},
            file_format="array_record",
        )
        for index, record in zip(indices, _records(source, indices), strict=True):
            images[index - chunk.start] = _pixels(record[layout.image], layout.shape)
            labels[index - chunk.start] = _class(record[layout.label], layout)
    except Exception as error:  # the reader and PIL raise many kinds
        raise _damaged(f"Example {index} of {split!r}", directory, error) from error
    return Examples(images, labels)


def _records(source: Sequence[Any], indices: range) -> Iterable[dict[str, Any]]:
    try:
        return source.__getitems__(list(indices))  # several times faster than singly
    except Exception:  # one by one, the caller learns which of them it is
        return (source[index] for index in indices)


def _pixels(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    with Image.open(io.BytesIO(encoded)) as image:
        if image.size != (width, height):
            raise ValueError(f"it is {image.height} by {image.width}, not {shape}")
        if image.mode != PIL_MODES[channels]:
            return np.asarray(image.convert(PIL_MODES[channels])).reshape(shape)
        return np.asarray(image).reshape(shape)


def _class(label: int, layout: Layout) -> int:
    if not 0 <= label < layout.num_classes:
        raise ValueError(f"its label is {label}, not in [0, {layout.num_classes})")
    return label


# ------------------------------------------------------------------------------ caching


def _cached_tfds(name: str, directory: Path, cache_dir: Path) -> _Splits:
    """The decoded dataset, from the cache if its files have not changed since."""
    place = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    file = cache_dir / f"{name}-{directory.name}-{place}.npz"
    decode = functools.partial(_decode, directory)
    return _cached(file, _fingerprint(directory), decode)


def _cached(file: Path, fingerprint: str, decode: Callable[[], _Splits]) -> _Splits:
    splits = _read_cache(file, fingerprint)
    if splits is None:
        splits = decode()
        try:
            _write_cache(file, fingerprint, splits)
        except OSError as error:
            warnings.warn(
                f"The decoded dataset cannot be cached in {file.parent} ({error}), so "
                "every start will decode it again. Choose a cache_dir to write to.",
                stacklevel=4,
            )
    return splits


def _fingerprint(directory: Path) -> str:
    """Changes with the files of a dataset, as far as sizes and times tell."""
    files = sorted(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in directory.iterdir()
    )
    return hashlib.sha256(json.dumps([_CACHE_LAYOUT, files]).encode()).hexdigest()


def _write_cache(file: Path, fingerprint: str, splits: _Splits) -> None:
    """Writes beside the final name and renames, so that no reader sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(file)
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=file.stem, suffix=_UNFINISHED, delete=False
    ) as unfinished:
        try:
            np.savez(
                unfinished,
                fingerprint=fingerprint,
                num_classes=splits.num_classes,
                train_images=splits.train.images,
                train_labels=splits.train.labels,
                test_images=splits.test.images,
                test_labels=splits.test.labels,
            )
            unfinished.close()
            Path(unfinished.name).replace(file)
        except BaseException:
            Path(unfinished.name).unlink()
            raise


def _remove_abandoned(file: Path) -> None:
    """Removes what a killed process has left of a file, some time ago."""
    for unfinished in file.parent.glob(f"{glob.escape(file.stem)}*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another process may be as fast
            if time.time() - unfinished.stat().st_mtime > _SECONDS_TO_WRITE:
                unfinished.unlink()


def _read_cache(file: Path, fingerprint: str) -> _Splits | None:
    """The arrays of an intact and current file of the cache, None for any other."""
    try:
        with zipfile.ZipFile(file) as archive:
            if _read_array(archive, "fingerprint") != fingerprint:
                return None
            read = functools.partial(_read_array, archive)
            return _Splits(
                Examples(read("train_images"), read("train_labels")),
                Examples(read("test_images"), read("test_labels")),
                int(read("num_classes")),
            )
    except Exception:  # damage to a file shows up as almost any exception
        return None


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end, where the checksum is compared
    return array


# --------------------------------------------------- downloading what is not on disk


def _download_and_prepare(
    wanted: _Wanted,
    data_dir: Path,
    layout: Callable[[tfds.core.DatasetInfo], Layout],
    function: str,
) -> Path:
    """Has TFDS prepare the dataset that a function wants; returns its directory."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if wanted.name not in known:
        raise _unknown(wanted, data_dir, known)
    with _tensorflow_stand_in(), contextlib.redirect_stdout(sys.stderr):
        builder = _builder(wanted, data_dir)
        image = layout(builder.info).image
        host = _unreachable_host(builder.url_infos or ())
        if host:
            reason = f"{host} cannot be reached to download it"
            raise _not_prepared(wanted, data_dir, function, reason)
        _encode_with_pil(builder.info.features[image])
        try:
            with _progress_on_terminals_only():
                builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # builders raise whatever their own code runs into
            reason = f"TFDS cannot prepare it: {in_words(error)}"
            raise _not_prepared(wanted, data_dir, function, reason) from error
    return Path(builder.data_dir)


def _builder(wanted: _Wanted, data_dir: Path) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        configs = list(tfds.builder_cls(wanted.name).builder_configs)
        if wanted.config in (None, *configs):
            return tfds.builder(str(wanted), data_dir=data_dir)
    except Exception as error:  # a version it has not, an import it needs, ...
        reason = in_words(error.__cause__ or error)
        raise DatasetError(
            f"TFDS cannot set up {str(wanted)!r}: {reason}."
            + _prepared_instead(wanted, data_dir)
        ) from error
    nearest = difflib.get_close_matches(wanted.config, configs, n=10, cutoff=0)
    raise DatasetError(
        f"{wanted.name} has no config {wanted.config!r} in TFDS. "
        + (f"It has {', '.join(nearest)}." if nearest else "It has no configs.")
        + _prepared_instead(wanted, data_dir)
    )


def _prepared_instead(wanted: _Wanted, data_dir: Path) -> str:
    variants = sorted(
        str(_Wanted(wanted.name, config, version))
        for config, version, _ in _prepared_variants(data_dir / wanted.name)
    )
    return f" Prepared in {data_dir}: {', '.join(variants)}." if variants else ""


def _unknown(wanted: _Wanted, data_dir: Path, known: list[str]) -> DatasetError:
    on_disk = [path.parent.name for path in data_dir.glob("*/*/")]
    names = sorted({"digits", *known, *on_disk})
    nearest = difflib.get_close_matches(wanted.name.lower(), names)
    return DatasetError(
        f"There is no dataset {wanted.name!r}, neither prepared in {data_dir} nor "
        f"among the {len(known)} that TFDS can prepare. "
        + (f"Did you mean {' or '.join(map(repr, nearest))}? " if nearest else "")
        + "The embedded dataset 'digits' always works."
    )


def _not_prepared(
    wanted: _Wanted, data_dir: Path, function: str, reason: str
) -> DatasetError:
    """One message with the dataset, where it was looked for, the cause and the cure."""
    directory = data_dir if data_dir.is_dir() else f"{data_dir} (which does not exist)"
    ours = (
        f"from snipjax import {function.partition('.')[0]}; "
        f"{function}({json.dumps(str(wanted))}, {json.dumps(str(data_dir))})"
    )
    theirs = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({json.dumps(str(wanted))}, data_dir={json.dumps(str(data_dir))})"
        '.download_and_prepare(file_format="array_record")'
    )
    return DatasetError(
        f"The dataset {str(wanted)!r} is not prepared in {directory}, and {reason}."
        + _prepared_instead(wanted, data_dir)
        + "\nTo prepare it, run this where there is a network, and copy the directory "
        f"{data_dir / wanted.name} from there if that is another machine:\n"
        f"  python -c {shlex.quote(ours)}\n"
        "or, in an environment with TensorFlow, which some datasets need for this:\n"
        f"  python -c {shlex.quote(theirs)}\n"
        "If it is prepared elsewhere, give that TFDS data directory as data_dir. To do "
        "without it, use the embedded dataset 'digits'."
    )


def _unreachable_host(urls: Iterable[str]) -> str | None:
    """The host of the first of the URLs, unless it answers within seconds.

    TFDS itself would retry for minutes, without an answer and with those of a proxy for
    a dead host. The thread is there because looking up a name has no timeout.
    """
    import requests

    url = next((url for url in urls if url.startswith("http")), None)
    if url is None:
        return None
    answers = []

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            answers.append(requests.head(url, timeout=_PROBE_SECONDS).status_code)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    retried = {500, 502, 503, 504}
    return None if set(answers) - retried else urllib.parse.urlsplit(url).netloc


@contextlib.contextmanager
def _tensorflow_stand_in() -> Iterator[None]:
    """Has TFDS work on files through Python instead of importing TensorFlow.

    TFDS imports TensorFlow when it first uses it, and to prepare MNIST, CIFAR and most
    other images uses nothing of it but functions on local files. What needs more fails
    with an AttributeError that names it.
    """
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    stand_in = types.ModuleType("tensorflow")
    stand_in.compat = types.SimpleNamespace(as_text=os.fsdecode, as_bytes=os.fsencode)
    stand_in.io = types.SimpleNamespace(
        gfile=types.SimpleNamespace(
            GFile=open,
            copy=shutil.copyfile,
            exists=os.path.exists,
            glob=glob.glob,
            isdir=os.path.isdir,
            listdir=os.listdir,
            remove=os.remove,
            walk=os.walk,
        )
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


@contextlib.contextmanager
def _progress_on_terminals_only() -> Iterator[None]:
    import tensorflow_datasets as tfds

    if sys.stderr.isatty():
        yield
        return
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
