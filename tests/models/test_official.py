"""Official configurations become ours, and what would change the network unseen is an error."""

import dataclasses

import pytest

from steerdiff.errors import UserError
from steerdiff.models import AutoencoderConfig, UNetConfig, build
from steerdiff.models.official import (
    autoencoder_config,
    ddpm_config,
    diffusers_unet_config,
    diffusers_vae_config,
    encoder_config,
    unet_config,
)

DDPM = {
    "type": "simple",
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
    "var_type": "fixedsmall",
    "ema_rate": 0.999,
    "ema": True,
    "resamp_with_conv": True,
}
DDCONFIG = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
#: unet/config.json as later versions of diffusers write it for Stable Diffusion 2.1, with all that is off.
SD2 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "sample_size": 96,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "upcast_attention": True,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 768,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def test_stable_diffusion_is_the_same_from_compvis_and_from_diffusers():
    kwargs = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": 1024,
        "num_head_channels": 64,
        "use_checkpoint": True,
        "use_fp16": True,
        "legacy": False,
    }
    ours = unet_config(kwargs)
    assert dataclasses.replace(ours, attention_at=(1, 2, 4)) == diffusers_unet_config(SD2)
    first = {**SD2, "attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
    config = diffusers_unet_config(first)
    assert (config.num_heads, config.head_channels, config.linear_projections) == (8, None, False)
    assert diffusers_unet_config({**first, "num_attention_heads": [8, 8, 8, 8]}) == config


def test_ddpm_s_cells_with_attention_become_factors():
    config = ddpm_config(DDPM, 256)
    assert config == UNetConfig(
        model_channels=128,
        channel_mult=(1, 1, 2, 2, 4, 4),
        attention_at=(16,),
        norm_eps=1e-6,
        time_features="sin_cos",
        pads_after=True,
    )
    assert ddpm_config({**DDPM, "ch_mult": [1, 2, 2, 2]}, 32).attention_at == (2,)
    assert ddpm_config({**DDPM, "attn_resolutions": [4]}, 256).attention_at == ()  # no level has so few cells


def test_autoencoders_are_the_same_from_compvis_and_from_diffusers():
    config = autoencoder_config({**DDCONFIG, "z_channels": 4, "ch_mult": [1, 2, 4, 4]}, 4, scale_factor=0.18215)
    assert dataclasses.replace(config, attention_at=()) == diffusers_vae_config(VAE) == AutoencoderConfig()
    assert diffusers_vae_config({**VAE, "scaling_factor": 0.5}).scale_factor == 0.5
    assert autoencoder_config(DDCONFIG, 16).attention_at == (16,)
    vq = autoencoder_config({**DDCONFIG, "double_z": False}, 8, 1024)
    assert (vq.kind, vq.codebook_size, vq.embed_dim, vq.z_channels, vq.scale_factor) == ("vq", 1024, 8, 16, 1.0)


def test_a_classifier_has_the_official_default_pool():
    kwargs = {"image_size": 64, "out_channels": 10, "num_head_channels": 64, "num_classes": None}
    assert encoder_config(kwargs).pool == "adaptive"
    assert encoder_config({**kwargs, "pool": "spatial"}).trunk.head_channels == 64


def test_upsamplers_see_twice_the_channels():
    kwargs = {"in_channels": 3, "model_channels": 32, "channel_mult": (1, 1), "image_size": 64}
    assert build("SuperResModel", kwargs).config.in_channels == 6
    with pytest.raises(UserError, match="SuperResModel lacks in_channels"):
        build("SuperResModel", {"image_size": 64})


@pytest.mark.parametrize(
    ("translate", "message"),
    [
        (lambda: unet_config({"dims": 3}), "dims=3 is not supported; only 2 is"),
        (lambda: unet_config({"num_attention_blocks": [1]}), r"num_attention_blocks=\[1\] is not supported; only None"),
        (lambda: unet_config({"use_spatial_transformer": True}), "belong together; give both or neither"),
        (lambda: ddpm_config({**DDPM, "type": "bayesian"}, 32), "type='bayesian' is not supported; only 'simple' is"),
        (lambda: ddpm_config({"ch": 32}, 32), "lacks in_channels, out_ch, ch_mult, num_res_blocks, attn_resolutions"),
        (lambda: ddpm_config({**DDPM, "groups": 8}, 32), "groups is not a known setting of a pytorch_diffusion model"),
        (lambda: autoencoder_config({**DDCONFIG, "attn_type": "none"}, 4), "attn_type='none' is not supported"),
        (lambda: autoencoder_config({**DDCONFIG, "out_ch": 4}, 4), "out_ch=4 is not supported; only 3 is"),
        (lambda: autoencoder_config({**DDCONFIG, "double_z": False}, 4), "double_z=False does not go with kind 'kl'"),
        (lambda: autoencoder_config(DDCONFIG, 4, 100), "double_z=True does not go with kind 'vq'"),
        (lambda: autoencoder_config({"ch": 128}, 4), "ddconfig lacks z_channels, resolution, in_channels, ch_mult"),
        (lambda: diffusers_unet_config({**SD2, "num_class_embeds": 7}), "num_class_embeds=7 is not supported"),
        (lambda: diffusers_unet_config({**SD2, "addition_embed_type": "text_time"}), "addition_embed_type='text_time'"),
        (
            lambda: diffusers_unet_config({**SD2, "flavour": 1}),
            "flavour is not a known setting of diffusers' UNet2DCon",
        ),
        (lambda: diffusers_unet_config({**SD2, "layers_per_block": [1, 2, 2, 2]}), "only the same for all levels is"),
        (lambda: diffusers_unet_config({**SD2, "attention_head_dim": [5, 10]}), "has 2 values for 4 levels"),
        (lambda: diffusers_unet_config({**SD2, "attention_head_dim": [5, 5, 5, 8]}), "or heads of one width are"),
        (lambda: diffusers_unet_config({**SD2, "block_out_channels": [320, 480]}), "must be a multiple of the first"),
        (lambda: diffusers_unet_config({**SD2, "up_block_types": ["UpBlock2D"] * 4}), "each of the 4 levels has eith"),
        (lambda: diffusers_unet_config({**SD2, "down_block_types": ["AttnDownBlock2D"] * 4}), "are not supported"),
        (lambda: diffusers_vae_config({**VAE, "shift_factor": 0.1}), "shift_factor=0.1 is not supported; only None"),
        (
            lambda: diffusers_vae_config({**VAE, "down_block_types": ["DownBlock2D"] * 4}),
            "down_block_types=.* not supp",
        ),
        (lambda: diffusers_vae_config({}), "the VAE's config.json lacks in_channels, out_channels, latent_channels"),
        (lambda: build("ldm AutoencoderKL", {"ddconfig": DDCONFIG}), "was given ddconfig; it takes ddconfig and embed"),
        (lambda: build("ldm AutoencoderKL", {"ddconfig": DDCONFIG, "embed_dim": 4, "x": 1}), "it takes ddconfig and"),
        (lambda: build("pytorch_diffusion Model", DDPM), "lacks image_size; give it beside the model section"),
    ],
)
def test_what_would_change_the_network_unseen_is_an_error(translate, message):
    with pytest.raises(UserError, match=message):
        translate()
