"""Building the kernels, without a compiler: what is found, what a failure says, and how the check reads ptxas."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from steerdiff.errors import UserError
from steerdiff.models.kernels import build, choice
from steerdiff.scripts import cuda_check


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sources of its own, an empty cache, a toolkit and ninja that only seem to be there."""
    (tmp_path / "kernels").mkdir()
    for name in ("one.cu", "shared.cuh", "one.h", "binding.cpp"):
        (tmp_path / "kernels" / name).write_text(f"// {name}")
    for tool in ("toolkit/bin/nvcc", "bin/ninja"):
        path = tmp_path / tool
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "kernels")
    monkeypatch.setattr(build, "_path", lambda: str(tmp_path / "bin"))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    for asked_once in (build.failure, build.built):
        asked_once.cache_clear()
    yield tmp_path / "kernels"
    for asked_once in (build.failure, build.built):
        asked_once.cache_clear()


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        "Error building extension 'x'\n[1/3] nvcc ...\none.cu(3): error: expected a ';'\n1 error detected"
    )


def test_what_is_built_is_what_stands_in_the_folder(folder: Path) -> None:
    assert [path.name for path in build.sources()] == ["one.cu", "binding.cpp"]


@pytest.mark.parametrize("name", ["one.cu", "shared.cuh", "one.h", "binding.cpp"])
def test_a_changed_source_is_another_build(folder: Path, name: str) -> None:
    before = build.tag()
    assert build.tag() == before
    (folder / name).write_text("// changed")
    assert build.tag() != before


def test_another_pytorch_or_flag_or_device_is_another_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, place = build.tag(), build._cached()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build._cached() != place
    monkeypatch.setattr(build, "NVCC_FLAGS", ["-O1"])
    flagged = build.tag()
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    assert len({before, flagged, build.tag()}) == 3


def test_without_nvcc_the_reason_names_the_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    reason = build.failure()
    assert reason is not None and "nvcc is not found" in reason and "CUDA_HOME" in reason
    assert build.outlook().startswith("reference: nvcc is not found")


def test_without_ninja_the_reason_names_the_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "bin" / "ninja").unlink()
    assert "pip install ninja" in str(build.failure())


def test_a_device_that_is_too_old_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert build.failure() == "Tesla T4 has compute capability 7.5, and they need 8.0"
    assert build.outlook().startswith("reference: Tesla T4")


def test_a_compiler_s_error_is_the_reason_and_is_met_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "load", refuse)
    reason = build.failure()
    assert reason is not None and "one.cu(3): error: expected a ';'" in reason and "--kernels reference" in reason
    monkeypatch.setattr(cpp_extension, "load", None)  # a second attempt would be another error
    assert build.failure() == reason


def test_a_build_goes_to_the_cache_and_is_loaded_from_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    def load(name: str, sources: list[str], **given: Any) -> None:
        Path(given["build_directory"], f"{name}.so").touch()
        calls.append((sources, given["is_python_module"]))

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.setattr(torch.ops, "load_library", calls.append)
    assert build.outlook().startswith("cuda: will be built on the first use")
    assert build.failure() is None
    library = folder.parent / "cache" / "kernels" / f"{build.tag()}-8.0-9.0PTX" / f"{build.NAME}.so"
    assert calls == [([str(folder / "one.cu"), str(folder / "binding.cpp")], False), str(library)]
    assert build.outlook().startswith("cuda: built on an earlier use")
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.endswith("this takes minutes, once, or choose --kernels reference")
    build.failure.cache_clear()
    assert build.failure() is None and len(caplog.records) == 1  # what is there is not announced


def test_a_library_that_was_built_ahead_of_time_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(cpp_extension, "load", refuse)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    build.ahead_of_time().touch()
    assert build.outlook().startswith("cuda: built ahead of time")
    assert build.failure() is None and loaded == [str(build.ahead_of_time())]


def test_a_library_that_does_not_load_is_a_reason(folder: Path) -> None:
    build.ahead_of_time().write_text("no library")
    assert "building them failed" in str(build.failure())


def test_norms_take_kernels_that_are_there_and_build_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    on_cuda: Any = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(choice, "_state", choice._State(setting="auto"))
    monkeypatch.setattr(cpp_extension, "load", None)
    monkeypatch.setattr(torch.ops, "load_library", lambda _: None)
    assert not choice.at_hand(on_cuda) and not choice.at_hand(torch.zeros(1))
    build.ahead_of_time().touch()
    assert not choice.at_hand(on_cuda)  # what a process takes it keeps
    build.built.cache_clear()
    assert choice.at_hand(on_cuda) and not choice.at_hand(torch.zeros(1))
    with choice.use("reference"):
        assert not choice.at_hand(on_cuda)
    with choice.use("cuda"), pytest.raises(UserError, match="the tensors are on cpu"):
        choice.at_hand(torch.zeros(1))
    assert not recwarn.list


def test_the_status_says_which_kernels_and_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_state", choice._State(setting="auto"))
    assert "PyTorch finds no CUDA device (setting auto)" in choice.status(cuda=False)
    assert "will be built on the first use" in choice.status(cuda=True)
    choice.use("reference")
    assert "(setting reference)" in choice.status(cuda=True)


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_80'
ptxas info    : Function properties for _Z1aPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_90'
ptxas info    : Function properties for _Z1bPf
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_the_report_of_ptxas_is_read() -> None:
    assert list(cuda_check.parse(REPORT)) == [
        cuda_check.Usage("_Z1aPf", "sm_80", 40, 2048, 0),
        cuda_check.Usage("_Z1bPf", "sm_90", 255, 0, 32),
    ]


@pytest.mark.parametrize(
    ("report", "code", "status"), [(REPORT, 0, 1), (REPORT.split("Z1b")[0], 0, 0), ("", 0, 1), ("error: no", 1, 1)]
)
def test_the_check_fails_on_spills_on_errors_and_on_nothing(
    report: str, code: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_check, "compiled", lambda *_: subprocess.CompletedProcess([], code, "", report))
    assert cuda_check.main() == status


def test_without_nvcc_the_check_says_that_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: None)
    assert cuda_check.main() == 0
    assert "SKIPPED, nothing was checked: nvcc is not found" in capsys.readouterr().out


def test_every_source_and_header_ships(root: Path) -> None:
    shipped = (root / "pyproject.toml").read_text().split('"steerdiff.models.kernels" = ')[1].splitlines()[0]
    suffixes = {path.suffix for path in (root / "models" / "kernels").iterdir() if path.is_file()} - {".py", ".so"}
    assert all(f'"*{suffix}"' in shipped for suffix in suffixes)
