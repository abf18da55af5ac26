"""The flags of ``steerdiff evaluate samples``, and what they allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerdiff.errors import require
from steerdiff.scripts.runtime import ModelFlags
from steerdiff.scripts.sample import Spacing
from steerdiff.scripts.suggestions import closest

__all__ = ["METRICS", "Metric", "Samples"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What can be measured."""

    title: str  #: in tables
    better: Literal["higher", "lower"]
    compares: bool = True  #: needs a reference


#: The metrics by the names that ``--only`` takes.
METRICS = {
    "fid": Metric(title="FID", better="lower"),
    "kid": Metric(title="KID", better="lower"),
    "precision": Metric(title="precision", better="higher"),
    "recall": Metric(title="recall", better="higher"),
    "inception": Metric(title="Inception score", better="higher", compares=False),
    "clip": Metric(title="CLIP score", better="higher", compares=False),
    "lpips": Metric(title="LPIPS", better="lower"),
    "dino": Metric(title="DINO similarity", better="higher"),
}


@dataclass(frozen=True, kw_only=True)
class Samples(ModelFlags):
    """Measure images: FID, KID, precision, recall, Inception and CLIP score, LPIPS and DINO similarity.

    Both sides are a folder of images, an .npz of images (arr_0) or of statistics (mu, sigma), or "scenes", true scenes
    of the embedded domain; the generated side may also be "model". What lacks weights or images is named, not measured.
    """

    generated: str  #: folder, .npz, model or scenes
    reference: str | None = None  #: folder, .npz or scenes; None measures what needs no reference
    only: str | None = (
        None  #: metrics to measure, as fid,kid; None measures all that can be. Also precision, recall, ...
    )
    n: int = 1024  #: images of a model and of scenes; of a folder or an .npz all are taken
    steps: int | str | None = None  #: moves of each sample; None, here and below, as published with the model
    guidance: float | None = None  #: strength of classifier-free guidance
    solver: str | None = None  #: ddpm, ddim, dpm++2m, ...; ddim:eta=0.5 sets a field
    spacing: Spacing | None = None  #: how the steps are spread over the noise levels
    seed: int = 0  #: sample k uses seed + k; also decides the scenes whose captions are drawn
    reference_seed: int = 0  #: of the reference's scenes; never those of a training run or of the captions
    captions: Path | None = None  #: lines of name<TAB>caption, or .json; for the CLIP score, or for a model to draw
    batch: int = 32  #: images computed at once
    recogniser: Path | None = None  #: weights of another recogniser than the shipped one
    inception: Path | None = None  #: torch-fidelity's InceptionV3 weights; None looks into PyTorch's cache
    clip: Path | None = None  #: weights of a CLIP, as OpenAI, open_clip or transformers wrote them
    clip_model: str | None = None  #: open_clip's name of its architecture, where the file does not tell
    clip_quick_gelu: bool | None = None  #: its activation, where the file does not tell: True for OpenAI's weights
    lpips: Literal["alex", "vgg"] = "alex"  #: network of LPIPS
    lpips_backbone: Path | None = None  #: torchvision's weights of it; None looks into PyTorch's cache
    dino: Path | None = None  #: weights of a DINO, as timm or its authors wrote them
    dino_model: str = "vit_small_patch16_224.dino"  #: timm's name of its architecture
    kid_subsets: int = 100  #: subsets of the KID
    kid_subset_size: int | None = None  #: images of each; None is 1000, or all where there are fewer
    neighbours: int = 3  #: k of precision and recall
    splits: int = 10  #: parts of the Inception score
    metric_seed: int = 2020  #: draws the subsets of the KID and the parts of the Inception score
    save_statistics: Path | None = None  #: .npz to write mu and sigma into
    statistics_of: Literal["generated", "reference"] = "generated"  #: whose
    statistics_features: Literal["recogniser", "Inception"] = "recogniser"  #: in whose features
    out: Path = Path("out")  #: folder for samples.json and samples.md

    def __post_init__(self) -> None:
        """Check the numbers and the names of metrics."""
        for name in ("n", "batch", "neighbours", "splits", "kid_subsets"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be at least 1")
        for name in ("seed", "reference_seed", "metric_seed"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; it must be at least 0")
        size = self.kid_subset_size
        require(size is None or size >= 2, f"kid_subset_size is {size}; it must be at least 2")
        for name in self.asked:
            require(name in METRICS, f"there is no metric {name!r}; {closest(name, METRICS)}")
        require(self.only is None or bool(self.asked), "only names no metric; write --only fid,kid")
        require(self.reference != "model", "reference is 'model'; the model is the generated side")
        path = self.save_statistics
        require(path is None or path.suffix == ".npz", f"{path} does not end in .npz, the form of statistics")
        by_reference = self.statistics_of == "reference" and self.reference is None and path is not None
        require(not by_reference, "statistics_of is 'reference', but there is none; give --reference")

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the metrics asked for; none where all are welcome."""
        return tuple(name.strip() for name in (self.only or "").split(",") if name.strip())
