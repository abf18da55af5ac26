"""The published command-line flags."""

from __future__ import annotations

from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.models.published import PRESETS, from_flags
from steerdiff.models.published.flags import parse_command_line

from .key_lists import KEY_LISTS, key_list

ADM_64 = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
    "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
    "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
)


@pytest.mark.parametrize("name", [name for name in KEY_LISTS if "flags" in key_list(name)["meta"]])
def test_flags_as_typed_mean_what_the_official_scripts_resolve(name: str) -> None:
    meta = key_list(name)["meta"]
    typed = from_flags(parse_command_line(f"python scripts/image_sample.py {meta['flags']}"))
    assert typed == from_flags(meta["resolved"])


@pytest.mark.parametrize(
    "text",
    [
        ADM_64,
        f"SAMPLE_FLAGS='--batch_size 4 --timestep_respacing 250'; python image_sample.py {ADM_64} --model_path m.pt",
        f'MODEL_FLAGS="{ADM_64}"',
        ADM_64.replace(" True", "=True").replace("size 64", "size=64"),
        ADM_64.replace("True", "yes"),
    ],
)
def test_a_command_line_may_be_written_in_every_usual_way(text: str) -> None:
    assert from_flags(parse_command_line(text)) == PRESETS["adm-64"].model


def test_flags_that_are_not_given_have_the_official_defaults() -> None:
    model = from_flags({})
    assert model.unet is not None and model.image_size == 64
    assert (model.unet.model_channels, model.unet.channel_mult, model.unet.num_heads) == (128, (1, 2, 3, 4), 4)
    assert model.unet.attention_at == (4, 8) and model.unet.scale_shift_norm and not model.unet.resblock_updown
    assert not model.learns_variance and model.unet.out_channels == 3 and model.time_scale == 1


def test_learned_variance_doubles_the_output() -> None:
    model = from_flags({"learn_sigma": True, "predict_xstart": "True", "class_cond": True}, classes=10)
    assert model.unet is not None and model.learns_variance and model.parameterization == "x0"
    assert (model.unet.out_channels, model.unet.num_classes) == (6, 10)


def test_classifier_flags_give_a_classifier_alone_or_beside_the_network() -> None:
    alone = from_flags({"image_size": 128, "classifier_depth": 2, "classifier_use_fp16": True})
    assert alone == PRESETS["adm-128-classifier"].model
    both = from_flags({"image_size": 128, "classifier_depth": 2, "num_channels": 64})
    assert both.family == "adm" and both.unet is not None and both.classifier == alone.classifier


@pytest.mark.parametrize(("size", "widths"), [(32, 1222), (64, 1234), (128, 11234), (256, 112244)])
def test_each_size_has_its_usual_widths(size: int, widths: int) -> None:
    unet = from_flags({"image_size": size}).unet
    assert unet is not None and unet.channel_mult == tuple(int(digit) for digit in str(widths))


def test_only_the_plain_network_of_512_pixels_starts_with_half_the_width() -> None:
    plain, upsampler = from_flags({"image_size": 512}), from_flags({"large_size": 512, "small_size": 128})
    assert plain.unet is not None and plain.unet.channel_mult[0] == 0.5
    assert upsampler.unet is not None and upsampler.unet.channel_mult[0] == 1
    assert (upsampler.inputs, upsampler.low_res_size, upsampler.unet.in_channels) == ("low_res", 128, 6)


def test_rescaled_times_reach_the_network_in_thousandths() -> None:
    model = from_flags({"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True})
    assert model.time_scale == 0.25 and model.schedule == {"name": "cosine", "T": 4000}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_chanels": 64}, "'num_chanels' is not a published flag; did you mean num_channels"),
        ({"class_cond": "maybe"}, "class_cond is 'maybe'; it must be True or False"),
        ({"class_cond": 1}, "class_cond is 1; it must be True or False"),
        ({"num_channels": "many"}, "num_channels is 'many'; it must be a number"),
        ({"num_channels": 32.5}, "num_channels is 32.5; it must be a whole number"),
        ({"num_channels": True}, "num_channels is True; it must be a number"),
        ({"attention_resolutions": "16,x"}, "attention_resolutions is '16,x'; give numbers"),
        ({"attention_resolutions": "24"}, "each number must divide the image's size, 64"),
        ({"channel_mult": "1,b"}, "channel_mult is '1,b'"),
        ({"image_size": 96}, "has no usual channel_mult"),
        ({"noise_schedule": "sigmoid"}, "known are linear and cosine"),
        ({"diffusion_steps": 4000}, "rescale_timesteps is not given"),
        ({"diffusion_steps": 0, "rescale_timesteps": False}, "it must be at least 1"),
    ],
)
def test_a_wrong_flag_is_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        from_flags(flags)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--image_size", "--image_size has no value"),
        ("--image_size --num_channels 3", "--image_size has no value"),
        ("--image_size '64", "cannot be split into words"),
        ("python x.py", "holds no flags"),
    ],
)
def test_a_broken_command_line_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_command_line(text)
    assert message in str(raised.value)


def test_the_multipliers_may_be_halves() -> None:
    unet = from_flags({"channel_mult": "0.5,1", "num_channels": 64, "attention_resolutions": ""}).unet
    assert unet is not None and unet.channel_mult == (0.5, 1) and unet.attention_at == ()
