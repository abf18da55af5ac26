"""Our configurations from the official classes' constructor arguments and configuration files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from steerdiff.errors import UserError, require

from .config import AutoencoderConfig, EncoderUNetConfig, UNetConfig

__all__ = [
    "autoencoder_config",
    "ddpm_config",
    "diffusers_unet_config",
    "diffusers_vae_config",
    "encoder_config",
    "unet_config",
]

RENAMED = {
    "attention_resolutions": "attention_at",
    "num_head_channels": "head_channels",
    "use_scale_shift_norm": "scale_shift_norm",
    "use_linear_in_transformer": "linear_projections",
}
SAME = (
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "num_heads",
    "num_heads_upsample",
    "resblock_updown",
    "conv_resample",
    "dropout",
    "num_classes",
    "context_dim",
    "transformer_depth",
)
WITHOUT_EFFECT = ("image_size", "use_checkpoint", "use_fp16", "use_bf16", "legacy")  # "legacy" renames what False means
FIXED = {
    "dims": 2,
    "n_embed": None,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
    "adm_in_channels": None,
}

DDPM_WITHOUT_EFFECT = ("var_type", "ema_rate", "ema")
DDPM_FIXED = {"type": "simple"}

STAGE_WITHOUT_EFFECT = ("dropout",)  # the published ones have 0, and none is trained on here
STAGE_FIXED = {
    "tanh_out": False,
    "give_pre_end": False,
    "resamp_with_conv": True,
    "use_linear_attn": False,
    "attn_type": "vanilla",
}

# What every configuration of diffusers says about itself, and what only sets how it is run.
DIFFUSERS_WITHOUT_EFFECT = ("_class_name", "_diffusers_version", "_name_or_path", "sample_size", "_use_default_values")
DIFFUSERS_UNET_WITHOUT_EFFECT = (*DIFFUSERS_WITHOUT_EFFECT, "upcast_attention", "addition_embed_type_num_heads")
DIFFUSERS_UNET_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
DIFFUSERS_VAE_WITHOUT_EFFECT = (*DIFFUSERS_WITHOUT_EFFECT, "force_upcast")
DIFFUSERS_VAE_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def unet_config(kwargs: Mapping[str, Any]) -> UNetConfig:
    """Translate the constructor arguments of guided-diffusion's or CompVis' ``UNetModel``.

    Args:
        kwargs: Arguments under their official names; -1 means unset there.

    Raises:
        UserError: An argument is unknown or asks for something that does not exist here.
    """
    values: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in FIXED:
            _check_fixed(name, value, FIXED[name])
        elif name == "use_new_attention_order":
            values["attention_order"] = "new" if value else "legacy"
        elif name == "use_spatial_transformer":
            require(
                bool(value) == (kwargs.get("context_dim") is not None),
                "use_spatial_transformer and context_dim belong together; give both or neither",
            )
        elif name in RENAMED or name in SAME:
            unset = name in ("num_head_channels", "num_heads_upsample", "num_heads") and value == -1
            if not unset:
                values[RENAMED.get(name, name)] = value
        elif name not in WITHOUT_EFFECT:
            raise UserError(f"{name} is not an argument of a known UNet; check the spelling")
    return UNetConfig(**values)


def encoder_config(kwargs: Mapping[str, Any]) -> EncoderUNetConfig:
    """Translate the constructor arguments of guided-diffusion's ``EncoderUNetModel``, the noisy classifier.

    Args:
        kwargs: Arguments under their official names; ``image_size`` in pixels and ``out_channels``, the number of
            classes, are needed; ``pool`` is "adaptive" where it is not given, as there.

    Raises:
        UserError: An argument is missing, unknown or asks for something that does not exist here.
    """
    _check_given(kwargs, ("image_size", "out_channels"), "the classifier")
    trunk = unet_config({name: value for name, value in kwargs.items() if name != "pool"})
    return EncoderUNetConfig(trunk=trunk, image_size=kwargs["image_size"], pool=kwargs.get("pool", "adaptive"))


def ddpm_config(model: Mapping[str, Any], image_size: int) -> UNetConfig:
    """Translate the ``model`` section of a pytorch_diffusion (ermongroup) configuration.

    Args:
        model: The section under its published names (ch, ch_mult, attn_resolutions, ...).
        image_size: Height and width in pixels; it turns ``attn_resolutions`` into downsampling factors.

    Raises:
        UserError: A name is missing, unknown or asks for something that does not exist here.
    """
    names = ("in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout")
    _check_names(model, (*names, "resamp_with_conv"), DDPM_FIXED, DDPM_WITHOUT_EFFECT, "a pytorch_diffusion model")
    _check_given(model, names[:-1], "the pytorch_diffusion model")
    return UNetConfig(
        in_channels=model["in_channels"],
        out_channels=model["out_ch"],
        model_channels=model["ch"],
        channel_mult=model["ch_mult"],
        num_res_blocks=model["num_res_blocks"],
        attention_at=_factors(model["attn_resolutions"], image_size, len(model["ch_mult"])),
        dropout=model.get("dropout", 0.0),
        conv_resample=model.get("resamp_with_conv", True),
        norm_eps=1e-6,
        time_features="sin_cos",
        pads_after=True,
    )


def autoencoder_config(
    ddconfig: Mapping[str, Any], embed_dim: int, n_embed: int | None = None, scale_factor: float = 1.0
) -> AutoencoderConfig:
    """Translate the arguments of CompVis' ``AutoencoderKL``, or with ``n_embed`` those of ``VQModelInterface``.

    Args:
        ddconfig: Arguments of encoder and decoder under their official names.
        embed_dim: Channels of a latent.
        n_embed: Vectors of the codebook; None for a KL autoencoder.
        scale_factor: What the diffusion model multiplies latents by; it stands in the diffusion model's configuration.

    Raises:
        UserError: A name is missing, unknown or asks for something that does not exist here.
    """
    names = ("z_channels", "resolution", "in_channels", "ch", "ch_mult", "num_res_blocks", "attn_resolutions")
    taken = (*names, "out_ch", "double_z")
    _check_names(ddconfig, taken, STAGE_FIXED, STAGE_WITHOUT_EFFECT, "an autoencoder's ddconfig")
    _check_given(ddconfig, names, "ddconfig")
    kind: Literal["kl", "vq"] = "kl" if n_embed is None else "vq"
    _check_fixed("out_ch", ddconfig.get("out_ch", ddconfig["in_channels"]), ddconfig["in_channels"])
    double_z = ddconfig.get("double_z", True)
    require(
        double_z == (kind == "kl"),
        f"double_z={double_z} does not go with kind '{kind}'; it is True for KL, and False with a codebook (n_embed)",
    )
    return AutoencoderConfig(
        kind=kind,
        in_channels=ddconfig["in_channels"],
        channels=ddconfig["ch"],
        channel_mult=ddconfig["ch_mult"],
        num_res_blocks=ddconfig["num_res_blocks"],
        attention_at=_factors(ddconfig["attn_resolutions"], ddconfig["resolution"], len(ddconfig["ch_mult"])),
        z_channels=ddconfig["z_channels"],
        embed_dim=embed_dim,
        codebook_size=n_embed,
        scale_factor=scale_factor,
    )


def diffusers_unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Translate the config.json of diffusers' ``UNet2DConditionModel``; absent names have the class's defaults.

    ``attention_head_dim`` means the number of heads, for all levels or for each, as in the published files.

    Raises:
        UserError: A name is unknown, or asks for something that does not exist here.
    """
    taken: tuple[str, ...] = ("in_channels", "out_channels", "block_out_channels", "layers_per_block")
    taken += ("attention_head_dim", "num_attention_heads", "cross_attention_dim", "use_linear_projection", "norm_eps")
    taken += ("down_block_types", "up_block_types", "dropout", "transformer_layers_per_block")
    what = "diffusers' UNet2DConditionModel"
    _check_names(config, taken, DIFFUSERS_UNET_FIXED, DIFFUSERS_UNET_WITHOUT_EFFECT, what)
    widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
    heads = config.get("num_attention_heads")
    heads = config.get("attention_head_dim", 8) if heads is None else heads
    return UNetConfig(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        model_channels=widths[0],
        channel_mult=_multipliers(widths),
        num_res_blocks=_one("layers_per_block", config.get("layers_per_block", 2)),
        attention_at=_attention_at(config, len(widths)),
        context_dim=_one("cross_attention_dim", config.get("cross_attention_dim", 1280)),
        transformer_depth=_one("transformer_layers_per_block", config.get("transformer_layers_per_block", 1)),
        linear_projections=config.get("use_linear_projection", False),
        dropout=config.get("dropout", 0.0),
        norm_eps=config.get("norm_eps", 1e-5),
        **_heads(heads, widths),
    )


