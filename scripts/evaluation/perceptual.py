"""CLIP score, LPIPS and DINO similarity by the libraries that keep them, with weights of files that are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.guidance.perceptual import backbone_file, lpips_backbone, lpips_network
from steerdiff.models import Clip, file_hash, load_clip, text_features
from steerdiff.models.weights import check_fit, identity, open_weights
from steerdiff.scripts.suggestions import closest

__all__ = [
    "ClipScore",
    "PairMeasure",
    "backbone_file",
    "clip_score",
    "dino_similarity",
    "lpips_backbone",
    "lpips_distance",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipScore:
    """How well images fit their captions: 100 max(cos, 0) of CLIP's vectors. Source: Hessel et al. 2021, CLIPScore.

    Their own factor is 2.5; 100 is what torchmetrics and most papers on generation report.
    """

    clip: Clip  #: the network and its tokens
    see: Callable[[Image.Image], Tensor]  #: open_clip's preprocessing
    facts: dict[str, Any]  #: for the record

    @torch.inference_mode()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the scores [B], 0..100, of images uint8 [B, 3, H, W]."""
        texts = text_features(self.clip.network, self.clip.tokenize(captions, truncates=True))
        return 100 * (self.vectors(images) * texts).sum(-1).clamp(min=0).cpu().double()

    @torch.inference_mode()
    def vectors(self, images: Tensor) -> Tensor:
        """Return CLIP's vectors [B, D] of images uint8 [B, 3, H, W], of length 1."""
        network = self.clip.network
        like = network.token_embedding.weight
        seen = _seen(images, self.see).to(like.device, like.dtype)
        return functional.normalize(network.encode_image(seen).float(), dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMeasure:
    """A measure of two images."""

    measure: Callable[[Tensor, Tensor], Tensor]  #: uint8 [B, 3, H, W] twice to [B]
    facts: dict[str, Any]  #: for the record

    @torch.inference_mode()
    def __call__(self, generated: Tensor, reference: Tensor) -> Tensor:
        """Return the measures [B] float64 of pairs of images, uint8 [B, 3, H, W]."""
        return self.measure(generated, reference).cpu().double()


def clip_score(path: Path, architecture: str | None, quick_gelu: bool | None, device: str) -> ClipScore:
    """Return the CLIP score of a file's weights.

    Raises:
        UserError: As `load_clip`.
    """
    import open_clip

    clip = load_clip(path, architecture, quick_gelu=quick_gelu, device=device)
    size = clip.size
    facts = {
        "name": "CLIP" if architecture is None else architecture,
        "weights": path.name,
        "sha256": clip.weights_hash,
        "resize": f"shorter side bicubic, antialiased, to {size}, centre {size} x {size} (open_clip)",
        "side": size,
        "note": f"100 max(cos, 0); texts are cut after {clip.network.context_length} tokens",
    }
    return ClipScore(clip=clip, see=open_clip.image_transform(size, is_train=False), facts=facts)


def lpips_distance(path: Path, net: str, device: str) -> PairMeasure:
    """Return LPIPS 0.1 of the ``lpips`` package, its backbone from a file of torchvision's weights.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric".

    Raises:
        UserError: The file does not fit.
    """
    network = lpips_network(net, path).to(device)

    def measure(generated: Tensor, reference: Tensor) -> Tensor:
        pair = [images.to(device, torch.float32) / 127.5 - 1 for images in (generated, reference)]
        distance: Tensor = network(*pair)
        return distance.flatten()

    facts = {
        "name": f"LPIPS {network.version} ({net})",
        "weights": path.name,
        "sha256": file_hash(path),
        "resize": "none",
        "note": "calibrated layers of the lpips package",
    }
    return PairMeasure(measure=measure, facts=facts)


def dino_similarity(path: Path, architecture: str, device: str) -> PairMeasure:
    """Return the cosine of two images' vectors of a vision transformer of timm, its weights from a file.

    Source: Ruiz et al. 2022, "DreamBooth", Section 4.2, where the network is DINO's ViT-S/16.

    Raises:
        UserError: The architecture is unknown or the file does not fit.
    """
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    known = timm.list_models(pretrained=False)
    name = architecture.split(".")[0]
    require(name in known, f"dino_model is {architecture!r}, which timm does not know; {closest(name, known)}")
    network = timm.create_model(architecture, pretrained=False, num_classes=0)
    file = open_weights(path).without(lambda key: key.startswith("head."))
    own = network.state_dict()
    check_fit(own, file, identity(own), source=str(path))
    network.load_state_dict({key: file.read(key) for key in own})
    network.to(device).eval().requires_grad_(False)
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    see = create_transform(**config, is_training=False)

    def vectors(images: Tensor) -> Tensor:
        return functional.normalize(network(_seen(images, see).to(device)), dim=-1)

    size = config["input_size"][-1]
    shorter = int(size / config["crop_pct"])
    facts = {
        "name": architecture,
        "weights": path.name,
        "sha256": file_hash(path),
        "resize": f"shorter side {config['interpolation']} to {shorter}, centre {size} x {size} (timm)",
        "side": size,
        "note": "cosine",
    }
    return PairMeasure(measure=lambda a, b: (vectors(a) * vectors(b)).sum(-1), facts=facts)


def _seen(images: Tensor, see: Callable[[Any], Any]) -> Tensor:
    """Return images uint8 [B, 3, H, W] as a library's own preprocessing of pictures gives them."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return torch.stack([see(picture) for picture in pictures])
