"""FID, KID, precision, recall and Inception score by torch-fidelity, in features of Inception and of the recogniser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import FeatureExtractorBase, register_feature_extractor  # type: ignore[import-untyped]
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3  # type: ignore[import-untyped]
from torch_fidelity.metric_fid import (  # type: ignore[import-untyped]
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import (  # type: ignore[import-untyped]
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (  # type: ignore[import-untyped]
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (  # type: ignore[import-untyped]
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # type: ignore[import-untyped]
from torch_fidelity.utils import create_feature_extractor  # type: ignore[import-untyped]
from tqdm import tqdm

from steerdiff.errors import UserError, require
from steerdiff.models import file_hash
from steerdiff.models.weights import open_weights
from steerdiff.train.recogniser import load_recogniser
from steerdiff.train.scenes import CANVAS

from .sample_sources import Source
from .statistics_file import Statistics

__all__ = [
    "INCEPTION_FILE",
    "Features",
    "FeatureNetwork",
    "features_of",
    "fid",
    "inception_network",
    "inception_score",
    "kid",
    "precision_recall",
    "recogniser_network",
    "statistics_of",
]

#: torch-fidelity's published weights.
INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[1]

_RECOGNISER = "steerdiff-recogniser"
_INCEPTION = "inception-v3-compat"


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a network sees in images."""

    features: Tensor  #: [n, D] float64: for distances
    logits: Tensor  #: [n, classes] float64: for the Inception score


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A feature network of torch-fidelity with its weights and all that its numbers depend on."""

    name: str  #: in tables
    registered: str  #: in torch-fidelity
    layers: tuple[str, str]  #: of the features and of the logits
    width: int  #: number of features D
    file: Path  #: weights
    resize: str  #: filter and size by which images reach the network
    side: int  #: height and width of the images that it sees, in pixels
    note: str  #: what features and logits are

    def build(self, device: str) -> nn.Module:
        """Return the network, ready to use. Building it before long work shows whether the file fits.

        Raises:
            UserError: The file is damaged, holds code or other weights.
        """
        open_weights(self.file)  # refuses files with code, which torch-fidelity's reader would run
        try:
            network: nn.Module = create_feature_extractor(
                self.registered,
                list(self.layers),
                cuda=False,
                feature_extractor_weights_path=str(self.file),
                verbose=False,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.file} does not fit {self.name} ({reason}); give the file that is named") from error
        return network.to(device)

    def to_dict(self) -> dict[str, Any]:
        """Return it for the record, with the SHA-256 of its weights."""
        return {
            "name": self.name,
            "torch-fidelity": self.registered,
            "layers": list(self.layers),
            "features": self.width,
            "weights": self.file.name,
            "sha256": file_hash(self.file),
            "resize": self.resize,
            "side": self.side,
            "note": self.note,
        }


class _RecogniserExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The recogniser as torch-fidelity calls its networks: uint8 [B, 3, H, W] in, a tuple of [B, D] out."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.recogniser = load_recogniser(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the outputs."""
        return "128", "objects"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name the output that a metric reads."""
        return "objects" if metric == "isc" else "128"

    @staticmethod
    def can_be_compiled() -> bool:
        """Say no: it is small."""
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:  # torch-fidelity's name
        """Return what was asked for, float64."""
        images = input.to(torch.float32) / 127.5 - 1
        if images.shape[-2:] != (CANVAS, CANVAS):
            size = (CANVAS, CANVAS)
            images = functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        found = {
            "128": self.recogniser.features(images).mean((2, 3)),
            "objects": self.recogniser(images)["object"][:, 0],
        }
        return tuple(found[name].double() for name in self.features_list)


def recogniser_network(path: Path | None = None) -> FeatureNetwork:
    """Return the recogniser of a file, or the shipped one, as a feature network.

    Raises:
        UserError: The file is missing.
    """
    if _RECOGNISER not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_RECOGNISER, _RecogniserExtractor)
    file = path or Path(str(files("steerdiff.assets").joinpath("weights", "recogniser.safetensors")))
    require(file.is_file(), f"the recogniser {file} is not a file; give the weights of one")
    return FeatureNetwork(
        name="recogniser",
        registered=_RECOGNISER,
        layers=("128", "objects"),
        width=128,
        file=file,
        resize=f"bilinear, antialiased, to {CANVAS} x {CANVAS} where the size differs",
        side=CANVAS,
        note="means over the image of its last convolution; logits of the object in the first place. It knows emoji "
        "scenes alone: its numbers of other images mean little, and never compare with those of Inception",
    )


def inception_network(path: Path | None = None) -> FeatureNetwork | None:
    """Return torch-fidelity's InceptionV3 from a file or from PyTorch's cache; None if it is not there.

    Raises:
        UserError: A file is given and missing.
    """
    require(path is None or path.is_file(), f"inception is {path}, which is no file; give {INCEPTION_FILE}")
    file = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        return None
    return FeatureNetwork(
        name="Inception",
        registered=_INCEPTION,
        layers=("2048", "logits_unbiased"),
        width=2048,
        file=file,
        resize="bilinear as TensorFlow 1, not antialiased, to 299 x 299",
        side=299,
        note="pool features; logits without bias, as in TensorFlow's Inception score",
    )


@torch.inference_mode()
def features_of(network: nn.Module, source: Source, *, batch: int, device: str, progress: str | None) -> Features:
    """Return the features and logits of every image of a source.

    Args:
        network: As `FeatureNetwork.build` gives it.
        source: Images of any size; the network resizes them.
        batch: Images computed together.
        device: Where the network is.
        progress: Label of a progress bar; None is silent.
    """
    features, logits = [], []
    starts = range(0, source.n, batch)
    for start in tqdm(starts, desc=progress, disable=progress is None, unit="batch"):
        images = source.images(slice(start, min(start + batch, source.n)))
        first, second = network(images.to(device))
        features.append(first.cpu().double())
        logits.append(second.cpu().double())
    return Features(features=torch.cat(features), logits=torch.cat(logits))


def statistics_of(features: Tensor, source: str) -> Statistics:
    """Return mean and covariance (with n - 1) of features [n, D]."""
    values = fid_features_to_statistics(features)
    return Statistics(mu=values["mu"], sigma=values["sigma"], path=source)


def fid(generated: Statistics, reference: Statistics) -> float:
    """Return the Frechet distance of two Gaussians.

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule", Section 3.
    """
    sides = [{"mu": side.mu, "sigma": side.sigma} for side in (generated, reference)]
    return float(fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])


def kid(generated: Tensor, reference: Tensor, *, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Return the mean and the standard deviation over subsets of the squared MMD, kernel (x . y / D + 1)^3, unbiased.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", Section 4.
    """
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
    values = kid_features_to_metric(generated, reference, **options)
    return float(values[KEY_METRIC_KID_MEAN]), float(values[KEY_METRIC_KID_STD])


def precision_recall(generated: Tensor, reference: Tensor, *, neighbours: int) -> tuple[float, float]:
    """Return the share of generated images near a real one, and of real ones near a generated one.

    Near is: not farther than the other image's own ``neighbours``-th neighbour on its side.

    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eq. 1-3.
    """
    options = {"prc_neighborhood": neighbours, "save_cpu_ram": True, "verbose": False}
    values = prc_features_to_metric(generated, reference, **options)
    return float(values[KEY_METRIC_PRECISION]), float(values[KEY_METRIC_RECALL])


def inception_score(logits: Tensor, *, splits: int, seed: int) -> tuple[float, float]:
    """Return the mean and the standard deviation over splits of exp(E KL(p(y|x) || p(y))).

    Source: Salimans et al. 2016, "Improved techniques for training GANs", Section 4.
    """
    values: Mapping[str, Any] = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return float(values[KEY_METRIC_ISC_MEAN]), float(values[KEY_METRIC_ISC_STD])
