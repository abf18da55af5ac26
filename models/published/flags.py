"""The published command-line flags of guided-diffusion and improved-diffusion, as a mapping or as typed."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.config import EncoderUNetConfig, UNetConfig
from steerdiff.models.official import encoder_config, unet_config

from .spec import PublishedModel

__all__ = ["CLASSES", "from_flags", "nearest", "parse_command_line"]

#: Labels of ImageNet, which the official scripts always assume.
CLASSES = 1000

#: Defaults of guided-diffusion's ``model_and_diffusion_defaults``, less those of `WITHOUT_EFFECT`.
_MODEL: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_DIFFUSION: dict[str, Any] = {
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
_UPSAMPLER: dict[str, Any] = {"large_size": 256, "small_size": 64}
#: Defaults of its ``classifier_defaults``.
_CLASSIFIER: dict[str, Any] = {
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
#: Flags of the official scripts and their descendants that change no network and no schedule.
WITHOUT_EFFECT = frozenset(
    {
        *("use_checkpoint", "use_fp16", "classifier_use_fp16", "fp16_scale_growth", "microbatch", "batch_size", "gpus"),
        *("timestep_respacing", "use_ddim", "clip_denoised", "num_samples", "classifier_scale", "seed", "down_N"),
        *("model_path", "classifier_path", "base_samples", "base_name", "data_dir", "val_data_dir", "save_dir"),
        *("use_kl", "rescale_learned_sigmas", "sigma_small", "noised", "schedule_sampler", "p2_gamma", "p2_k"),
        *("lr", "weight_decay", "anneal_lr", "lr_anneal_steps", "ema_rate", "iterations", "resume_checkpoint"),
        *("log_interval", "save_interval", "eval_interval", "save_latents", "sample_dir", "range_t"),
    }
)

#: Channel multipliers that the official scripts take where none are given, by size in pixels.
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
_UPSAMPLER_MULTIPLIERS: dict[int, tuple[float, ...]] = {**_MULTIPLIERS, 512: (1, 1, 2, 2, 4, 4)}
_HEAD_CHANNELS = 64  # of every classifier


def from_flags(flags: Mapping[str, Any], *, classes: int | None = None) -> PublishedModel:
    """Return the model that guided-diffusion's scripts make of ``flags``, its defaults for those not given.

    Flags of the classifier give a classifier, those of the diffusion network a network, both give both;
    ``large_size`` or ``small_size`` give an upsampler.

    Args:
        flags: Values under their published names; texts as on a command line are understood.
        classes: Number of labels, where it is known; else 1000.

    Raises:
        UserError: A flag is unknown, or its value is impossible.
    """
    known = {**_MODEL, **_DIFFUSION, **_UPSAMPLER, **_CLASSIFIER}
    for name in flags:
        if name not in known and name not in WITHOUT_EFFECT:
            raise UserError(f"{name!r} is not a published flag; {nearest(name, [*known, *WITHOUT_EFFECT])}")
    given = {name: _value(name, value, known[name]) for name, value in flags.items() if name in known}
    classes = CLASSES if classes is None else classes
    wants_classifier = any(name in _CLASSIFIER or name in ("classifier_path", "classifier_scale") for name in flags)
    only = {"image_size", *_CLASSIFIER}
    classifier = _classifier({**_MODEL, **_CLASSIFIER, **given}, classes) if wants_classifier else None
    if classifier is not None and not set(given) - only:
        return PublishedModel(family="classifier", classifier=classifier, image_size=classifier.image_size)
    return _diffusion(given, classifier, classes)


def parse_command_line(text: str) -> dict[str, str]:
    """Return the flags of a command line such as ``python scripts/image_sample.py --image_size 64 ...``.

    Words before the flags are passed over; ``MODEL_FLAGS="--image_size 64 ..."`` is read too.

    Raises:
        UserError: A flag has no value, or a quotation does not end.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"the flags {text!r} cannot be split into words ({error}); check the quotes") from error
    flags: dict[str, str] = {}
    waiting: str | None = None
    for word in words:
        name, is_pair, value = word.partition("=")
        if waiting is not None:
            require(not word.startswith("--"), f"the flag --{waiting} has no value; give one as published")
            flags[waiting], waiting = word, None
        elif word.startswith("--") and is_pair:
            flags[name[2:]] = value
        elif word.startswith("--"):
            waiting = word[2:]
        elif is_pair and value.lstrip().startswith("--"):
            flags.update(parse_command_line(value))
    require(waiting is None, f"the flag --{waiting} has no value; give one as published")
    require(bool(flags), f"{text!r} holds no flags; write them as --image_size 64 --num_channels 192 ...")
    return flags


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known words nearest to ``word``, or a list of all of them."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(words)}"


