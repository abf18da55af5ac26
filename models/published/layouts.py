"""Recognising what a file of weights is, from the names of its tensors alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerdiff.errors import UserError, require
from steerdiff.models.checkpoint import FORMAT
from steerdiff.models.weights import WeightFile

__all__ = ["OWN_KIND", "Layout", "Names", "Part", "own_header", "recognise", "unused"]

#: What the header of our own files calls a published model.
OWN_KIND = "published"

Kind = Literal["own", "adm", "classifier", "ddpm", "compvis", "diffusers", "openclip", "hf-clip", "openai-clip"]

#: How the tensors of a part are named: as ours, or as another project's.
Names = Literal["ours", "ddpm", "diffusers", "diffusers-old", "hf", "hf-bare", "bert"]


@dataclass(frozen=True)
class Part:
    """Where one of our networks lies in a file."""

    prefix: str  #: what stands before its names
    names: Names = "ours"  #: how they go on
    ema: str | None = None  #: prefix of averaged weights, whose names have no dots
    ignores: str = ""  #: regular expression of names that no network here has

    def view(self, file: WeightFile, *, ema: bool = False) -> WeightFile:
        """Return the tensors of this part, less those that no network here has."""
        prefix = self.ema if ema and self.ema is not None else self.prefix
        return file.under(prefix).without(lambda name: re.fullmatch(self.ignores, name) is not None)


@dataclass(frozen=True)
class Layout:
    """What a file is, and which of our networks it holds."""

    kind: Kind  #: whose layout it is
    root: str = ""  #: what stands before everything, of the container that the weights were saved in
    parts: Mapping[str, Part] = field(default_factory=dict)  #: by "unet", "classifier", "autoencoder", "text", "clip"


_STEM = "input_blocks.0.0.weight"
_DIFFUSION, _FIRST, _COND = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
_EMA = "model_ema.diffusion_model"

_AUTOENCODER_IGNORES = r"(loss|model_ema)\..*"
_TEXT_IGNORES = r"(.*\.)?position_ids|logit_scale|attn_mask|to_logits\..*"
_CLIP_IGNORES = r"(.*\.)?position_ids|attn_mask|input_resolution|context_length|vocab_size"
#: Beside the networks of a CompVis file: its tables, averaged weights, and Stable Diffusion 2's estimator of depth.
_IGNORED_AT_ROOT = re.compile(
    r"betas|(sqrt_|log_)?(alphas|one_minus|recip)\w*|sqrt_recipm1\w*|posterior_\w+|logvar|lvlb_weights|scale_factor|"
    r"model_ema\..*|depth_model\..*|cond_stage_model\.(logit_scale|text_projection)"
)
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def recognise(file: WeightFile) -> Layout:
    """Return the layout of a file, or of a folder opened as one.

    Raises:
        UserError: It is none that is known.
    """
    for look in (_own, _compvis, _folder, _adm, _ddpm, _clip):
        layout = look(file)
        if layout is not None:
            return layout
    first = ", ".join(list(file.entries)[:3])
    raise UserError(
        f"{file.path} holds {len(file.entries)} tensors ({first}, ...) in none of the layouts that are known: "
        "guided-diffusion (UNet or classifier), DDPM of ermongroup, CompVis' single file, a folder of diffusers, CLIP "
        "of OpenAI, open_clip or transformers"
    )


def unused(file: WeightFile, layout: Layout) -> list[str]:
    """Return the names that belong to no part of the layout and are none that are known to be superfluous."""
    within = file.under(layout.root)
    prefixes = tuple(part.prefix.removeprefix(layout.root) for part in layout.parts.values())
    if layout.kind in ("compvis", "own"):
        return [name for name in within.entries if not name.startswith(prefixes) and not _at_root(name)]
    return []  # every other layout is one part, or parts that fill their files; filling them reports what is left


def _at_root(name: str) -> bool:
    return _IGNORED_AT_ROOT.fullmatch(name) is not None


def own_header(file: WeightFile) -> dict[str, Any] | None:
    """Return the header of a published model in the library's own format (kind "published"), or None.

    Raises:
        UserError: The header is damaged or of another version.
    """
    text = file.metadata.get("steerdiff")
    if text is None:
        return None
    try:
        header = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file.path} has a damaged steerdiff header ({error}); fetch the file again") from error
    if header.get("kind") != OWN_KIND:
        return None
    version = header.get("format")
    require(version == FORMAT, f"{file.path} has format {version}; this version of steerdiff reads format {FORMAT}")
    is_described = isinstance(header.get("model"), Mapping)
    require(is_described, f"the header of {file.path} does not describe its model; save the file again")
    return header


def _own(file: WeightFile) -> Layout | None:
    header = own_header(file)
    if header is None:
        return None
    names = ("unet", "classifier", "autoencoder", "text", "clip")
    return Layout("own", "", {name: Part(f"{name}.") for name in names if name in header["model"]})


def _compvis(file: WeightFile) -> Layout | None:
    roots = _before(file, _DIFFUSION + _STEM)
    if not roots:
        return None
    root = roots[0]
    names = file.under(root).entries
    ema = root + _EMA if any(name.startswith(_EMA) for name in names) else None
    parts = {"unet": Part(root + _DIFFUSION, ema=ema)}
    if any(name.startswith(_FIRST) for name in names):
        parts["autoencoder"] = Part(root + _FIRST, ignores=_AUTOENCODER_IGNORES)
    kinds: dict[str, tuple[str, Names]] = {
        "transformer.text_model.embeddings.token_embedding.weight": ("transformer.", "hf"),
        "transformer.embeddings.token_embedding.weight": ("transformer.", "hf-bare"),
        "model.token_embedding.weight": ("model.", "ours"),
        "transformer.token_emb.weight": ("transformer.", "bert"),
        "embedding.weight": ("", "ours"),
    }
    for marker, (prefix, kind) in kinds.items():
        if _COND + marker in names:
            parts["text"] = Part(root + _COND + prefix, kind, ignores=_TEXT_IGNORES)
    return Layout("compvis", root, parts)


_TEXT_NAMES: tuple[tuple[str, Names], ...] = (("text_model.", "hf"), ("", "hf-bare"))


def _folder(file: WeightFile) -> Layout | None:
    """Look for diffusers' names: of a whole folder, opened with a prefix for each of its parts, or of one part."""
    parts: dict[str, Part] = {}
    for prefix in ("unet.", ""):
        if {f"{prefix}conv_in.weight", f"{prefix}time_embedding.linear_1.weight"} <= set(file.entries):
            parts["unet"] = Part(prefix, "diffusers")
    for prefix in ("vae.", ""):
        if f"{prefix}decoder.mid_block.resnets.0.conv1.weight" in file.entries:
            old = f"{prefix}encoder.mid_block.attentions.0.query.weight" in file.entries
            parts["autoencoder"] = Part(prefix, "diffusers-old" if old else "diffusers")
    for prefix in ("text_encoder.", ""):
        for inner, names in _TEXT_NAMES:
            whole_clip = f"{prefix}visual_projection.weight" in file.entries
            if f"{prefix}{inner}embeddings.token_embedding.weight" in file.entries and not whole_clip:
                parts["text"] = Part(prefix, names, ignores=_TEXT_IGNORES)
    return Layout("diffusers", "", parts) if parts else None


