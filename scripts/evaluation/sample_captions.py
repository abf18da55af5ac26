"""Captions of images: from a file, or from the settings that steerdiff stores in its PNGs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.io import read_settings

from .sample_sources import Source

__all__ = ["captioned", "read_captions"]


def read_captions(path: Path) -> dict[str, str]:
    """Return captions by name; the names of images have no suffix.

    Args:
        path: Lines of ``name<TAB>caption``; or ``.json``: an object of captions by name, or a list of them, whose names
            are then "0", "1", ...

    Raises:
        UserError: The file is missing, of another form, empty, or names an image twice.
    """
    require(path.is_file(), f"{path} is not a file; give lines of name<TAB>caption or a .json")
    text = path.read_text(encoding="utf-8", errors="replace")
    pairs = _from_json(text, path) if path.suffix == ".json" else _from_lines(text, path)
    require(bool(pairs), f"{path} holds no captions; write one name<TAB>caption a line")
    captions: dict[str, str] = {}
    for name, caption in pairs:
        short = _stem(name)
        require(short not in captions, f"{path} names {short!r} twice; leave one out")
        captions[short] = caption
    return captions


def captioned(source: Source, captions: Mapping[str, str] | None) -> tuple[Source, str]:
    """Return a source with a caption for each image, and what stands in the way if it has none (else "").

    Args:
        source: The generated side.
        captions: By name, from a file; None looks into the images' own settings.

    Raises:
        UserError: Captions are given and do not match the images.
    """
    if captions is not None and source.captions is None:
        require(bool(source.names), f"{source.title} has no names that captions could belong to")
        missing = [name for name in source.names if name not in captions]
        lacks = f"{len(missing)} of {source.n} images of {source.title} have no caption, {missing[:1]} for one"
        require(not missing, f"{lacks}; the captions are named {', '.join(list(captions)[:3])}...")
        return dataclasses.replace(source, captions=tuple(captions[name] for name in source.names)), ""
    if source.captions is not None:
        return source, ""
    if not source.paths:
        return source, "needs captions: give --captions FILE"
    texts = []
    for path in source.paths:
        try:
            text = read_settings(path).get("prompt")
        except UserError:
            text = None
        if not isinstance(text, str):
            return source, f"needs captions: {path.name} carries none, give --captions FILE"
        texts.append(text)
    return dataclasses.replace(source, captions=tuple(texts)), ""


def _from_json(text: str, path: Path) -> list[tuple[str, str]]:
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error})") from error
    require(isinstance(values, (dict, list)), f"{path} holds neither an object nor a list of captions")
    pairs = list(values.items()) if isinstance(values, dict) else [(str(i), value) for i, value in enumerate(values)]
    require(all(isinstance(caption, str) for _, caption in pairs), f"{path} holds captions that are no texts")
    return pairs


def _from_lines(text: str, path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            name, tab, caption = line.partition("\t")
            require(bool(tab), f"{path}, line {number} has no tab; write name<TAB>caption")
            pairs.append((name.strip(), caption.strip()))
    return pairs


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0] if name.lower().endswith((".png", ".jpg", ".jpeg", ".webp")) else name
