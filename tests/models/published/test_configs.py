"""Every way to say what a model is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from steerdiff.errors import UserError
from steerdiff.models.published import PRESETS, open_published, published_model, recognise
from steerdiff.models.published.json_files import from_json
from steerdiff.models.published.yaml_files import from_yaml

from ...published_files import tiny_adm, tiny_classifier, tiny_sd, write_adm, write_folder, write_single_file
from .key_lists import key_list, listed_file, without_numbers

KL = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
KL |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
VQ: dict[str, Any] = {**KL, "double_z": False, "z_channels": 3, "ch_mult": [1, 2, 4]}
SD_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": 2,
    "attention_resolutions": [1, 2, 4],
    "channel_mult": [1, 2, 4, 4],
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "use_checkpoint": True,
    "legacy": False,
}
SD1_UNET: dict[str, Any] = {**SD_UNET, "num_heads": 8, "context_dim": 768}
SD2_UNET: dict[str, Any] = {
    **SD_UNET,
    "num_head_channels": 64,
    "context_dim": 1024,
    "use_linear_in_transformer": True,
}


def compvis(
    unet: dict[str, Any], stage: dict[str, Any], cond: Any, *, kind: str = "AutoencoderKL", **params: Any
) -> dict[str, Any]:
    """A configuration as CompVis writes them, with what training needs beside it."""
    first = {
        "target": f"ldm.models.autoencoder.{kind}",
        "params": {**stage, "lossconfig": {"target": "torch.nn.Identity"}},
    }
    if isinstance(cond, tuple):
        cond = {"target": f"ldm.modules.encoders.modules.{cond[0]}", **({"params": cond[1]} if cond[1] else {})}
    common = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "monitor": "val/loss",
        "log_every_t": 200,
    }
    network = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}
    parts = {"unet_config": network, "first_stage_config": first, "cond_stage_config": cond}
    return {
        "model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {**common, **params, **parts}},
        "data": {"params": {"batch_size": 4}},
    }


SD = {"image_size": 64, "channels": 4, "scale_factor": 0.18215}
KL_STAGE = {"embed_dim": 4, "ddconfig": KL}
VQ_STAGE = {"embed_dim": 3, "n_embed": 8192, "ddconfig": VQ}
VQ_UNET = {
    "image_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 224,
    "attention_resolutions": [2, 4, 8],
}
VQ_UNET |= {"num_res_blocks": 2, "channel_mult": [1, 2, 3, 4], "num_head_channels": 32}
OPENCLIP = ("FrozenOpenCLIPEmbedder", {"freeze": True, "layer": "penultimate"})
PUBLISHED = {
    "sd-1.4": compvis(SD1_UNET, KL_STAGE, ("FrozenCLIPEmbedder", None), **SD),
    "sd-1-inpainting": compvis(
        {**SD1_UNET, "in_channels": 9}, KL_STAGE, ("FrozenCLIPEmbedder", None), **SD, conditioning_key="hybrid"
    ),
    "sd-2-base": compvis(SD2_UNET, KL_STAGE, OPENCLIP, **SD),
    "sd-2.1-v": compvis(SD2_UNET, KL_STAGE, OPENCLIP, **{**SD, "image_size": 96}, parameterization="v"),
    "sd-2-depth": compvis(
        {**SD2_UNET, "in_channels": 5}, KL_STAGE, OPENCLIP, **SD, depth_stage_config={"target": "ldm.modules.midas"}
    ),
    "ldm-text2img-large": compvis(
        {**SD1_UNET, "context_dim": 1280},
        KL_STAGE,
        ("BERTEmbedder", {"n_embed": 1280, "n_layer": 32}),
        **{**SD, "image_size": 32},
    ),
    "ldm-celebahq-vq4": compvis(
        VQ_UNET,
        VQ_STAGE,
        "__is_unconditional__",
        kind="VQModelInterface",
        linear_start=0.0015,
        linear_end=0.0195,
        image_size=64,
        channels=3,
    ),
    "ldm-cin256-v2": compvis(
        {
            "image_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 192,
            "num_res_blocks": 2,
            "attention_resolutions": [2, 4, 8],
            "channel_mult": [1, 2, 3, 5],
            "num_heads": 1,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": 512,
        },
        VQ_STAGE,
        ("ClassEmbedder", {"n_classes": 1001, "embed_dim": 512, "key": "class_label"}),
        kind="VQModelInterface",
        linear_start=0.0015,
        linear_end=0.0195,
        image_size=64,
        channels=3,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_yaml_describes_the_preset(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(PUBLISHED[name]))
    assert published_model(path) == PRESETS[name].model
    assert published_model(str(path)) == PRESETS[name].model


@pytest.mark.parametrize("name", ["ddpm_sdedit_celeba_hq", "ddpm_sdedit_lsun_church"])
def test_the_yaml_of_a_ddpm_network_describes_the_preset(tmp_path: Path, name: str) -> None:
    path = tmp_path / "celeba.yml"
    path.write_text(yaml.safe_dump(key_list(name)["meta"]["config"]))
    model, preset = published_model(path), PRESETS["ddpm-celebahq"].model
    assert model.unet == preset.unet and model.image_size == 256 and not model.clip_x0
    assert model.schedule == {"name": "linear", "T": 1000, "start": 0.0001, "end": 0.02}


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError, match="is not YAML"):
        from_yaml(path)
    assert not (tmp_path / "ran").exists()


def changed(name: str, **params: Any) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(PUBLISHED[name]))
    tree["model"]["params"].update(params)
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "holds no configuration"),
        ({"model": {}}, "neither model.params nor data"),
        (changed("sd-1.4", beta_schedule="cosine"), "beta_schedule is 'cosine'"),
        (changed("sd-1.4", parameterization="flow"), "parameterization is 'flow'"),
        (changed("sd-1.4", cond_stage_config="__is_unconditional__"), "the UNet takes text"),
        (changed("sd-1.4", cond_stage_config={"target": "a.T5Embedder"}), "the text stage is T5Embedder"),
        (changed("sd-1.4", first_stage_config={"target": "a.IdentityFirstStage", "params": {}}), "IdentityFirstStage"),
        (changed("sd-1.4", channels=2), "beside those of latents"),
        (changed("sd-1.4", unet_config={"params": {"width": 3}}), "width is not an argument"),
        (changed("sd-1.4", unet_config=3), "is not built as a published configuration is"),
    ],
)
def test_a_wrong_yaml_is_explained(tmp_path: Path, tree: Any, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as raised:
        published_model(path)
    assert message in str(raised.value)


def test_compvis_calls_the_plain_line_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(changed("sd-1.4", beta_schedule="sqrt_linear")))
    assert published_model(path).schedule == {"name": "linear", "T": 1000, "start": 0.00085, "end": 0.012}


def test_a_config_may_be_given_in_every_form(tmp_path: Path) -> None:
    flags = {"image_size": 64, "classifier_depth": 4}
    wanted = PRESETS["adm-64-classifier"].model
    assert published_model("adm-64-classifier") == wanted
    assert published_model(wanted) is wanted
    assert published_model(flags) == wanted
    assert published_model("--image_size 64 --classifier_depth 4") == wanted
    assert published_model(wanted.to_dict()) == wanted
    (tmp_path / "model.json").write_text(json.dumps(wanted.to_dict()))
    assert published_model(tmp_path / "model.json") == wanted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config is None and there is no file"),
        (3, "config is a int"),
        ("sd-1.44", "there is no preset 'sd-1.44'; did you mean sd-1.4"),
        ("configs/v1.yaml", "configs/v1.yaml, which does not exist"),
    ],
)
def test_a_config_that_is_none_is_explained(config: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        published_model(config)
    assert message in str(raised.value)


def test_a_config_of_another_family_names_presets_that_fit() -> None:
    with pytest.raises(
        UserError, match="config describes a model of the family latent; presets of its shape are adm-256$"
    ):
        published_model("sd-1.4", without_numbers(key_list("adm_256x256_diffusion")["keys"]))
    with pytest.raises(UserError, match="holds classifier"):
        published_model("adm-64", listed_file("adm_64x64_classifier"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adm_256x256_diffusion_uncond", 'published in this shape: adm-256-uncond, .*config="adm-256-uncond"'),
        ("adm_64x64_classifier", 'config="adm-64-classifier"'),
        ("sd2_single_file", "noise or v; published in this shape: sd-2-base, sd-2-v, sd-2.1-base, sd-2.1-v;"),
        ("openclip_ViT-B-32", "activation.*clip-vit-b-32, clip-vit-b-32-laion"),
        ("hf_clip_vit-base-patch32", "activation.*clip-vit-b-32, clip-vit-b-32-laion"),
        ("diffusers_sd2_unet", "has no config.json beside it"),
    ],
)
def test_what_no_file_says_is_asked_for(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        published_model(None, listed_file(name))


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("sd1_single_file", "sd-1.5"),
        ("sd1_inpainting_single_file", "sd-1-inpainting"),
        ("sd2_inpainting_single_file", "sd-2-inpainting"),
        ("sd2_depth_single_file", "sd-2-depth"),
        ("ddpm_sdedit_lsun_bedroom", "ddpm-bedroom"),
        ("ddpm_pytorch_diffusion_cifar10", "ddpm-cifar10"),
    ],
)
def test_what_the_file_and_all_published_models_say_needs_no_config(name: str, preset: str) -> None:
    model, wanted = published_model(None, listed_file(name)), PRESETS[preset].model
    assert {**model.to_dict(), "unet": None} == {**wanted.to_dict(), "unet": None}
    assert model.unet is not None and wanted.unet is not None
    assert {**model.unet.to_dict(), "dropout": 0} == {**wanted.unet.to_dict(), "dropout": 0}


@pytest.mark.parametrize(("says", "means"), [("v", "v"), ("epsilon", "eps")])
def test_a_header_may_say_what_is_predicted(says: str, means: str) -> None:
    file = without_numbers(key_list("sd2_single_file")["keys"], **{"modelspec.prediction_type": says})
    assert published_model(None, file).parameterization == means
    assert published_model("sd-2.1-v", file).parameterization == "v"


def test_openai_archives_are_known_by_their_numbers() -> None:
    keys = {**key_list("openclip_ViT-B-32")["keys"], "input_resolution": [], "context_length": [], "vocab_size": []}
    file = without_numbers(keys)
    assert recognise(file).kind == "openai-clip"
    assert published_model(None, file) == PRESETS["clip-vit-b-32"].model


def test_the_number_of_labels_is_read_from_the_file(tmp_path: Path) -> None:
    model = tiny_adm(class_cond=True)
    assert model.unet is not None
    ten = dataclasses.replace(model, unet=dataclasses.replace(model.unet, num_classes=10))
    write_adm(tmp_path / "file.pt", ten)
    flags = {"image_size": 32, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "num_head_channels": 16}
    flags |= {"attention_resolutions": "16", "learn_sigma": True, "resblock_updown": True, "class_cond": True}
    assert published_model(flags, open_published(tmp_path / "file.pt")) == ten


def test_flags_of_both_networks_describe_either_file(tmp_path: Path) -> None:
    both = "--image_size 32 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 16 "
    both += "--attention_resolutions 16 --learn_sigma True --resblock_updown True "
    both += "--classifier_width 64 --classifier_depth 1 --classifier_attention_resolutions 16"
    write_adm(tmp_path / "unet.pt", tiny_adm())
    write_adm(tmp_path / "classifier.pt", tiny_classifier())
    assert published_model(both, open_published(tmp_path / "unet.pt")) == tiny_adm()
    classifier = published_model(both, open_published(tmp_path / "classifier.pt"))
    assert classifier.classifier == tiny_classifier().classifier and classifier.family == "classifier"


def test_a_folder_without_its_scheduler_is_asked_about(tmp_path: Path) -> None:
    config = key_list("diffusers_sd2_unet")["meta"]["config"]
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not say whether the UNet predicts noise or v"):
        published_model(tmp_path)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    assert published_model(tmp_path).inputs == "inpainting"


def test_the_scheduler_says_what_is_predicted(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", tiny_sd(2, predicts_v=True))
    path = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    assert published_model(tmp_path / "folder").parameterization == "v"
    assert published_model(tmp_path / "folder" / "model_index.json").parameterization == "v"
    path.write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(UserError, match="has beta_schedule 'squaredcos_cap_v2'"):
        published_model(tmp_path / "folder")
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        published_model(tmp_path / "folder")


@pytest.mark.parametrize(
    ("marks", "pad"),
    [
        ({"pad_token": "!"}, 0),
        ({"pad_token": {"content": "!"}}, 0),
        ({"pad_token": "<|endoftext|>"}, 49407),
        ({}, 49407),
    ],
)
def test_the_tokenizer_says_how_prompts_are_padded(tmp_path: Path, marks: dict[str, Any], pad: int) -> None:
    write_folder(tmp_path / "folder", tiny_sd(1))
    (tmp_path / "folder" / "tokenizer").mkdir()
    (tmp_path / "folder" / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(marks))
    text = published_model(tmp_path / "folder").text
    assert getattr(text, "pad", None) == pad


def test_a_clip_of_transformers_brings_its_configuration(tmp_path: Path) -> None:
    meta = key_list("hf_clip_vit-base-patch32")["meta"]
    values = {"model_type": "clip", "text_config": meta["text"], "vision_config": meta["vision"], "projection_dim": 512}
    (tmp_path / "config.json").write_text(json.dumps(values))
    clip, wanted = from_json(tmp_path / "config.json").clip, PRESETS["clip-vit-b-32"].model.clip
    assert clip is not None and wanted is not None
    assert clip.quick_gelu and clip.text_cfg == wanted.text_cfg and clip.embed_dim == 512
    file = without_numbers(key_list("hf_clip_vit-base-patch32")["keys"], str(tmp_path / "model.safetensors"))
    assert published_model(None, file).clip == clip


def test_single_files_need_no_scheduler(tmp_path: Path) -> None:
    write_single_file(tmp_path / "file", tiny_sd())
    assert published_model(None, open_published(tmp_path / "file")).parameterization == "eps"
