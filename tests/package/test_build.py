"""The wheel, the source archive and what they put where."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

COPIED = ("models", "samplers", "guidance", "methods", "train", "scripts", "assets", "src", "docs", "tests")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "Makefile")

pytestmark = pytest.mark.slow


def run(*command: str, at: Path) -> None:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A clean copy of the repository with its links, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "golden")
    for name in COPIED:
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignore)
    for name in FILES:
        if (root / name).exists():  # README.md is not there in the first commits
            shutil.copy(root / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    code = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    run(sys.executable, "-c", code, at=checkout)
    return next((checkout / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel made from the source archive: what is missing there would be missing here."""
    out = sdist.parent / "wheel"
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q")
    run(*pip, "-w", str(out), str(sdist), at=sdist.parent)
    return next(out.glob("*.whl"))


def test_the_wheel_puts_only_steerdiff_at_the_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top.split("-")[0] for top in tops} == {"steerdiff"}
    assert all(top == "steerdiff" or top.endswith(".dist-info") for top in tops)


def test_the_wheel_holds_every_module_and_all_data(wheel: Path, checkout: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "steerdiff/py.typed" in names
    for part in ("models", "samplers", "guidance", "methods", "train", "scripts", "assets"):
        suffixes = {".py", ".cu", ".cuh", ".h", ".cpp", ".sh"}
        for path in (checkout / part).rglob("*"):
            if path.is_file() and (part == "assets" or path.suffix in suffixes):
                assert f"steerdiff/{path.relative_to(checkout)}" in names


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "steerdiff = steerdiff.scripts.cli:main" in archive.read(entry).decode()


def test_the_source_archive_holds_the_tests_and_the_documents(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"tests/conftest.py", "tests/package/test_build.py", "CHANGELOG.md", "NOTICE", "Makefile"} <= names
    assert "models/__init__.py" in names or "src/steerdiff/models/__init__.py" in names


def test_a_checkout_without_links_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(checkout, plain, symlinks=True, ignore=shutil.ignore_patterns("dist", "build", "*.egg-info"))
    for link in (plain / "src" / "steerdiff").iterdir():
        if link.is_symlink():
            target = link.readlink()
            link.unlink()
            link.write_text(str(target))  # what git leaves on a system without links
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q")
    run(*pip, "-w", str(tmp_path / "out"), ".", at=plain)
    other = next((tmp_path / "out").glob("*.whl"))
    python = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert {name for name in zipfile.ZipFile(other).namelist() if name.endswith(".py")} == python


def test_an_editable_install_is_a_plain_path(checkout: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q")
    run(*pip, "--target", str(tmp_path), "-e", str(checkout), at=tmp_path)
    path_files = list(tmp_path.glob("*.pth"))
    assert [file.read_text().strip() for file in path_files] == [str(checkout / "src")]
    assert {path.name.split("-")[0] for path in tmp_path.iterdir() if path.is_dir()} <= {"steerdiff", "bin"}
