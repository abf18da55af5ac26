"""Every published checkpoint: our networks, through the maps of names, have exactly its keys with their shapes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models.config import UNetConfig
from steerdiff.models.official import autoencoder_config, diffusers_unet_config, diffusers_vae_config, unet_config
from steerdiff.models.official_clip import hf_clip_config, hf_text_config
from steerdiff.models.published import (
    PRESETS,
    ClipConfig,
    PublishedModel,
    from_flags,
    parts,
    published_model,
    recognise,
)
from steerdiff.models.published.guess import as_stored, fitting
from steerdiff.models.published.yaml_files import from_ddpm_sections
from steerdiff.models.weights import Entry, WeightFile, check_fit

from .key_lists import KEY_LISTS, key_list, listed_file, without_numbers

SECTIONS = {"diffusion": {"beta_schedule": "linear"}}
HF_CLIP = "hf_clip_vit-base-patch32"
ONE_OF_EACH = (
    *("adm_ilvr_p2_256", "adm_128x128_classifier", "ddpm_pytorch_diffusion_cifar10", "sd1_single_file", HF_CLIP),
    *("diffusers_sd1_unet", "diffusers_sd_vae_old_names", "diffusers_sd1_text_encoder", "openclip_RN50"),
)
DEFAULTS: dict[str, Any] = {"family": "latent", "clip_x0": False}


def described(meta: dict[str, Any]) -> PublishedModel:
    """What a list says about its checkpoint, read by the functions that read the published configurations."""
    if "resolved" in meta:
        return from_flags(meta["resolved"])
    if "config.model" in meta:
        return from_ddpm_sections(
            {"model": meta["config.model"], "data": {"image_size": meta["image_size"]}, **SECTIONS}
        )
    if "unet_config" in meta:
        return PublishedModel(family="adm", unet=unet_config(meta["unet_config"]))
    if "vision" in meta:
        return PublishedModel(family="clip", clip=hf_clip_config(meta["text"], meta["vision"], meta["projection_dim"]))
    if "unet" in meta:
        stage = autoencoder_config(meta["vae ddconfig"], 4, scale_factor=0.18215)
        text = PRESETS["sd-1.4" if meta["unet"]["context_dim"] == 768 else "sd-2-base"].model.text
        return PublishedModel(**DEFAULTS, unet=unet_config(meta["unet"]), autoencoder=stage, text=text)
    config = meta["config"]
    if "diffusion" in config:
        return from_ddpm_sections(config)
    if "vision_cfg" in config:
        return PublishedModel(family="clip", clip=ClipConfig(**config))
    if "cross_attention_dim" in config:
        return PublishedModel(**DEFAULTS, unet=diffusers_unet_config(config))
    if "latent_channels" in config:
        return PublishedModel(**DEFAULTS, autoencoder=diffusers_vae_config(config))
    return PublishedModel(**DEFAULTS, text=hf_text_config(config))


@pytest.mark.parametrize("name", KEY_LISTS)
def test_networks_have_exactly_the_published_keys(name: str) -> None:
    listed, file = key_list(name), listed_file(name)
    layout = recognise(file)
    model = described(listed["meta"])
    used: dict[str, list[int]] = {}
    for part, (module, keymap, view) in parts(model, file, layout).items():
        own = module.state_dict()
        check_fit(own, view, keymap, source=name)
        for key, tensor in own.items():
            origin = keymap[key]
            for theirs, shape in zip(origin.names, origin.shapes(tuple(tensor.shape)), strict=True):
                used[layout.parts[part].prefix + theirs] = list(shape)
    rest = {key: shape for key, shape in listed["keys"].items() if key not in used}
    assert used == {key: shape for key, shape in listed["keys"].items() if key in used}
    tables = {key for key, shape in rest.items() if shape == [1000]}
    assert set(rest) - tables <= {
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.model.logit_scale",
    }
    assert not tables or layout.kind == "compvis"
    assert sum(math.prod(shape) for shape in (*used.values(), *rest.values())) == listed["params"]


@pytest.mark.parametrize("name", ["sd1_single_file", "sd2_depth_single_file", "diffusers_sd2_text_encoder", HF_CLIP])
def test_optional_keys_of_a_checkpoint_are_ignored(name: str) -> None:
    listed = key_list(name)
    optional = next((value for key, value in listed["meta"].items() if key.startswith("optional extra keys")), {})
    extra: dict[str, list[int]] = {}
    for text in optional:
        key = text.split(" ")[0]
        assert key not in listed["keys"]
        extra[key] = [1, 77] if "position_ids" in key else [1000] if key == "logvar" else []
        if "<name without dots>" in text:
            del extra[key]
            extra["model_ema.diffusion_modelinput_blocks00weight"] = [320, 4, 3, 3]
    file = without_numbers({**listed["keys"], **extra}, name)
    model = described(listed["meta"])
    for module, keymap, view in parts(model, file, recognise(file)).values():
        check_fit(module.state_dict(), view, keymap, source=name)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_missing_extra_and_misshapen_keys_are_each_reported(name: str) -> None:
    listed = key_list(name)
    if "single_file" in name:
        lost, bent = "model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.weight"
    else:
        lost, bent = list(listed["keys"])[-1], next(k for k, shape in listed["keys"].items() if len(shape) == 2)
    shapes = {**listed["keys"], bent: [3, 5, 7], "surplus.weight": [1]}
    del shapes[lost]
    file = without_numbers(shapes, name)
    with pytest.raises(UserError) as raised:
        for module, keymap, view in parts(described(listed["meta"]), file, recognise(listed_file(name))).values():
            check_fit(module.state_dict(), view, keymap, source=name)
    message = str(raised.value)
    if "single_file" in name:  # what belongs to no part is found first
        assert "surplus.weight" in message
    else:
        assert "1 missing" in message and lost in message
        assert "1 left over: surplus.weight" in message
        assert f"{bent} is [3, 5, 7], expected" in message


def kind_of(name: str) -> str:
    """What a list's name says of the layout."""
    if "single_file" in name:
        return "compvis"
    start = name.split("_")[0]
    kinds = {"adm": "classifier" if "classifier" in name else "adm", "ldm": "adm", "hf": "hf-clip"}
    return kinds.get(start, start)


