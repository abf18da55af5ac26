"""Measures the results of a run, from their files: published feature networks where their weights are at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError, require
from steerdiff.io import load_image, save_image, to_uint8
from steerdiff.methods import LowPass
from steerdiff.scripts.evaluation import fidelity, perceptual
from steerdiff.scripts.evaluation.sample_plan import fid_statistics
from steerdiff.scripts.evaluation.sample_sources import Source, file_source
from steerdiff.scripts.papers.recipe import Run
from steerdiff.train.recogniser import load_recogniser

from . import likeness
from .metrics import METRICS
from .places import pictures_in, prepared
from .running import Experiment

__all__ = ["Measured", "Ruler"]

_NEIGHBOURS = 3
_SUBSET = 1000  # images of a KID subset
_SPLITS = 10
_METRIC_SEED = 2020


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number of a run, or why there is none."""

    setting: str  #: label of the run
    metric: str  #: name in ``METRICS``
    value: float | None  #: None if it could not be computed
    n: int  #: results
    how: str = ""  #: feature network, or what else it depends on
    why: str = ""  #: why there is no value


@dataclass(frozen=True, kw_only=True, eq=False)
class Ruler:
    """Computes metrics; feature networks and the reference's features are made once for all runs."""

    experiment: Experiment
    toy: bool = False  #: features of the shipped recogniser in place of the published networks
    device: str = "cpu"

    def measure(self, run: Run, folder: Path) -> list[Measured]:
        """Return every metric of the recipe for the results in ``folder``; what cannot be computed says why."""
        return [self._one(name, run, _Results(ruler=self, run=run, folder=folder)) for name in self._metrics(run)]

    def foreseen(self) -> list[str]:
        """Return which metrics will not be computed and why, as far as can be known before anything is drawn."""
        needs: dict[str, Callable[[], object]] = {
            **{name: lambda: (self.network, self.reference) for name in ("fid", "kid", "precision", "recall")},
            "is": lambda: self.network,
            **{name: lambda: self.pairs for name in ("lpips", "div")},
            "dino": lambda: self.dino,
            **{name: lambda: self.clip for name in ("clip_i", "clip_t")},
        }
        found = []
        for name in self.experiment.recipe.metrics:
            try:
                needs.get(name, tuple)()
            except UserError as error:
                found.append(f"{METRICS[name].title} will not be computed: {error}")
        return found

    def _metrics(self, run: Run) -> list[str]:
        """Names that apply to a run."""
        names = self.experiment.recipe.metrics
        return [name for name in names if METRICS[name].needs != "mask" or run.masks is not None]

    def _one(self, name: str, run: Run, results: _Results) -> Measured:
        common: dict[str, Any] = {"setting": run.label, "metric": name, "n": self.experiment.n}
        try:
            value, how = _COMPUTE[name](results)
        except UserError as error:
            return Measured(**common, value=None, why=str(error))
        return Measured(**common, value=value, how=how)

    @cached_property
    def network(self) -> fidelity.FeatureNetwork:
        """The feature network of distributions."""
        found = fidelity.recogniser_network() if self.toy else fidelity.inception_network()
        if found is None:
            place = Path(torch.hub.get_dir()) / "checkpoints" / fidelity.INCEPTION_FILE
            raise UserError(f"the weights of Inception are absent ({place}; torch-fidelity publishes them)")
        return found

    @cached_property
    def built(self) -> torch.nn.Module:
        """The network itself."""
        return self.network.build(self.device)

    def features(self, source: Source) -> fidelity.Features:
        """Return what the network sees in the images of a source."""
        return fidelity.features_of(self.built, source, batch=self.experiment.batch, device=self.device, progress=None)

    @cached_property
    def reference(self) -> Source:
        """The reference, as the recipe prepares it."""
        place = self.experiment.inputs.reference
        if place is None:
            raise UserError("the data have no reference folder and no reference.npz")
        return file_source(self._prepared(place) if place.is_dir() else place)

    def _prepared(self, folder: Path) -> Path:
        """Return a folder of the reference's pictures in the model's size: itself, or copies beside the results."""
        size, data = self.experiment.model.size, self.experiment.inputs.data
        paths = pictures_in(folder)
        first = load_image(paths[0])
        if data.box is None and tuple(first.shape[2:]) == size:
            return folder
        copies = self.experiment.folder / "reference"
        for number, path in enumerate(paths):
            copy = copies / f"{number:07d}.png"
            if not copy.is_file():
                save_image(prepared(path, data, size), copy)
        return copies

    @cached_property
    def reference_features(self) -> fidelity.Features:
        """What the network sees in the reference's images."""
        require(self.reference.n > 0, "the reference holds statistics alone; this needs its images")
        return self.features(self.reference)

    @cached_property
    def dino(self) -> perceptual.PairMeasure:
        """The likeness of two images."""
        return likeness.dino_of(self.device, toy=self.toy)

    @cached_property
    def clip(self) -> perceptual.ClipScore:
        """The network of CLIP-I and CLIP-T."""
        return likeness.clip_of(self.device, toy=self.toy)

    @cached_property
    def subject(self) -> list[Tensor]:
        """The pictures of the subject as they are, uint8 [1, 3, H, W] each."""
        folder = self.experiment.inputs.subject
        require(folder is not None, "the data have no subject")
        return [to_uint8(load_image(path)) for path in pictures_in(cast(Path, folder))]

    @cached_property
    def pairs(self) -> perceptual.PairMeasure:
        """The perceptual distance of two images."""
        if self.toy:
            return _recogniser_pairs()
        backbone = perceptual.lpips_backbone("alex")
        if backbone is None:
            place = Path(torch.hub.get_dir()) / "checkpoints" / perceptual.backbone_file("alex")
            raise UserError(f"the weights of AlexNet are absent ({place}; torchvision publishes them)")
        return perceptual.lpips_distance(backbone, "alex", self.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Results:
    """The results of one run."""

    ruler: Ruler
    run: Run
    folder: Path

    @cached_property
    def source(self) -> Source:
        """The first n images of the folder."""
        source = file_source(self.folder)
        return replace(source, n=self.ruler.experiment.n)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What each of them was asked to show."""
        return self.ruler.experiment.inputs.prompts[: self.ruler.experiment.n]

    @cached_property
    def features(self) -> fidelity.Features:
        """What the network sees in them."""
        return self.ruler.features(self.source)

    @cached_property
    def images(self) -> Tensor:
        """All of them, uint8 [N, 3, H, W]."""
        return self.source.images(slice(0, self.source.n))

    def mean(self, measure: Callable[[Tensor, Tensor, int], Tensor]) -> float:
        """Return the mean over results of ``measure(result, image, number)``, both uint8 [1, 3, H, W]."""
        return float(torch.stack(self._each(measure)).mean())

    def largest(self, measure: Callable[[Tensor, Tensor, int], Tensor]) -> float:
        """Return the maximum over results."""
        return float(torch.stack(self._each(measure)).max())

    def _each(self, measure: Callable[[Tensor, Tensor, int], Tensor]) -> list[Tensor]:
        experiment = self.ruler.experiment
        size = experiment.model.size
        numbers = range(experiment.n)
        inputs = experiment.inputs
        return [
            measure(self.source.images(slice(k, k + 1)), to_uint8(inputs.image(k, size)), k).double().squeeze()
            for k in numbers
        ]


def _fid(results: _Results) -> tuple[float, str]:
    ruler, n = results.ruler, results.ruler.experiment.n
    require(n >= 2, "FID needs at least 2 results")
    reference = ruler.reference
    given = fid_statistics(reference, ruler.network)
    if given is None:
        given = fidelity.statistics_of(ruler.reference_features.features, reference.title)
    generated = fidelity.statistics_of(results.features.features, str(results.folder))
    return fidelity.fid(generated, given), ruler.network.name


def _kid(results: _Results) -> tuple[float, str]:
    ruler = results.ruler
    size = min(_SUBSET, ruler.experiment.n, ruler.reference.n)
    require(size >= 2, "KID needs at least 2 results and 2 reference images")
    subsets = 100 if size == _SUBSET else 1
    features = results.features.features, ruler.reference_features.features
    value, _ = fidelity.kid(*features, subsets=subsets, size=size, seed=_METRIC_SEED)
    return value, f"{ruler.network.name}, {subsets} subsets of {size}"


def _precision_recall(results: _Results) -> tuple[tuple[float, float], str]:
    ruler = results.ruler
    smaller = min(ruler.experiment.n, ruler.reference.n)
    require(smaller > _NEIGHBOURS, f"precision and recall need more than {_NEIGHBOURS} images on each side")
    features = results.features.features, ruler.reference_features.features
    both = fidelity.precision_recall(*features, neighbours=_NEIGHBOURS)
    return both, f"{ruler.network.name}, {ruler.reference.n} reference images"


def _precision(results: _Results) -> tuple[float, str]:
    both, how = _precision_recall(results)
    return both[0], how


def _recall(results: _Results) -> tuple[float, str]:
    both, how = _precision_recall(results)
    return both[1], how


def _inception_score(results: _Results) -> tuple[float, str]:
    splits = min(_SPLITS, max(1, results.ruler.experiment.n // 2))
    value, _ = fidelity.inception_score(results.features.logits, splits=splits, seed=_METRIC_SEED)
    return value, f"{results.ruler.network.name}, {splits} splits"


def _lpips(results: _Results) -> tuple[float, str]:
    pairs = results.ruler.pairs
    return results.mean(lambda result, image, _: pairs(result, image)), str(pairs.facts["name"])


def _square(result: Tensor, image: Tensor, number: int) -> Tensor:
    return ((result.double() - image.double()) / 255).square().mean()


def _mse(results: _Results) -> tuple[float, str]:
    return results.mean(_square), ""


def _rms(results: _Results) -> tuple[float, str]:
    return math.sqrt(results.mean(_square)), ""


def _kept(results: _Results) -> tuple[float, str]:
    experiment, run = results.ruler.experiment, results.run
    kind = str(run.masks)

    def change(result: Tensor, image: Tensor, number: int) -> Tensor:
        known = 1 - experiment.inputs.mask(kind, number, experiment.model.size)
        return ((result.double() - image.double()).abs() * known).max()

    return results.largest(change), ""


def _low_pass(results: _Results) -> tuple[float, str]:
    run = results.run
    factor = int(run.settings.downsample)

    def difference(result: Tensor, image: Tensor, number: int) -> Tensor:
        low_pass = LowPass.of(factor, image.float(), run.settings.kernel)
        return low_pass.down(result.float() - image.float()).abs().mean()

    return results.mean(difference), f"N = {factor}"


def _dino(results: _Results) -> tuple[float, str]:
    ruler = results.ruler
    return likeness.likeness(results.images, ruler.subject, ruler.dino), str(ruler.dino.facts["name"])


def _clip_i(results: _Results) -> tuple[float, str]:
    ruler = results.ruler
    return likeness.image_likeness(results.images, ruler.subject, ruler.clip), str(ruler.clip.facts["weights"])


def _clip_t(results: _Results) -> tuple[float, str]:
    ruler, words = results.ruler, getattr(results.run.settings, "identifiers", ())
    prompts = [likeness.without_word(prompt, words) for prompt in results.prompts]
    return likeness.text_likeness(results.images, prompts, ruler.clip), str(ruler.clip.facts["weights"])


def _div(results: _Results) -> tuple[float, str]:
    pairs = results.ruler.pairs
    return likeness.diversity(results.images, results.prompts, pairs), str(pairs.facts["name"])


_COMPUTE: dict[str, Callable[[_Results], tuple[float, str]]] = {
    "fid": _fid,
    "kid": _kid,
    "precision": _precision,
    "recall": _recall,
    "is": _inception_score,
    "lpips": _lpips,
    "mse": _mse,
    "rms": _rms,
    "kept": _kept,
    "low_pass": _low_pass,
    "dino": _dino,
    "clip_i": _clip_i,
    "clip_t": _clip_t,
    "div": _div,
}


def _recogniser_pairs() -> perceptual.PairMeasure:
    """As LPIPS, without calibration and in the features of the shipped recogniser."""
    recogniser = load_recogniser()

    def distance(result: Tensor, image: Tensor) -> Tensor:
        a, b = (functional.normalize(recogniser.features(x.float() / 127.5 - 1), eps=1e-6) for x in (result, image))
        return (a - b).square().sum(1).mean((1, 2))

    return perceptual.PairMeasure(measure=distance, facts={"name": "recogniser, its last convolution"})