def _diffusion(given: Mapping[str, Any], classifier: EncoderUNetConfig | None, classes: int) -> PublishedModel:
    flags = {**_MODEL, **_DIFFUSION, **_UPSAMPLER, **given}
    steps, schedule = flags["diffusion_steps"], flags["noise_schedule"]
    require(schedule in ("linear", "cosine"), f"noise_schedule is {schedule!r}; known are linear and cosine")
    require(steps >= 1, f"diffusion_steps is {steps}; it must be at least 1")
    require(
        steps == 1000 or "rescale_timesteps" in given,
        f"diffusion_steps is {steps} and rescale_timesteps is not given; improved-diffusion takes True for it and "
        "guided-diffusion False, so say which",
    )
    upsamples = any(name in _UPSAMPLER for name in given)
    size = flags["large_size"] if upsamples else flags["image_size"]
    multipliers = _UPSAMPLER_MULTIPLIERS if upsamples else _MULTIPLIERS
    channels = 6 if upsamples else 3
    return PublishedModel(
        family="adm",
        unet=_unet(flags, size, channels, multipliers, classes),
        classifier=classifier,
        schedule={"name": schedule, "T": steps},
        parameterization="x0" if flags["predict_xstart"] else "eps",
        learns_variance=flags["learn_sigma"],
        image_size=size,
        low_res_size=flags["small_size"] if upsamples else None,
        inputs="low_res" if upsamples else "plain",
        time_scale=1000 / steps if flags["rescale_timesteps"] else 1.0,
    )


def _unet(
    flags: Mapping[str, Any], size: int, channels: int, multipliers: Mapping[int, tuple[float, ...]], classes: int
) -> UNetConfig:
    same = ("num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels", "dropout", "resblock_updown")
    return unet_config(
        {
            **{name: flags[name] for name in same},
            "in_channels": channels,
            "out_channels": 6 if flags["learn_sigma"] else 3,
            "model_channels": flags["num_channels"],
            "channel_mult": _mult(flags["channel_mult"], size, multipliers),
            "attention_resolutions": _factors("attention_resolutions", flags["attention_resolutions"], size),
            "num_classes": classes if flags["class_cond"] else None,
            "use_scale_shift_norm": flags["use_scale_shift_norm"],
            "use_new_attention_order": flags["use_new_attention_order"],
        }
    )


def _classifier(flags: Mapping[str, Any], classes: int) -> EncoderUNetConfig:
    size = flags["image_size"]
    name = "classifier_attention_resolutions"
    return encoder_config(
        {
            "image_size": size,
            "in_channels": 3,
            "model_channels": flags["classifier_width"],
            "out_channels": classes,
            "num_res_blocks": flags["classifier_depth"],
            "attention_resolutions": _factors(name, flags[name], size),
            "channel_mult": _mult("", size, _MULTIPLIERS),
            "num_head_channels": _HEAD_CHANNELS,
            "use_scale_shift_norm": flags["classifier_use_scale_shift_norm"],
            "resblock_updown": flags["classifier_resblock_updown"],
            "pool": flags["classifier_pool"],
        }
    )


def _mult(value: Any, size: int, multipliers: Mapping[int, tuple[float, ...]]) -> tuple[float, ...]:
    if value not in ("", None, ()):
        return _numbers("channel_mult", value)
    require(
        size in multipliers,
        f"an image of {size} pixels has no usual channel_mult (known are {', '.join(map(str, sorted(multipliers)))}); "
        "give channel_mult",
    )
    return multipliers[size]


def _factors(name: str, value: Any, size: int) -> tuple[int, ...]:
    """Return downsampling factors for the grid sizes in ``value``, such as "32,16,8"."""
    numbers = _numbers(name, value)
    fits = all(number > 0 and size % number == 0 for number in numbers)
    require(fits, f"{name} is {value!r}; each number must divide the image's size, {size}")
    return tuple(sorted(size // int(number) for number in numbers))


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    try:
        numbers = tuple(float(part) for part in parts if part != "")
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {value!r}; give numbers separated by commas") from error
    return tuple(int(number) if number == int(number) else number for number in numbers)


def _value(name: str, value: Any, default: Any) -> Any:
    """Return ``value`` in the type of the flag's default; texts are read as the official command line reads them."""
    kind = type(default)
    if kind is str:
        return value
    if kind is bool and isinstance(value, str):
        words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
        words.update({"no": False, "false": False, "f": False, "n": False, "0": False})
        require(value.lower() in words, f"{name} is {value!r}; it must be True or False")
        return words[value.lower()]
    fits = isinstance(value, bool) if kind is bool else isinstance(value, (int, float, str)) and value is not True
    require(fits, f"{name} is {value!r}; it must be {'True or False' if kind is bool else 'a number'}")
    try:
        number = kind(value)
    except ValueError as error:
        raise UserError(f"{name} is {value!r}; it must be a number") from error
    require(not isinstance(value, float) or number == value, f"{name} is {value!r}; it must be a whole number")
    return number
