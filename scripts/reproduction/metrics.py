"""The metrics of the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric is."""

    title: str  #: in tables
    note: str  #: what it measures, in one line
    needs: Literal["reference", "image", "mask", "subject", "nothing"]  #: what results are compared with
    digits: int = 2  #: after the point


#: By the name in a recipe.
METRICS: dict[str, Metric] = {
    "fid": Metric(title="FID", note="Frechet distance of Inception features to the reference", needs="reference"),
    "kid": Metric(title="KID", note="squared MMD of Inception features to the reference", needs="reference", digits=5),
    "precision": Metric(title="precision", note="share of results near a reference image, k = 3", needs="reference"),
    "recall": Metric(title="recall", note="share of reference images near a result, k = 3", needs="reference"),
    "is": Metric(title="Inception score", note="sure and various labels", needs="nothing", digits=1),
    "lpips": Metric(
        title="LPIPS", note="perceptual distance (AlexNet) to the image that went in", needs="image", digits=3
    ),
    "mse": Metric(title="squared error", note="mean over dimensions, images in [0, 1]", needs="image", digits=4),
    "rms": Metric(title="RMS", note="root mean square difference from the image that went in", needs="image", digits=4),
    "kept": Metric(
        title="kept", note="largest change where the mask says known, in grey levels", needs="mask", digits=0
    ),
    "low_pass": Metric(
        title="low frequencies",
        note="mean difference of the downsampled result from the downsampled reference, in grey levels",
        needs="image",
        digits=2,
    ),
    "dino": Metric(
        title="DINO",
        note="mean cosine of ViT-S/16's vectors of all results with all pictures of the subject",
        needs="subject",
        digits=3,
    ),
    "clip_i": Metric(title="CLIP-I", note="the same of CLIP ViT-B/32's vectors", needs="subject", digits=3),
    "clip_t": Metric(
        title="CLIP-T",
        note="mean cosine of CLIP ViT-B/32's vectors of a result and its prompt without the identifier",
        needs="nothing",
        digits=3,
    ),
    "div": Metric(title="DIV", note="mean LPIPS (AlexNet) of two results of a prompt", needs="nothing", digits=3),
}
