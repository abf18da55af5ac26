"""Says at the end which published weights were there and which were not."""

from __future__ import annotations

from typing import Any

from steerdiff.models.published import PRESETS

from .finding import FOLDER, find


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print two lists."""
    if FOLDER is None:
        return
    found = {name: find(name) for name in PRESETS}
    terminalreporter.section(f"published weights in {FOLDER}")
    for name, path in found.items():
        if path is not None:
            terminalreporter.line(f"tested  {name}: {path}")
    absent = [f"{name} ({', '.join(PRESETS[name].files)})" for name, path in found.items() if path is None]
    terminalreporter.line(f"absent  {'; '.join(absent) or 'none'}")
