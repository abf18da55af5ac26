"""What holds for all methods: every field matters, an image does not depend on its batch, bad input is named first."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.methods import (
    ILVR,
    METHODS,
    SDG,
    ClassifierGuided,
    DDIMInversion,
    DiffEdit,
    DiffusionCLIP,
    DreamBooth,
    Imagic,
    PromptToPrompt,
    RePaint,
    SDEdit,
    UniTune,
)
from steerdiff.methods.asyrp import Asyrp
from steerdiff.methods.blended_diffusion import BlendedDiffusion
from steerdiff.methods.negative_prompt import NegativePromptInversion
from steerdiff.methods.null_text import NullTextInversion
from steerdiff.samplers import DDIM, DDPM, DPMSolver2M, Interrupted, NoiseSchedule

from ..guidance.test_noisy_classifier import tiny_classifier
from ..guidance.toys import Recording, formula_model, half_mask, pictures, tiny_text_model
from .flips import Among, Files, Made, Neutral, Refused, replaced
from .tiny_clips import load_tiny

SIZE = 8
CLASSIFIER: Any = tiny_classifier(schedule=None)  # takes the noise of any model
#: Settings that finish in a blink and in which every field has something to do.
SMALL: dict[str, Any] = {
    "ilvr": ILVR(downsample=4, range_t=1, steps=4),
    "sdedit": SDEdit(t0=0.5, repeats=2, steps=6),
    "repaint": RePaint(steps=5, jump_length=1, jump_n_sample=2),
    "invert": DDIMInversion(steps=4, t0=0.8, guidance=2.0),
    "diffedit": DiffEdit(steps=6, guidance=3.0, noises=2, clamp=2.0),
    "p2p": PromptToPrompt(
        steps=4,
        guidance=2.0,
        inversion="ddim",
        self_cells=16,
        reweight=("red=2",),
        blend_words=("red",),
        blend_threshold=0.9,
        blend_factor=2,
    ),
    "nulltext": NullTextInversion(steps=4, guidance=2.0, inner_steps=2, learning_rate=0.05),
    "negprompt": NegativePromptInversion(steps=4),
    "dreambooth": DreamBooth(
        nouns=("dog",),
        n_class=2,
        class_steps=2,
        tune_steps=2,
        learning_rate=1e-2,
        steps=3,
        guidance=2.0,
    ),
    "imagic": Imagic(
        eta=0.5,
        embedding_steps=2,
        embedding_rate=0.1,
        network_steps=2,
        network_rate=1e-2,
        steps=3,
        guidance=2.0,
    ),
    "unitune": UniTune(token="red", tune_steps=2, learning_rate=1e-2, batch_size=2, steps=5, guidance=2.0),
    "sdg": SDG(steps=4, text_weight=30.0, image_weight=1e-4, image_loss="style", guidance=2.0),
    "classifier": ClassifierGuided(classifier=CLASSIFIER, steps=6, scale=30.0),
    "blended": BlendedDiffusion(steps=6, skip_timesteps=2, views=2, clip_scale=40.0, range_scale=5.0),
    "asyrp": Asyrp(
        source_text="cat",
        target_text="dog",
        n_inv=8,
        n_test=8,
        n_train=8,
        n_images=2,
        batch_size=2,
        epochs=1,
        image_steps=2,
        t_edit=40.0,
        t_boost=30.0,
        gain=3.0,
        uses_prompt=True,
        curve_steps=20,
    ),
    "diffusionclip": DiffusionCLIP(
        source_text="cat",
        target_text="dog",
        t0=0.5,
        n_inv=4,
        n_test=4,
        n_train=3,
        n_images=2,
        epochs=1,
        image_steps=2,
        learning_rate=1e-3,
        uses_prompt=True,
    ),
}
#: Another value for every field.
FLIPS: dict[str, dict[str, Any]] = {
    "asyrp": {
        "source_text": "red",
        "target_text": "red",
        "delta": Made(lambda files: files.delta(0)),
        "more": Among(Made(lambda files: (files.delta(1),)), {"delta": Made(lambda files: files.delta(0))}),
        "degree": 2.0,
        "degrees": Among(
            (3.0,), {"delta": Made(lambda files: files.delta(0)), "more": Made(lambda files: (files.delta(1),))}
        ),
        "n_inv": 7,
        "n_test": 7,
        "spacing": "karras",
        "t_begin": 60.0,
        "t_edit": 20.0,
        "t_boost": 0.0,
        "symmetric": True,
        "uses_prompt": False,
        "clip_x0": "clip",
        "clip": "another-clip",
        "templates": "none",
        "cosine": "templates",
        "form": "direct",
        "ignores_time": True,
        "gain": 1.0,
        "clip_weight": 3.0,
        "l1_weight": 30.0,
        "views": 2,
        "source": "image",
        "n_train": 7,
        "optimizer": "adamw",
        "learning_rate": 0.1,
        "rate_gamma": Among(1.0, {"epochs": 2, "rate_every": 1}),
        "rate_every": Among(1, {"epochs": 2}),
        "epochs": 2,
        "images": Made(lambda files: files.images()),
        "n_images": 1,
        "image_steps": 3,
        "batch_size": 1,
        "tune_seed": 1,
        "distance": Among("lpips-by-a-name-that-is-very-much-longer-than-the-name-of-the-other", {"t_edit": None}),
        "threshold_edit": Among(3.3, {"t_edit": None}),
        "threshold_boost": Among(0.4, {"t_boost": None}),
        "curve_images": Among(1, {"t_edit": None}),
        "curve_steps": Among(9, {"t_edit": None}),
    },
    "blended": {
        "clip": "another-clip",
        "clip_scale": 10.0,
        "schedule": "linear",
        "range_scale": 50.0,
        "views": 3,
        "shift_axes": "vertical",
        "mix": False,
        "sees": "whole",
        "steps": 7,
        "skip_timesteps": 1,
        "blends": False,
        "background_level": "t",
        "perceptual_scale": 10.0,
        "distance": Among("lpips-alex", {"perceptual_scale": 10.0}),
        "mse_scale": 10.0,
        "background_reference": Among("whole", {"perceptual_scale": 10.0}),
        "enforces_background": False,
        "candidates": 4,
        "ranking": Among("official", {"candidates": 4}),
        "solver": DDIM(eta=0.5),
        "x0_clip": "clip",
        "guidance": 9.0,
        "checkpoint": Neutral(True),
    },
    "diffedit": {
        "steps": 7,
        "t0": 0.5,
        "spacing": "trailing",
        "guidance": 9.0,
        "noises": 3,
        "strength": 0.9,
        "clamp": None,
        "threshold": 0.3,
        "encoding": "prompt",
        "encoding_guidance": Among(3.0, {"encoding": "prompt"}),
        "lag": 1,
        "solver": DPMSolver2M(),
        "clip": "none",
    },
    "p2p": {
        "pairing": "reweight",
        "cross_replace_steps": 0.3,
        "word_steps": ("red=0.3:0.6",),
        "self_replace_steps": 0.0,
        "self_cells": None,
        "cross_cells": Refused(8, "the attention edit touches none"),
        "reweight": ("red=-1",),
        "official": True,
        "blend_words": ("dog",),
        "blend_variant": "ldm",
        "blend_threshold": 0.5,
        "subtract_words": ("dog",),
        "subtract_threshold": Among(0.9, {"subtract_words": ("dog",)}),
        "blend_start": 0.8,
        "blend_factor": Refused(4, "word maps of 2 x 2 cells are kept of no attention here"),
        "inversion": "negative-prompt",
        "inner_steps": Among(1, {"inversion": "null-text"}),
        "learning_rate": Among(0.2, {"inversion": "null-text"}),
        "fixed_point": 3,
        "steps": 7,
        "spacing": "trailing",
        "solver": Refused(DDIM(eta=0.5), "a real image is inverted and edited by DDIM"),
        "guidance": 9.0,
        "clip": "clip",
    },
    "diffusionclip": {
        "source_text": "red",
        "target_text": "red",
        "delta": Made(lambda files: files.delta(0)),
        "more": Among(Made(lambda files: (files.delta(1),)), {"delta": Made(lambda files: files.delta(0))}),
        "mix": Among(
            ("0:1,3",), {"delta": Made(lambda files: files.delta(0)), "more": Made(lambda files: (files.delta(1),))}
        ),
        "degree": 0.5,
        "t0": 0.3,
        "until": 0.2,
        "n_inv": 5,
        "n_test": 5,
        "start": "noise",
        "repeats": Among(2, {"start": "noise"}),
        "translations": 1,
        "n_train": 2,
        "variant": "efficient",
        "clip": "another-clip",
        "tunes": "attention",
        "views": 3,
        "templates": "none",
        "clip_weight": 1.0,
        "l1_weight": 30.0,
        "id_weight": Refused(1.0, "id_weight needs what compares faces"),
        "learning_rate": 2e-3,
        "rate_gamma": Among(3.0, {"epochs": 2}),
        "epochs": 2,
        "images": Made(lambda files: files.images()),
        "n_images": 3,
        "image_steps": 3,
        "batch_size": 2,
        "uses_prompt": False,
        "clip_x0": "clip",
        "tune_seed": 1,
    },
    "classifier": {
        "scale": 0.0,
        "schedule": "linear",
        "classifier": tiny_classifier(seed=1, schedule=None),
        "at": "mean",
        "steps": 7,
        "t0": 1.0,
        "solver": DDIM(eta=0.5),
        "clip": "none",
        "guidance": 9.0,
    },
    "ilvr": {
        "downsample": 2,
        "range_t": 2,
        "steps": 7,
        "kernel": "box",
        "reference_level": "official",
        "final_projection": True,
        "solver": DDIM(eta=0.5),
        "clip": "none",
        "guidance": 9.0,
    },
    "sdedit": {
        "t0": 0.75,
        "repeats": 1,
        "steps": 7,
        "official": True,
        "solver": DDPM(variance="fixed_large"),
        "clip": "clip",
        "guidance": 9.0,
    },
    "repaint": {
        "steps": 7,
        "jump_length": 2,
        "jump_n_sample": 3,
        "start_resampling": 3,
        "merge": "official",
        "solver": DDIM(eta=0.5),
        "clip": "none",
        "guidance": 9.0,
    },
    "invert": {
        "steps": 5,
        "t0": 1.0,
        "spacing": "trailing",
        "solver": DPMSolver2M(),
        "fixed_point": 3,
        "guidance": 9.0,
        "invert_guidance": 3.0,
        "clip": "clip",
    },
    "nulltext": {
        "steps": 5,
        "spacing": "trailing",
        "guidance": 9.0,
        "inner_steps": 4,
        "learning_rate": 0.2,
        "final_rate": 0.0,
        "stop": 1e3,
        "stop_rise": 1e6,
        "fixed_point": 3,
        "clip": "clip",
        "checkpoint": Neutral(True),
    },
    "negprompt": {
        "steps": 5,
        "spacing": "trailing",
        "guidance": Neutral(9.0),  # of a reconstruction there is none
        "fixed_point": 3,
        "clip": "clip",
    },
    "dreambooth": {
        "images": Made(lambda files: (files.images(),)),
        "identifiers": ("lynx",),
        "nouns": ("cat",),
        "template": "a red {}",
        "captioned": Among(True, {"images": Made(lambda files: (files.images(),))}),
        "flip": True,
        "delta": Made(lambda files: files.delta(0)),
        "prior_weight": 0.5,
        "n_class": 1,
        "class_steps": 3,
        "class_guidance": 9.0,
        "tunes_text": True,
        "lora": 1,
        "lora_in": Among(("out_layers",), {"lora": 1}),
        "tune_steps": 3,
        "learning_rate": 0.1,
        "weight_decay": 0.5,
        "clip_norm": 1e-3,
        "ema_decay": 0.9,
        "batch_size": 2,
        "tune_seed": 1,
        "steps": 5,
        "solver": DDPM(),
        "guidance": 9.0,
        "clip": "none",
    },
    "imagic": {
        "eta": 0.9,
        "delta": Made(lambda files: files.delta(0)),
        "embedding_steps": 3,
        "embedding_rate": 0.2,
        "network_steps": 3,
        "network_rate": 2e-2,
        "ema_decay": 0.9,
        "batch_size": 2,
        "posterior": Neutral("sample"),  # of a first stage, which this model has not
        "steps": 5,
        "solver": DDPM(),
        "clip": "none",
        "guidance": 9.0,
        "tune_seed": 1,
    },
    "unitune": {
        "token": "dog",
        "delta": Made(lambda files: files.delta(0)),
        "tune_steps": 3,
        "learning_rate": 2e-2,
        "batch_size": 1,
        "ema_decay": 0.9,
        "t0": 0.5,
        "steps": 7,
        "solver": DDIM(),
        "clip": "none",
        "guidance": 9.0,
        "keep": 0.3,
        "blur": Among(0.3, {"keep": 0.3}),
        "tune_seed": 1,
    },
    "sdg": {
        "text_weight": 10.0,
        "image_weight": 1e-3,
        "image_loss": "content",
        "layers": (0,),
        "official": True,
        "noisy_clip": "another-noisy-clip",
        "clip": "another-clip",
        "schedule": "linear",
        "steps": 7,
        "solver": DDIM(eta=0.5),
        "x0_clip": "none",
        "guidance": 9.0,
    },
}
MASKED = ("sdedit", "repaint", "blended", "diffedit")
#: Methods of these that find a mask where none is given, by fields of their own.
FINDS_MASK = ("diffedit",)
#: Methods whose prompt is read by a CLIP, which any model may have beside it.
BY_CLIP = ("sdg", "blended")
#: Methods whose result does not depend on the seed, given a mask where they take one.
DETERMINISTIC = ("invert", "diffusionclip", "diffedit", "p2p", "nulltext", "negprompt")
#: Methods that tune a network with weights first, and the settings with which they leave that out.
UNTUNED: dict[str, dict[str, Any]] = {
    "diffusionclip": {"degree": 0.0},
    "asyrp": {"degree": 0.0},
    "imagic": {"embedding_steps": 0, "network_steps": 0},
    "dreambooth": {"tune_steps": 0},
    "unitune": {"tune_steps": 0},
}
#: Where the number of steps stands, if not in ``steps``.
STEPS = {"diffusionclip": "n_test", "asyrp": "n_test"}
#: Methods that edit by the words of two prompts, and so need a model that reads words.
BY_WORDS = ("p2p",)
EVERY = pytest.mark.parametrize("name", sorted(METHODS))
FORMULA = pytest.mark.parametrize("name", sorted(set(METHODS) - set(BY_WORDS)))
TOLD = pytest.mark.parametrize("name", sorted(set(METHODS) - set(BY_CLIP) - set(BY_WORDS)))


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small CLIPs in the place of the shipped ones, templates of words that they know, and a cache of their own."""
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path_factory.getbasetemp() / "every-method"))
    monkeypatch.setattr("steerdiff.methods.edit_tuning.templates_for", lambda *_: ("a {}", "a red {}"))
    for name in METHODS:
        module = METHODS[name].__module__
        if hasattr(sys.modules[module], "load_cached") and name != "classifier":
            monkeypatch.setattr(f"{module}.load_cached", load_tiny)
        if hasattr(sys.modules[module], "perceptual"):
            monkeypatch.setattr(f"{module}.perceptual", lambda source, *_: TinyDistance(source))