@pytest.mark.parametrize("name", KEY_LISTS)
def test_the_layout_is_told_from_the_names(name: str) -> None:
    assert recognise(listed_file(name)).kind == kind_of(name)


#: Presets by the list of their checkpoint, where the name of the published file does not say it.
NAMED = {
    "adm_ilvr_p2_256": ["ilvr-ffhq", "ilvr-afhq-dog", *(name for name in PRESETS if name.startswith("p2-"))],
    "ddpm_pytorch_diffusion_cifar10": ["ddpm-cifar10"],
    "sd1_single_file": ["sd-1.1", "sd-1.2", "sd-1.3", "sd-1.4", "sd-1.5"],
    "sd1_inpainting_single_file": ["sd-1-inpainting"],
    "sd2_single_file": ["sd-2-base", "sd-2-v", "sd-2.1-base", "sd-2.1-v"],
    "sd2_inpainting_single_file": ["sd-2-inpainting"],
    "sd2_depth_single_file": ["sd-2-depth"],
    "hf_clip_vit-base-patch32": ["clip-vit-b-32", "clip-vit-b-32-laion"],
    "hf_clip_vit-large-patch14": ["clip-vit-l-14", "clip-vit-l-14-laion"],
    "openclip_RN50": ["clip-rn50"],
    "openclip_RN50x4": ["clip-rn50x4"],
    "openclip_RN50x16": ["clip-rn50x16"],
    "openclip_ViT-B-16": ["clip-vit-b-16", "clip-vit-b-16-laion"],
    "openclip_ViT-B-32": ["clip-vit-b-32", "clip-vit-b-32-laion"],
    "openclip_ViT-L-14": ["clip-vit-l-14", "clip-vit-l-14-laion"],
    "openclip_ViT-H-14": ["clip-vit-h-14"],
}


