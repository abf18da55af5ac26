"""The list of published weights, as a table in the terminal and as the tables of ``docs/weights.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerdiff.models.published import Preset

__all__ = ["load_line", "rows", "sample_line", "tables"]

_TITLES = {
    "adm": "guided-diffusion",
    "iddpm": "improved-diffusion",
    "ilvr": "ILVR",
    "p2": "P2 weighting",
    "repaint": "RePaint",
    "ddpm": "DDPM in the layout of ermongroup (SDEdit, DiffusionCLIP, Asyrp)",
    "sd": "Stable Diffusion",
    "ldm": "latent diffusion",
    "clip": "CLIP",
}


def load_line(name: str, preset: Preset) -> str:
    """Return the line of Python that loads a published checkpoint."""
    file = preset.files[0].split(" of ")[0].split(": ")[-1]
    needs_no_name = name.startswith("sd-1") and "inpainting" not in name
    config = "" if needs_no_name else f', "{name}"'
    more = ", ema=True" if preset.sampling.get("ema") else ""
    return f'steerdiff.load("{file}"{config}{more})'


def sample_line(preset: Preset) -> str:
    """Return the line of Python that samples from it."""
    model = preset.model
    given = []
    if model.unet is None:
        return "`model(x, t)`" if model.classifier is not None else "`model.image_features(image)`"
    if model.text is not None and model.null_class is None:
        given.append('"an astronaut"')
    if model.unet.num_classes is not None or model.null_class is not None:
        given.append("y=207")
    maker = {
        "low_res": "low_res_input(small)",
        "inpainting": "inpainting_input(image, mask)",
        "depth": "depth_input(depth)",
    }.get(model.inputs)
    if maker is not None:
        given.append(f"extra=model.{maker}")
    return f"`model.sample({', '.join(given)})`"


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield name, description and published files of every preset."""
    from steerdiff.models.published import PRESETS

    for name, preset in PRESETS.items():
        yield name, preset.description, ", ".join(preset.files)


def tables() -> str:
    """Return Markdown: each published checkpoint with the line that loads it and the line that samples."""
    from steerdiff.models.published import PRESETS

    lines: list[str] = []
    for prefix, title in _TITLES.items():
        lines += [f"## {title}", "", "| preset | what | published as | model | then | licence |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for name, preset in PRESETS.items():
            if name.split("-")[0] == prefix:
                files = ", ".join(f"`{file}`" for file in preset.files)
                licence = preset.licence or "see its authors"
                line = f"| `{name}` | {preset.description} | {files} "
                lines.append(f"{line}| `{load_line(name, preset)}` | {sample_line(preset)} | {licence} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"