@dataclasses.dataclass(frozen=True)
class TinyDistance:
    """A distance of images in the place of a perceptual one, another for each name."""

    name: str
    weights_hash = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return len(self.name) * ((a - b).flatten(1).sum(1).square() / 192 + (a - b).square().flatten(1).mean(1))


def untuned(name: str) -> Any:
    """Return the small settings of a method without what it would tune, which a formula has not."""
    return dataclasses.replace(SMALL[name], **UNTUNED.get(name, {}))


def draws(name: str) -> bool:
    """Say whether a method can do without an image."""
    return inspect.signature(METHODS[name].__call__).parameters["image"].default is None


def run(name: str, method: Any, model: Model, image: Tensor | None, **arguments: Any) -> Tensor:
    if name in MASKED:
        arguments.setdefault("mask", half_mask(SIZE))
    if name == "classifier":
        arguments.setdefault("y", 1)
    if name in BY_WORDS:
        arguments.setdefault("target", "a red dog")
    result: Tensor = method(model, image, **arguments)
    return result


@EVERY
def test_every_field_of_every_method_changes_the_result(name: str, tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    assert fields == set(FLIPS[name])
    model, image = tiny_text_model(), pictures(2, SIZE) * 0.9  # two: the official Gram matrix of one is ours
    files = Files(tmp_path, model, SMALL[name])

    def result(changes: dict[str, Any]) -> Tensor:
        mask = {"mask": None} if name in FINDS_MASK else {}
        return run(name, replaced(SMALL[name], changes, files), model, image, prompt="a cat", **mask)

    base = result({})
    assert torch.equal(result({}), base)
    idle = []
    for field, flip in FLIPS[name].items():
        value = flip.value if isinstance(flip, (Among, Neutral, Refused)) else flip
        assert value != getattr(SMALL[name], field), f"{field} is not flipped"
        if isinstance(flip, Refused):
            with pytest.raises(UserError, match=flip.message):
                result({field: value})
            continue
        if isinstance(flip, Neutral):
            torch.testing.assert_close(result({field: value}), base, rtol=0, atol=2e-5)
            continue
        others = flip.others if isinstance(flip, Among) else {}
        before = result(others) if others else base
        if torch.equal(result({**others, field: value}), before):
            idle.append(field)
    assert idle == []


@EVERY
def test_prompt_negative_and_seed_change_the_result(name: str) -> None:
    model, image = tiny_text_model(), pictures(1, SIZE) * 0.9
    base = run(name, SMALL[name], model, image, prompt="a cat")
    assert not torch.equal(run(name, SMALL[name], model, image, prompt="a dog"), base)
    if "negative" in inspect.signature(METHODS[name].__call__).parameters:
        assert not torch.equal(run(name, SMALL[name], model, image, prompt="a cat", negative="a dog"), base)
    assert not torch.equal(run(name, SMALL[name], model, image), base)
    other = run(name, SMALL[name], model, image, prompt="a cat", seed=1)
    assert torch.equal(other, base) == (name in DETERMINISTIC)


@EVERY
def test_image_k_of_a_batch_is_image_k_alone_in_every_method(name: str) -> None:
    model, images = tiny_text_model(), pictures(3, SIZE) * 0.9
    prompts = ["a cat", "a dog", "a red cat"]
    masks = torch.cat([half_mask(SIZE), 1 - half_mask(SIZE), half_mask(SIZE)])
    masked = name in MASKED
    together = run(name, SMALL[name], model, images, prompt=prompts, seed=4, **({"mask": masks} if masked else {}))
    for k in range(3):
        mask = {"mask": masks[k : k + 1]} if masked else {}
        alone = run(name, SMALL[name], model, images[k : k + 1], prompt=prompts[k], seed=4 + k, **mask)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-5)  # float32 sums in another order