def _adm(file: WeightFile) -> Layout | None:
    roots = _before(file, _STEM)
    if not roots:
        return None
    root = next((root for root in roots if "ema" in root), roots[0])
    blocks = file.under(root + "output_blocks.").entries
    name: Literal["unet", "classifier"] = "unet" if blocks else "classifier"
    return Layout("adm" if blocks else "classifier", root, {name: Part(root)})


def _ddpm(file: WeightFile) -> Layout | None:
    """Look for ermongroup's names. Its training checkpoints are lists whose member 4 holds averaged weights."""
    roots = _before(file, "temb.dense.0.weight")
    if not roots:
        return None
    root = next((root for root in roots if root.startswith("4.") or "ema" in root), roots[0])
    return Layout("ddpm", root, {"unet": Part(root, "ddpm")})


def _clip(file: WeightFile) -> Layout | None:
    roots = _before(file, "vision_model.embeddings.class_embedding")
    if roots:
        return Layout("hf-clip", roots[0], {"clip": Part(roots[0], "hf", ignores=_CLIP_IGNORES)})
    roots = _before(file, "visual.conv1.weight")
    if not roots:
        return None
    numbers = any(roots[0] + name in file.entries or roots[0] + name in file.values for name in _OPENAI_NUMBERS)
    return Layout("openai-clip" if numbers else "openclip", roots[0], {"clip": Part(roots[0], ignores=_CLIP_IGNORES)})


def _before(file: WeightFile, ending: str) -> list[str]:
    """Return what stands before ``ending`` in the names that end so, the shortest first."""
    starts = [name.removesuffix(ending) for name in file.entries if name.endswith(ending)]
    return sorted((start for start in starts if not start or start.endswith(".")), key=len)