def diffusers_vae_config(config: Mapping[str, Any]) -> AutoencoderConfig:
    """Translate the config.json of diffusers' ``AutoencoderKL``.

    Raises:
        UserError: A name is missing, unknown or asks for something that does not exist here.
    """
    names = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
    blocks = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    taken = (*names, *blocks, "scaling_factor")
    _check_names(config, taken, DIFFUSERS_VAE_FIXED, DIFFUSERS_VAE_WITHOUT_EFFECT, "diffusers' AutoencoderKL")
    _check_given(config, (*names, *blocks), "the VAE's config.json")
    _check_fixed("out_channels", config["out_channels"], config["in_channels"])
    widths = tuple(config["block_out_channels"])
    for name, block in blocks.items():
        _check_fixed(name, list(config[name]), [block] * len(widths))
    return AutoencoderConfig(
        in_channels=config["in_channels"],
        channels=widths[0],
        channel_mult=_multipliers(widths),
        num_res_blocks=config["layers_per_block"],
        z_channels=config["latent_channels"],
        embed_dim=config["latent_channels"],
        scale_factor=config.get("scaling_factor", 0.18215),
    )


def _check_names(
    given: Mapping[str, Any], taken: Iterable[str], fixed: Mapping[str, Any], ignored: Iterable[str], what: str
) -> None:
    """Raise ``UserError`` for a name that is unknown, or one of ``fixed`` with another value than there."""
    known = {*taken, *fixed, *ignored}
    for name, value in given.items():
        require(name in known, f"{name} is not a known setting of {what}; check the spelling")
        if name in fixed:
            _check_fixed(name, value, fixed[name])


