"""Distributions hold all that a run needs, and work without the repository."""

import configparser
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import snipjax
from snipjax import config_files

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


class TestConfigs:
    def test_are_the_files_of_the_repository(self) -> None:
        assert config_files.DIRECTORY.resolve() == (ROOT / "configs").resolve()
        for name in config_files.names():
            assert Path(config_files.find(name)).samefile(ROOT / f"configs/{name}.py")

    def test_a_file_in_the_current_directory_comes_before_a_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert config_files.find("table1:quick") != "table1:quick"
        Path("table1").touch()
        assert config_files.find("table1:quick") == "table1:quick"


def test_every_file_of_the_package_is_distributed() -> None:
    distributed = {
        file
        for package, patterns in SETUP["options.package_data"].items()
        for pattern in patterns.split(",")
        for file in ROOT.joinpath(*package.split(".")).glob(pattern.strip())
    }
    files = {
        file
        for directory in (ROOT / "snipjax", ROOT / "snipjax" / "configs")
        for file in directory.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    modules = {
        file
        for file in files
        if file.suffix == ".py" and file.with_name("__init__.py").exists()
    }
    assert files - modules == distributed


def environment(directory: Path, *packages: str) -> Path:
    """A Python with packages and nothing else."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.check_call([python, "-m", "pip", "install", "--quiet", *packages])
    return python


def installed(python: Path) -> set[str]:
    """Names of the packages that a Python has, but those that venv brings."""
    printed = subprocess.check_output([python, "-m", "pip", "freeze"], text=True)
    return {line.partition("=")[0].partition(" ")[0] for line in printed.splitlines()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source distribution of a clone."""
    directory = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, directory / "clone", symlinks=True, ignore=ignored)
    python = environment(directory / "venv", "build")
    dist = directory / "dist"
    subprocess.check_call(
        [python, "-m", "build", "--outdir", dist, directory / "clone"]
    )
    return dist


@pytest.mark.slow
class TestDistributions:
    @pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
    def test_the_base_install_prunes_and_has_few_packages(
        self, kind: str, dist: Path, tmp_path: Path
    ) -> None:
        (file,) = dist.glob(kind)
        assert snipjax.__version__ in file.name
        python = environment(tmp_path / "venv", str(file))
        assert len(installed(python)) <= 12
        code = "import snipjax.saliency as s; print(s.snip)"
        subprocess.check_call([python, "-c", code], cwd=tmp_path)
        output = subprocess.run(
            [python, "-m", "snipjax.train"], capture_output=True, text=True
        )
        assert output.returncode == 2
        assert output.stderr.endswith("pip install 'snipjax[train]'\n")

    def test_the_extra_trains_in_an_empty_folder(
        self, dist: Path, tmp_path: Path
    ) -> None:
        (wheel,) = dist.glob("*.whl")
        python = environment(tmp_path / "venv", f"{wheel}[train]")
        (tmp_path / "empty").mkdir()
        printed = subprocess.check_output(
            [python, "-m", "snipjax.train", "--config", "digits_lenet300"],
            cwd=tmp_path / "empty",
            text=True,
        )
        assert "kept 5,061 of 50,610 connections" in printed
        assert sys.prefix not in printed
