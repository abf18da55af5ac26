"""Distances between images as a network sees them: LPIPS, and the same formula in the feature maps of a CLIP."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.models.checkpoint import file_hash
from steerdiff.models.weights import check_fit, identity, open_weights

__all__ = [
    "FeatureDistance",
    "LpipsTrunk",
    "PerceptualDistance",
    "backbone_file",
    "clip_distance",
    "lpips_distance",
    "lpips_network",
    "lpips_backbone",
    "perceptual",
]

#: Networks that LPIPS is published for; Asyrp's curves are AlexNet's, losses mostly VGG's.
LpipsTrunk = Literal["alex", "vgg"]
_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights"}
_FOLDER = "STEERDIFF_WEIGHTS"
_EPS = 1e-8  # added to squared lengths: at a feature of 0 their root has no gradient


class PerceptualDistance(Protocol):
    """How different two images look."""

    @property
    def name(self) -> str:
        """What it is, for the record; distances of different names are not comparable."""
        ...

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of its weights' file, for the record; None without one."""
        ...

    def __call__(self, a: Tensor, b: Tensor, /) -> Tensor:
        """Return the distances [B] of images [B, 3, H, W] in [-1, 1]; gradients flow."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureDistance:
    """LPIPS' formula over any feature maps: ``sum_l mean_hw sum_c w_lc (f_lc / |f_l| - g_lc / |g_l|)^2``.

    Source: Zhang et al. 2018, eq. 1. A little is added to the squared lengths, without which a feature of 0, as empty
    parts of a picture have, gives gradients that are NaN; values change by less than 1e-6.
    """

    name: str  #: what the features are
    features: Callable[[Tensor], Sequence[Tensor]]  #: images [B, 3, H, W] in [-1, 1] to maps [B, C_l, h_l, w_l]
    #: w_l of each map, [C_l], not negative; None: all 1 over the number of maps
    weights: tuple[Tensor, ...] | None = None
    weights_hash: str | None = None  #: SHA-256 of the weights' file, for the record

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances [B] of images ``a`` and ``b`` [B, 3, H, W] in [-1, 1]."""
        total: Tensor | None = None
        maps = list(zip(self.features(a), self.features(b), strict=True))
        for index, (f, g) in enumerate(maps):
            squares = (_unit(f) - _unit(g)).square()
            if self.weights is None:
                term = squares.sum(1) / len(maps)
            else:
                term = torch.einsum("bchw,c->bhw", squares, self.weights[index].to(squares))
            distance = term.flatten(1).mean(1)
            total = distance if total is None else total + distance
        require(total is not None, "a distance in feature maps needs at least one map")
        return total if total is not None else torch.zeros(len(a))


def lpips_distance(net: LpipsTrunk = "alex", trunk: str | os.PathLike[str] | None = None) -> FeatureDistance:
    """Return LPIPS 0.1 with its published layers, the trunk from a local file of torchvision's weights.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric".

    Args:
        net: The trunk, "alex" or "vgg".
        trunk: Its file; None looks where `lpips_backbone` does.

    Raises:
        UserError: The file is nowhere, with what to get and where to put it, or does not fit.
    """
    path = lpips_backbone(net, None if trunk is None else Path(trunk))
    require(
        path is not None,
        f"LPIPS ({net}) needs the weights of its trunk, and they are not here: get {_url(net)} and put the file "
        f"{backbone_file(net)} into the folder that {_FOLDER} names, or give its path as trunk; nothing is fetched. "
        "distance 'emoji64-clip' needs no file",
    )
    network = lpips_network(net, path)  # type: ignore[arg-type]
    weights = tuple(layer.model[-1].weight.detach().flatten() for layer in network.lins)
    return FeatureDistance(
        name=f"LPIPS {network.version} ({net})",
        features=lambda image: network.net(network.scaling_layer(image.float())),
        weights=weights,
        weights_hash=file_hash(path),  # type: ignore[arg-type]
    )


def clip_distance(clip: Any) -> FeatureDistance:
    """Return LPIPS' formula in the feature maps of a CLIP; without layers fitted to people's votes it is not LPIPS.

    Args:
        clip: A `Clip`, as ``steerdiff.load("emoji64-clip")`` gives.
    """
    return FeatureDistance(
        name=f"feature distance in {clip.name} (not LPIPS)",
        features=lambda image: clip.feature_maps(image).maps,
        weights_hash=getattr(clip, "weights_hash", None),
    )


def perceptual(source: str, clip: Any = None) -> FeatureDistance:
    """Return the distance that a setting names.

    Args:
        source: "lpips-alex", "lpips-vgg", or the name or file of a CLIP.
        clip: The `Clip` of that name where it is loaded already; None loads it.

    Raises:
        UserError: LPIPS' trunk is not here, or no CLIP has that name.
    """
    kind, _, net = source.partition("-")
    if kind == "lpips":
        known = get_args(LpipsTrunk)
        require(net in known, f"distance is {source!r}; LPIPS has {', '.join(f'lpips-{one}' for one in known)}")
        return lpips_distance(net)  # type: ignore[arg-type]
    if clip is None:
        from .loading import load_cached

        clip = load_cached(source, "clip")
    return clip_distance(clip)


def lpips_backbone(net: str, path: Path | None = None) -> Path | None:
    """Return the file of torchvision's weights that LPIPS needs; None where there is none.

    Args:
        net: "alex" or "vgg".
        path: The file; None looks into the folder that STEERDIFF_WEIGHTS names and into PyTorch's own cache.

    Raises:
        UserError: A file is given and missing.
    """
    require(path is None or path.is_file(), f"lpips_backbone is {path}, which is no file; give {backbone_file(net)}")
    if path is not None:
        return path
    folders = [Path(os.environ[_FOLDER])] if os.environ.get(_FOLDER) else []
    files = [folder / backbone_file(net) for folder in (*folders, Path(torch.hub.get_dir()) / "checkpoints")]
    return next((file for file in files if file.is_file()), None)


def backbone_file(net: str) -> str:
    """Return the name under which torchvision publishes the weights that LPIPS was fitted to."""
    return _url(net).rsplit("/", 1)[1]


def lpips_network(net: str, path: Path) -> Any:
    """Return the ``lpips`` package's network, its trunk from a file of torchvision's weights, frozen and in eval mode.

    Raises:
        UserError: The file does not fit.
    """
    import lpips

    file = open_weights(path)
    with warnings.catch_warnings():  # torchvision's, of an argument that lpips still passes
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # calibrated layers, trunk of no use yet
    own = network.net.state_dict()
    names = {key: f"features.{key.split('.', 1)[1]}" for key in own}
    used = file.without(lambda name: not name.startswith("features."))
    check_fit({names[key]: tensor for key, tensor in own.items()}, used, identity(names.values()), source=str(path))
    network.net.load_state_dict({key: used.read(name) for key, name in names.items()})
    return network.eval().requires_grad_(False)


def _url(net: str) -> str:
    import torchvision.models

    return str(getattr(torchvision.models, _BACKBONES[net]).IMAGENET1K_V1.url)


def _unit(f: Tensor) -> Tensor:
    """Return feature maps [B, C, h, w] of length 1 at each place, in float32."""
    f = f.float()
    return f * (f.square().sum(1, keepdim=True) + _EPS).rsqrt()