@pytest.mark.parametrize("name", [name for name in sorted(METHODS) if draws(name)])
def test_a_method_that_needs_no_image_draws_one_for_each_prompt_alike_alone_and_together(name: str) -> None:
    model, prompts = tiny_text_model(), ["a cat", "a dog", "a red cat"]
    together = run(name, untuned(name), model, None, prompt=prompts, seed=[4, 9, 2])
    assert together.shape == (3, 3, SIZE, SIZE)
    for prompt, seed, one in zip(prompts, (4, 9, 2), together, strict=True):
        alone = run(name, untuned(name), model, None, prompt=prompt, seed=seed)
        torch.testing.assert_close(one[None], alone, rtol=0, atol=2e-5)


def test_methods_are_called_alike_and_four_of_them_need_no_image() -> None:
    assert {name for name in METHODS if draws(name)} == {"classifier", "sdg", "p2p", "dreambooth"} & set(METHODS)
    for name in METHODS:
        parameters = inspect.signature(METHODS[name].__call__).parameters
        assert list(parameters)[:2] == ["self", "model"] and {"image", "seed", "progress"} <= set(parameters), name


@TOLD
def test_a_model_without_text_works_in_every_method(name: str) -> None:
    model = formula_model(lambda x, t: 0.6 * x, SIZE, NoiseSchedule.linear(100), name="plain")
    image = pictures(2, SIZE)
    assert run(name, untuned(name), model, image).shape == image.shape
    with pytest.raises(UserError, match="plain has no text encoder; leave the prompt out"):
        run(name, untuned(name), model, image, prompt="a cat")


