"""`import steerdiff` stays light, and its names are found when they are asked for."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "torchvision", "open_clip", "lpips", "tyro", "matplotlib", "PIL", "scipy", "tensorboard", "rich")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = run("import sys, steerdiff; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


@pytest.mark.parametrize("part", ["samplers", "guidance", "models", "methods", "train"])
def test_the_parts_import_neither_torchvision_nor_open_clip_nor_lpips(part: str) -> None:
    loaded = run(f"import sys, steerdiff; steerdiff.{part}; print(*sys.modules)").split()
    assert f"steerdiff.{part}" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"torchvision", "open_clip", "lpips", "tyro", "matplotlib"}


def test_importing_takes_little_longer_than_torch() -> None:
    def seconds(module: str) -> float:
        code = f"import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
        return min(float(run(code)) for _ in range(2))

    assert seconds("steerdiff") < 0.2 * seconds("torch") + 0.1


def test_the_public_names_are_there() -> None:
    import steerdiff

    missing = [name for name in steerdiff.__all__ if not hasattr(steerdiff, name)]
    assert missing == []
    assert set(steerdiff.__all__) <= set(dir(steerdiff))


def test_an_unknown_name_is_an_attribute_error() -> None:
    import steerdiff

    with pytest.raises(AttributeError, match="no attribute 'sampler'"):
        _ = steerdiff.sampler


def test_the_module_runs_as_a_command() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "steerdiff", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert time.perf_counter() - start < 20
