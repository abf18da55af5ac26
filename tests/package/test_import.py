"""`import steerdiff` stays light, and its names are found when they are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "torchvision", "open_clip", "lpips", "tyro", "matplotlib", "PIL", "scipy", "tensorboard", "rich")


def run(code: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = run("import sys, steerdiff; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


#: Imports each part first, in processes that share one import of PyTorch, and prints what that imports.
PARTS = """
import os, sys, torch
for part in sys.argv[1:]:
    child = os.fork()
    if not child:
        import steerdiff
        getattr(steerdiff, part)
        print(*sys.modules, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, part
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_parts_import_neither_torchvision_nor_open_clip_nor_lpips() -> None:
    parts = ("samplers", "guidance", "models", "methods", "train")
    lines = run(PARTS, *parts).splitlines()
    for part, loaded in zip(parts, map(str.split, lines), strict=True):
        assert f"steerdiff.{part}" in loaded
        heavy = {"torchvision", "open_clip", "lpips", "tyro", "matplotlib"}
        assert not {name.split(".")[0] for name in loaded} & heavy, part


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
