"""The network sizes that are timed, and diffusers' networks of the same size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steerdiff.errors import UserError

if TYPE_CHECKING:
    from steerdiff.models import UNetConfig

__all__ = ["SIZES", "Size", "config", "peer"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network and the inputs that it is timed with, one image at a time."""

    state: tuple[int, int, int]  #: channels, height and width of x
    trained: tuple[int, int, int]  #: the same for forward and backward, where memory is short
    context: tuple[int, int] | None = None  #: text states and their width; None for a network without text


#: By name; ``small`` has the form of Stable Diffusion at a fifth of its width.
SIZES: dict[str, Size] = {
    "small": Size(state=(4, 32, 32), trained=(4, 32, 32), context=(77, 256)),
    "adm-64": Size(state=(3, 64, 64), trained=(3, 64, 64)),
    "adm-256": Size(state=(3, 256, 256), trained=(3, 128, 128)),
    "sd-1.5": Size(state=(4, 64, 64), trained=(4, 64, 64), context=(77, 768)),
}


def config(name: str) -> UNetConfig:
    """Return the configuration of our network; the published ones without class labels and dropout."""
    from steerdiff.models import UNetConfig
    from steerdiff.models.published import PRESETS

    if name == "small":
        return UNetConfig(
            in_channels=4,
            out_channels=4,
            model_channels=64,
            channel_mult=(1, 2, 4, 4),
            attention_at=(1, 2, 4),
            num_heads=8,
            context_dim=256,
        )
    unet = PRESETS[name].model.unet
    if unet is None:
        raise UserError(f"preset {name} has no UNet, which is what is timed; choose another size")
    return replace(unet, num_classes=None, dropout=0.0)


def peer(name: str) -> Any:
    """Return diffusers' network of the same size, on the CPU and in float32."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    ours = config(name)
    widths = tuple(int(mult * ours.model_channels) for mult in ours.channel_mult)
    shared: dict[str, Any] = {
        "sample_size": SIZES[name].state[-1],
        "in_channels": ours.in_channels,
        "out_channels": ours.out_channels,
        "block_out_channels": widths,
        "layers_per_block": ours.num_res_blocks,
    }
    if ours.context_dim is not None:  # its attention_head_dim is the number of heads
        return UNet2DConditionModel(**shared, cross_attention_dim=ours.context_dim, attention_head_dim=ours.num_heads)
    attends = [2**level in ours.attention_at for level in range(len(widths))]
    return UNet2DModel(
        **shared,
        down_block_types=tuple("AttnDownBlock2D" if at else "ResnetDownsampleBlock2D" for at in attends),
        up_block_types=tuple("AttnUpBlock2D" if at else "ResnetUpsampleBlock2D" for at in reversed(attends)),
        attention_head_dim=ours.head_channels,
        attn_norm_num_groups=32,  # else the middle's attention has no norm
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
    )