@TOLD
def test_a_class_conditional_model_takes_its_labels_as_a_condition(name: str) -> None:
    def eps(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x * 0.1 * y.reshape(-1, 1, 1, 1)

    model = formula_model(eps, SIZE, NoiseSchedule.linear(100), num_classes=10)
    image = pictures(1, SIZE)
    two, seven = (run(name, untuned(name), model, image, prompt=model.condition(y=y)) for y in (2, 7))
    assert not torch.equal(two, seven)


BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"image": torch.zeros(1, 3, SIZE, 7)}, r"image is \[1, 3, 8, 7\]; expected \[B, 3, 8, 8\]"),
    ({"image": torch.zeros(1, 4, SIZE, SIZE)}, r"image is \[1, 4, 8, 8\]; expected \[B, 3, 8, 8\]"),
    ({"image": torch.full((1, 3, SIZE, SIZE), float("inf"))}, "image has 192 values that are NaN or infinite"),
    ({"mask": torch.zeros(1, 1, 4, 4)}, r"mask is \[1, 1, 4, 4\]; expected \[B, 1, 8, 8\]"),
    ({"mask": torch.full((1, 1, SIZE, SIZE), 0.3)}, "mask has 64 values that are neither 0 nor 1"),
    ({"mask": torch.zeros(3, 1, SIZE, SIZE)}, "3 masks were given for 1 images; give one, or one for each image"),
    ({"prompt": "a blorp"}, "does not know: 'blorp'"),
    ({"prompt": "a a a a a"}, "has [56] (words;|tokens and) this model reads at most 4"),
    ({"seed": [1, 2]}, "2 seeds for 1 images"),
    ({"seed": -1}, r"seed is -1; it must be an integer in \[0, 2\*\*63\)"),
]
TAKEN = [
    (name, *case)
    for name in sorted(METHODS)
    for case in BAD_INPUT
    if (name in MASKED or "mask" not in case[0]) and (name != "invert" or "seed" not in case[0])
]