def presets_of(name: str) -> list[str]:
    """The presets whose checkpoint a list is of."""
    meta = key_list(name)["meta"]
    file = str(meta.get("checkpoint", meta.get("file", ""))).removeprefix("repaint_")
    return NAMED.get(name) or [preset for preset, value in PRESETS.items() if file and file in value.files]


def ordered(unet: UNetConfig | None) -> UNetConfig | None:
    """The configuration with its attention places in ascending order, which the published files do not keep."""
    return unet and dataclasses.replace(unet, attention_at=tuple(sorted(unet.attention_at)))


@pytest.mark.parametrize("name", [name for name in KEY_LISTS if not name.startswith(("diffusers", "ldm"))])
def test_every_checkpoint_fits_its_preset(name: str) -> None:
    file = listed_file(name)
    layout = recognise(file)
    wanted = presets_of(name)
    assert wanted and set(wanted) <= set(fitting(file, layout))
    model = published_model(wanted[0], file, layout)
    same = described(key_list(name)["meta"])
    assert ordered(model.unet) == ordered(same.unet)
    assert model.classifier == same.classifier and model.autoencoder == same.autoencoder
    assert (model.text is None) == (same.text is None)
    if model.clip is not None and same.clip is not None:
        assert model.clip.embed_dim == same.clip.embed_dim
        assert model.clip.text_cfg == same.clip.text_cfg


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("diffusers_sd1_unet", ["sd-1.1", "sd-1.5"]),
        ("diffusers_sd1_inpainting_unet", ["sd-1-inpainting"]),
        ("diffusers_sd2_unet", ["sd-2-base", "sd-2.1-v"]),
        ("diffusers_sd2_inpainting_unet", ["sd-2-inpainting"]),
        ("diffusers_sd2_depth_unet", ["sd-2-depth"]),
        ("diffusers_sd_vae", ["sd-1.1", "sd-2-v", "ldm-text2img-large"]),
        ("diffusers_sd1_text_encoder", ["sd-1.1"]),
        ("diffusers_sd2_text_encoder", ["sd-2-v"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*holds no")
def test_parts_of_a_folder_fit_the_preset_too(name: str, presets: list[str]) -> None:
    file = listed_file(name)
    for preset in presets:
        model = published_model(preset, file)
        for module, keymap, view in parts(model, file, recognise(file)).values():
            check_fit(module.state_dict(), view, keymap, source=name)


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("ldm_celebahq-ldm-vq-4_unet", ["ldm-celebahq-vq4", "ldm-ffhq-vq4", "ldm-lsun-bedrooms-vq4"]),
        ("ldm_cin256-v2_unet", ["ldm-cin256-v2"]),
        ("ldm_lsun_churches-ldm-kl-8_unet", ["ldm-lsun-churches-kl8"]),
    ],
)
def test_latent_diffusion_networks_are_those_of_their_presets(name: str, presets: list[str]) -> None:
    listed = key_list(name)
    whole = without_numbers({listed["meta"]["prefix in the file"] + k: s for k, s in listed["keys"].items()})
    layout = recognise(whole)
    assert layout.kind == "compvis" and fitting(whole, layout) == presets
    for preset in presets:
        assert ordered(PRESETS[preset].model.unet) == ordered(unet_config(listed["meta"]["unet_config"]))
    with pytest.raises(UserError, match=f'config="{presets[0]}"'):
        published_model(None, whole, layout)


def test_the_scale_of_latents_is_read_where_the_file_has_it() -> None:
    model = PRESETS["ldm-lsun-churches-kl8"].model
    file = listed_file("sd1_single_file")
    entries = {**file.entries, "scale_factor": Entry((), torch.float32)}
    scaled = WeightFile(file.path, entries, lambda name: torch.tensor(0.22765929))
    stage = as_stored(model, scaled, recognise(scaled)).autoencoder
    assert stage is not None and stage.scale_factor == pytest.approx(0.22765929)