def _check_given(given: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    missing = [name for name in names if name not in given]
    require(not missing, f"{what} lacks {', '.join(missing)}; give them as published")


def _check_fixed(name: str, value: Any, allowed: Any) -> None:
    require(value == allowed, f"{name}={value!r} is not supported; only {allowed!r} is")


def _factors(resolutions: Sequence[int], image_size: int, levels: int) -> tuple[int, ...]:
    """Return the downsampling factors of the levels whose grid is one of ``resolutions`` cells wide."""
    return tuple(2**level for level in range(levels) if image_size // 2**level in resolutions)


def _multipliers(widths: Sequence[int]) -> tuple[int, ...]:
    require(
        all(width % widths[0] == 0 for width in widths),
        f"block_out_channels is {list(widths)}; each must be a multiple of the first",
    )
    return tuple(width // widths[0] for width in widths)


def _one(name: str, value: Any) -> Any:
    """Return the one value of a setting that may be a list with a value for each level."""
    values = list(value) if isinstance(value, Sequence) else [value]
    require(len(set(values)) == 1, f"{name}={values} is not supported; only the same for all levels is")
    return values[0]


def _heads(heads: int | Sequence[int], widths: Sequence[int]) -> dict[str, Any]:
    """Return ``num_heads`` where all levels have as many, else ``head_channels`` where all heads are as wide."""
    counts = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    require(
        len(counts) == len(widths),
        f"attention_head_dim has {len(counts)} values for {len(widths)} levels; give one for each",
    )
    if len(set(counts)) == 1:
        return {"num_heads": counts[0]}
    sizes = {width / count for width, count in zip(widths, counts, strict=True)}
    require(
        len(sizes) == 1 and sizes == {widths[0] // counts[0]},
        f"attention_head_dim={counts} over {list(widths)} channels is not supported; "
        "only as many heads at all levels or heads of one width are",
    )
    return {"head_channels": widths[0] // counts[0]}


def _attention_at(config: Mapping[str, Any], levels: int) -> tuple[int, ...]:
    """Return the downsampling factors of the levels whose blocks of diffusers carry attention."""
    plain, crossed = ["DownBlock2D", "UpBlock2D"], ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"]
    down = list(config.get("down_block_types", [crossed[0]] * (levels - 1) + [plain[0]]))
    up = list(config.get("up_block_types", [plain[1]] + [crossed[1]] * (levels - 1)))
    kinds = list(zip(down, reversed(up), strict=False))
    require(
        len(down) == len(up) == levels and all(list(kind) in (plain, crossed) for kind in kinds),
        f"the blocks {down} and {up} are not supported; each of the {levels} levels has either {plain} or {crossed}",
    )
    return tuple(2**level for level, kind in enumerate(kinds) if list(kind) == crossed)