@pytest.mark.parametrize(("name", "change", "message"), TAKEN)
def test_bad_input_is_an_error_before_the_network_is_called(name: str, change: dict[str, Any], message: str) -> None:
    network = Recording(tiny_text_model().network)
    arguments = {"image": pictures(1, SIZE), "prompt": "a cat", **change}
    with pytest.raises(UserError, match=message):
        run(name, untuned(name), tiny_text_model(network=network), **arguments)
    assert network.rows == []


@EVERY
@pytest.mark.parametrize("steps", [0, 101, "", "ddim33"])
def test_impossible_steps_are_an_error_in_every_method(name: str, steps: int | str) -> None:
    field = STEPS.get(name, "steps")
    if isinstance(steps, str) and type(getattr(SMALL[name], field)) is int and name in STEPS:
        pytest.skip("it takes no texts for its steps")
    with pytest.raises(UserError):
        method = dataclasses.replace(SMALL[name], **{field: steps})
        run(name, method, tiny_text_model(), pictures(1, SIZE))


@FORMULA
def test_a_network_that_breaks_names_the_step_in_every_method(name: str) -> None:
    def breaks(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t.reshape(-1, 1, 1, 1) > 45, x, torch.nan)

    model = formula_model(breaks, SIZE, NoiseSchedule.linear(100))
    with pytest.raises(UserError, match=r"no longer finite after step \d+ of \d+"):
        run(name, untuned(name), model, pictures(1, SIZE))


