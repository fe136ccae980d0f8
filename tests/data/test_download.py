"""Datasets that are not on disk: prepared by TFDS, or refused with the remedy."""

import ast
import functools
import gzip
import hashlib
import http.server
import shlex
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from snipjax import data
from snipjax.data import download, memory
from tests.data import builders
from tests.data.builders import refused


class Downloaded(tfds.core.GeneratorBasedBuilder):
    """Downloads, unpacks and encodes like the MNIST of TFDS, from a test server."""

    name = "snipjax_downloaded"
    VERSION = tfds.core.Version("1.0.0")
    URL = ""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(builders.image_and_label((5, 4, 1)))
        keys = ("image", "label")
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=keys
        )

    def _split_generators(self, dl_manager: Any) -> dict:
        path = dl_manager.download_and_extract(self.URL)
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path: Any) -> Iterator[tuple[int, dict]]:
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        with tf.io.gfile.GFile(path, "rb") as file:
            pixels = np.frombuffer(file.read(), np.uint8).reshape(-1, 5, 4, 1)
        for i, image in enumerate(pixels):
            yield i, {"image": image, "label": i % 3}


def offer(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes = b"") -> None:
    checksum = hashlib.sha256(content).hexdigest()
    info = tfds.core.download.checksums.UrlInfo(
        size=len(content), checksum=checksum, filename=Path(url).name
    )
    monkeypatch.setattr(Downloaded, "URL", url)
    monkeypatch.setattr(Downloaded, "url_infos", {url: info})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server for the directory ``web``; its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """The output of the tests is no place for its log."""

    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class TestDownloading:
    def test_a_missing_dataset_is_prepared_without_tensorflow(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        images = builders.examples(30, shape=(5, 4, 1)).images
        content = gzip.compress(images.tobytes())
        (tmp_path / "web" / "images.gz").write_bytes(content)
        offer(monkeypatch, f"{server}/images.gz", content)
        loaded = data.load("snipjax_downloaded", tmp_path / "new" / "data")
        everything = builders.joined(*loaded[1:4])
        found = {(image.tobytes(), label) for image, label in everything}
        assert found == {(image.tobytes(), i % 3) for i, image in enumerate(images)}
        assert "tensorflow" not in sys.modules
        assert "it/s" not in capfd.readouterr().err

        monkeypatch.setattr(Downloaded, "URL", "http://127.0.0.1:1/gone")
        monkeypatch.setattr(memory, "in_memory", pytest.fail)
        data.load("snipjax_downloaded", tmp_path / "new" / "data")

    def test_a_failed_download_says_why_and_how_to_do_it_elsewhere(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offer(monkeypatch, f"{server}/missing.gz")
        with refused("HTTP code: 404") as failed:
            data.load("snipjax_downloaded", tmp_path)
        assert "python -c" in str(failed.value)
        assert "'digits'" in str(failed.value)


class TestNoNetwork:
    """One message says all, and TFDS does not retry for minutes."""

    @pytest.mark.parametrize(
        ("network", "stream"),
        [("refuses", False), ("swallows", False), ("finds no names", True)],
    )
    def test_has_one_message_with_two_commands(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        network: str,
        stream: bool,
    ) -> None:
        tested = threading.Event()

        def look_up(url: str, timeout: float) -> None:
            tested.wait()
            raise requests.ConnectionError

        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            if network == "swallows":
                silent.listen()
            if network == "finds no names":  # which has no timeout
                monkeypatch.setattr(requests, "head", look_up)
            if network != "refuses":
                monkeypatch.setattr(download, "_PROBE_SECONDS", 0.1)
            offer(monkeypatch, f"http://{host}/images.gz")
            with pytest.raises(data.DatasetError) as missing:
                data.load("snipjax_downloaded", tmp_path / "nowhere", stream=stream)
        tested.set()
        message = str(missing.value)
        assert "'snipjax_downloaded' is not prepared in" in message
        assert f"{tmp_path / 'nowhere'} (which does not exist)" in message
        assert f"{host} cannot be reached" in message
        assert "embedded dataset 'digits'" in message
        ours, theirs = (
            shlex.split(line) for line in message.splitlines() if line[0] == " "
        )
        for command in (ours, theirs):
            assert command[:2] == ["python", "-c"]
            assert str(tmp_path / "nowhere") in command[2]
            ast.parse(command[2])
        assert ("stream=True" in ours[2]) == stream
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize(("status", "reachable"), [(503, False), (404, True)])
    def test_may_have_a_proxy_that_answers_for_a_dead_host(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        status: int,
        reachable: bool,
    ) -> None:
        offer(monkeypatch, "http://127.0.0.1:1/images.gz")
        response = types.SimpleNamespace(status_code=status)
        monkeypatch.setattr(requests, "head", lambda url, timeout: response)
        monkeypatch.setattr(Downloaded, "download_and_prepare", lambda *_, **__: 1 / 0)
        reason = "ZeroDivisionError" if reachable else "127.0.0.1:1 cannot be reached"
        with refused(reason):
            data.load("snipjax_downloaded", tmp_path)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("MNIST", "'mnist'"),
            ("cifar_10", "'cifar10'"),
            ("digit", "'digits'"),
            ("tinny", "'tiny'"),
            ("qqqq", "'digits' always works"),
        ],
    )
    def test_an_unknown_one_gets_the_nearest(
        self, data_dir: Path, name: str, message: str
    ) -> None:
        with refused(f"no dataset '{name}'.*{message}"):
            data.load(name, data_dir, stream=True)

    @pytest.mark.parametrize(
        "name", ["", "a b", "kaggle:x", "../tiny", "tiny:1", "a/b/c", "/data/photos"]
    )
    def test_another_form_is_refused_with_the_right_ones(self, name: str) -> None:
        with refused("is not the name of a dataset.*folder:/path"):
            data.load(name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("emnist/ballanced", r"cannot set up 'emnist/ballanced'.*balanced"),
            ("mnist/x", r"cannot set up 'mnist/x'.*x not found"),
            ("mnist:1.0.0", r"at version 1\.0\.0.*Prepared in .*mnist:3\.0\.1"),
            ("coco", r"cannot set up 'coco'.*tensorflow"),
            ("imagenet2012", "not one fixed shape"),
        ],
    )
    def test_a_dataset_that_cannot_be_is_not_downloaded(
        self, tmp_path: Path, name: str, message: str
    ) -> None:
        prepared = tmp_path / "mnist" / "3.0.1" / "features.json"
        prepared.parent.mkdir(parents=True)
        prepared.touch()
        with refused(message):
            data.load(name, tmp_path)
        assert list(tmp_path.iterdir()) == [tmp_path / "mnist"]
