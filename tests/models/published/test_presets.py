"""The table of published checkpoints."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from steerdiff.errors import UserError
from steerdiff.models.published import PRESETS, PublishedModel, preset
from steerdiff.models.published.assembly import blank
from steerdiff.samplers import NoiseSchedule

PARAMETERS = {  # millions, as their authors say
    "adm-64": 295.9,
    "adm-128": 421.5,
    "adm-256": 553.8,
    "adm-256-uncond": 552.8,
    "adm-512": 559.0,
    "adm-512-uncond": 558.0,
    "adm-64-classifier": 65.4,
    "adm-256-classifier": 54.1,
    "ilvr-ffhq": 93.56,
    "ddpm-celebahq": 113.67,
    "sd-1.5": 859.52,
    "sd-2-v": 865.91,
    "ldm-celebahq-vq4": 274.06,
    "ldm-cin256-v2": 400.92,
    "ldm-lsun-churches-kl8": 294.97,
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    model = PRESETS[name].model
    again = PublishedModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model
    assert NoiseSchedule.from_dict(model.schedule).T in (1000, 4000)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_it_comes_from(name: str) -> None:
    value = PRESETS[name]
    assert value.files and value.description and value.source
    assert set(value.sampling) <= {
        *("steps", "solver", "spacing", "guidance", "eta", "ema", "classifier", "classifier_scale"),
    }
    assert value.sampling.get("classifier", name) in PRESETS


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_the_published_sizes(name: str) -> None:
    part = "classifier" if name.endswith("classifier") else "unet"
    count = sum(parameter.numel() for parameter in blank(PRESETS[name].model, part).parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)


def test_parts_of_a_preset_fit_together() -> None:
    for name, value in PRESETS.items():
        model = value.model
        if model.family != "latent":
            continue
        assert model.unet is not None and model.autoencoder is not None, name
        extra = {"plain": 0, "inpainting": 1 + model.autoencoder.embed_dim, "depth": 1}[model.inputs]
        assert model.unet.in_channels == model.autoencoder.embed_dim + extra
        assert model.unet.out_channels == model.autoencoder.embed_dim
        width = None if model.text is None else model.text.width
        assert model.unet.context_dim == width
        assert model.image_size % (model.autoencoder.factor * model.unet.divisor) == 0


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"there is no preset 'sd-1.6'; did you mean sd-1\.\d"):
        preset("sd-1.6")


def test_a_damaged_description_is_refused() -> None:
    good = PRESETS["sd-1.5"].model.to_dict()
    for values, message in (
        ({**good, "colour": 1}, "unknown settings colour"),
        ({**good, "unet": {"width": 3}}, "unknown settings width"),
        ({**good, "text": {"words": 3}}, "the text of a published model has the settings"),
        ({**good, "unet": 3}, "not described as to_dict does it"),
        ({}, "not described as to_dict does it"),
    ):
        with pytest.raises(UserError, match=message):
            PublishedModel.from_dict(values)


def test_every_field_of_a_model_is_written_when_it_is_set() -> None:
    model = PRESETS["sd-1.5"].model
    absent = {field.name for field in fields(model) if getattr(model, field.name) is None}
    assert set(model.to_dict()) == {field.name for field in fields(model)} - absent