@FORMULA
def test_ctrl_c_leaves_every_method_with_the_image_so_far(name: str) -> None:
    calls = Recording(lambda x, t: 0.6 * x)

    def stops(x: Tensor, t: Tensor) -> Tensor:
        if len(calls.rows) == 1:
            raise KeyboardInterrupt
        return calls(x, t)

    model = formula_model(stops, SIZE, NoiseSchedule.linear(100))
    with pytest.raises(Interrupted) as error:
        run(name, untuned(name), model, pictures(1, SIZE))
    assert error.value.index >= 1 and error.value.x.shape == (1, 3, SIZE, SIZE)


@EVERY
def test_the_presets_are_settings_of_their_method_and_the_defaults_are_one(name: str) -> None:
    presets = sys.modules[METHODS[name].__module__].PRESETS
    assert all(isinstance(preset, METHODS[name]) for preset in presets.values())
    assert METHODS[name]() in presets.values()
    assert len(set(presets.values())) == len(presets)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierGuided(t0=0), r"t0 is 0; it must lie in \(0, 1\]"),
        (lambda: ClassifierGuided(at="mu"), "at is 'mu'; known are 'state' and 'mean'"),
        (lambda: ClassifierGuided(schedule="square"), "schedule is 'square'; known are constant"),
        (
            lambda: ClassifierGuided(at="mean", solver=DDIM()),
            "at='mean' asks at the mean of a DDPM step, which DDIM has not; use at='state'",
        ),
        (lambda: ILVR(range_t=-1), "range_t is -1; it must be at least 0"),
        (lambda: ILVR(reference_level="both"), "reference_level is 'both'; known are"),
        (lambda: SDEdit(t0=1.5), r"t0 is 1.5; it must lie in \[0, 1\]"),
        (lambda: SDEdit(repeats=0), "repeats is 0; it must be at least 1"),
        (lambda: RePaint(jump_length=0), "jump_length is 0; it must be at least 1"),
        (lambda: RePaint(jump_n_sample=0), "jump_n_sample is 0; it must be at least 1"),
        (lambda: RePaint(merge="late"), "merge is 'late'; known are"),
        (lambda: DDIMInversion(t0=0), r"t0 is 0; it must lie in \(0, 1\]"),
        (
            lambda: DDIMInversion(fixed_point=2, solver=DPMSolver2M()),
            "fixed_point inverts DDIM's step and not that of DPM",
        ),
        (lambda: DDIMInversion(fixed_point=-1), "fixed_point is -1; give a number of iterations"),
    ],
)
def test_a_setting_out_of_range_is_an_error_when_it_is_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
