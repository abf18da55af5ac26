"""What a published model is, from its file alone, as far as the file says it; and asking for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from steerdiff.errors import UserError, warn
from steerdiff.models.config import AutoencoderConfig, UNetConfig
from steerdiff.models.text_config import ClipTextConfig
from steerdiff.models.weights import WeightFile

from .latent_presets import OPENCLIP_TEXT
from .layouts import Layout
from .presets import PRESETS
from .shapes import autoencoder_facts, bert_facts, class_facts, clip_facts, ddpm_facts, text_facts, unet_facts
from .spec import Inputs, PublishedModel, TextConfigs

__all__ = ["MEANING_KEY", "as_stored", "fitting", "guess"]

#: Where the text header of a safetensors file says what is predicted, by Stability's ModelSpec; few files do.
MEANING_KEY = "modelspec.prediction_type"
MEANINGS: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v": "v"}

_ASK = 'say which, such as steerdiff.load(..., config="{}")'
#: Cells of the grid that carries attention in every DDPM network of ermongroup.
_DDPM_ATTENTION = 16
_TEXT_WIDTH_1 = 768


def guess(file: WeightFile, layout: Layout) -> PublishedModel:
    """Return the model that a file holds, where the file says all or all published ones agree on the rest.

    Stable Diffusion 1.x predicts noise, as do the published inpainting and depth models of 2.x; DDPM networks have one
    head and the linear schedule.

    Raises:
        UserError: Something is needed that no file says; the message names the presets that fit.
    """
    if layout.kind == "ddpm":
        return _ddpm(file, layout)
    if layout.kind in ("adm", "classifier"):
        _ask(file, layout, "does not say how many attention heads it has, and other things")
    if layout.kind == "openai-clip":
        return _clip(file, layout)
    if layout.kind in ("openclip", "hf-clip"):
        _ask(file, layout, "does not say which activation it has (quick_gelu)")
    if layout.kind == "diffusers":
        raise UserError(
            f"{file.path} has no config.json beside it; give config: a preset, or the path of a config.json"
        )
    return _stable(file, layout)


def fitting(file: WeightFile, layout: Layout) -> list[str]:
    """Return the presets whose networks have the tensors of this file, as far as shapes tell."""
    family = {"adm": "adm", "classifier": "classifier", "ddpm": "ddpm", "compvis": "latent", "diffusers": "latent"}
    wanted = family.get(layout.kind, "clip")
    if wanted == "clip":
        clip = clip_facts(layout.parts["clip"].view(file).entries, layout.parts["clip"].names)
        return [
            name
            for name, preset in PRESETS.items()
            if preset.model.clip is not None and dataclasses.replace(preset.model.clip, quick_gelu=False) == clip
        ]
    if wanted == "classifier":
        return _classifiers(file, layout)
    part = layout.parts.get("unet")
    entries = part.view(file).entries if part is not None else {}
    facts = {"ours": unet_facts, "ddpm": ddpm_facts}.get(part.names if part else "", lambda _: {})(entries)
    found = (name for name, preset in PRESETS.items() if facts and _agrees(preset.model.unet, facts))
    return [name for name in found if PRESETS[name].model.family == wanted]


def as_stored(model: PublishedModel, file: WeightFile, layout: Layout) -> PublishedModel:
    """Return ``model`` with what its file holds of it: some files lack a part, or the text encoder's last block.

    The scale of the latents is read from the file where it has one.
    """
    changes: dict[str, Any] = {name: None for name in _PARTS if name not in layout.parts}
    lacking = [name for name in changes if model.family == "latent" and getattr(model, name) is not None]
    if lacking:
        warn(f"{file.path} holds no {' and no '.join(lacking)}; what needs them will not work")
    if isinstance(model.text, ClipTextConfig) and "text" in layout.parts:
        changes["text"] = _stored_text(model.text, file, layout)
    scale = f"{layout.root}scale_factor"
    if model.autoencoder is not None and scale in file.entries and "autoencoder" in layout.parts:
        changes["autoencoder"] = dataclasses.replace(model.autoencoder, scale_factor=float(file.read(scale)))
    if model.family == "adm" and layout.kind == "classifier":
        changes["family"] = "classifier"
    return dataclasses.replace(model, **changes)


_PARTS = ("unet", "classifier", "autoencoder", "text", "clip")


def _agrees(config: UNetConfig | None, facts: Mapping[str, Any]) -> bool:
    if config is None:
        return False
    own = dataclasses.asdict(config)
    own["attention_at"] = tuple(sorted(own["attention_at"]))
    return all(own[name] == value for name, value in facts.items())


def _classifiers(file: WeightFile, layout: Layout) -> list[str]:
    entries = layout.parts["classifier"].view(file).entries
    last = max((int(name.split(".")[1]) for name in entries if name.startswith("input_blocks.")), default=0)
    cells = entries.get("out.2.positional_embedding")
    found = []
    for name, preset in PRESETS.items():
        config = preset.model.classifier
        if config is None or cells is None:
            continue
        levels = len(config.trunk.channel_mult)
        blocks = levels * config.trunk.num_res_blocks + levels - 1
        grid = config.image_size // 2 ** (levels - 1)
        stem = int(config.trunk.channel_mult[0] * config.trunk.model_channels)
        fits = (blocks, grid**2 + 1, stem) == (last, cells.shape[1], entries["input_blocks.0.0.weight"].shape[0])
        found += [name] if fits else []
    return found


def _ask(file: WeightFile, layout: Layout, lack: str) -> None:
    names = fitting(file, layout)
    if names:
        raise UserError(f"{file.path} {lack}; published in this shape: {', '.join(names)}; {_ASK.format(names[0])}")
    raise UserError(
        f"{file.path} {lack}, and no preset has its shape; give config: the flags that it was trained with, or the "
        "path of its configuration"
    )


def _ddpm(file: WeightFile, layout: Layout) -> PublishedModel:
    facts = ddpm_facts(layout.parts["unet"].view(file).entries)
    factor = facts["attention_at"][0] if facts["attention_at"] else 1
    if not facts["attention_at"]:
        _ask(file, layout, "does not say the size of its images")
    return PublishedModel(
        family="ddpm",
        unet=UNetConfig(**facts),
        learns_variance=facts["out_channels"] == 2 * facts["in_channels"],
        image_size=_DDPM_ATTENTION * factor,
        clip_x0=False,
    )


def _clip(file: WeightFile, layout: Layout) -> PublishedModel:
    part = layout.parts["clip"]
    config = dataclasses.replace(clip_facts(part.view(file).entries, part.names), quick_gelu=True)
    return PublishedModel(family="clip", clip=config, image_size=config.vision_cfg["image_size"])


def _stable(file: WeightFile, layout: Layout) -> PublishedModel:
    """Return Stable Diffusion as its single file tells it; other CompVis files do not say their heads."""
    facts = unet_facts(layout.parts["unet"].view(file).entries)
    text = layout.parts.get("text")
    width = facts.get("context_dim")
    extra = facts["in_channels"] - facts["out_channels"]
    inputs: Inputs | None = {0: "plain", 5: "inpainting", 1: "depth"}.get(extra)  # type: ignore[assignment]
    first = text is not None and text.names in ("hf", "hf-bare") or text is None and width == _TEXT_WIDTH_1
    second = text is not None and text.names == "ours" and width != 512 and facts.get("linear_projections", False)
    if inputs is None or not (first or second):
        _ask(file, layout, "does not say how many attention heads it has")
    meaning = file.metadata.get(MEANING_KEY) if second else "epsilon"
    if meaning not in MEANINGS and inputs == "plain":
        _ask(file, layout, "does not say whether it predicts noise or v")
    heads: dict[str, Any] = {"num_heads": 8} if first else {"head_channels": 64}
    return PublishedModel(
        family="latent",
        unet=UNetConfig(**facts, **heads),
        autoencoder=_autoencoder(file, layout),
        text=_text(file, layout) if text is not None else None,
        schedule={"name": "scaled_linear", "T": 1000, "start": 0.00085, "end": 0.012},
        parameterization=MEANINGS.get(str(meaning), "eps"),
        image_size=512,
        inputs=inputs or "plain",
        clip_x0=False,
    )


def _autoencoder(file: WeightFile, layout: Layout) -> AutoencoderConfig | None:
    part = layout.parts.get("autoencoder")
    return None if part is None else autoencoder_facts(part.view(file).entries)


def _text(file: WeightFile, layout: Layout) -> TextConfigs:
    part = layout.parts["text"]
    entries = part.view(file).entries
    if part.names == "bert":
        return bert_facts(entries)
    if "embedding.weight" in entries:
        return class_facts(entries)
    facts = text_facts(entries, part.names)
    if part.names != "ours":
        return dataclasses.replace(ClipTextConfig(), **facts)
    is_whole = facts["projection"] is not None  # made of a folder, it lacks that and the block that is never read
    return dataclasses.replace(OPENCLIP_TEXT, **facts, reads="penultimate" if is_whole else "last")


def _stored_text(config: ClipTextConfig, file: WeightFile, layout: Layout) -> ClipTextConfig:
    part = layout.parts["text"]
    facts = text_facts(part.view(file).entries, part.names)
    stored = {"projection": facts["projection"], "undoes_html": part.names == "ours"}  # each layout has its tokenizer
    if config.reads == "penultimate" and facts["layers"] == config.layers - 1:
        stored |= {"layers": facts["layers"], "reads": "last"}
    return dataclasses.replace(config, **stored)
