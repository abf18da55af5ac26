"""What networks for noisy images still see at each level of noise: classes, the clean twin, the right text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.guidance.noisy_classifier import NoisyClassifier
from steerdiff.guidance.noisy_encoder import Encoder
from steerdiff.models.clip import Clip
from steerdiff.samplers import NoiseSchedule

from .both_splits import BothSplits
from .evaluate import Rate
from .randomness import SampleRandom

__all__ = ["FRACTIONS", "NoisyReport", "Networks", "measure_noisy"]

#: Shares of T at which the networks are measured.
FRACTIONS = tuple(k / 10 for k in range(10))
_SEED = 2_000_000  # added to the seed: no training run has it
_BATCH = 64

#: ``encoder(x, t) -> vectors [B, D]``
Vectors = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """What is measured, on the same noised images."""

    noisy_clip: Encoder  #: the tuned one
    clip: Clip  #: the clean one, for the truth and, untuned, for comparison
    classifier: NoisyClassifier | None = None  #: a classifier of the objects


@dataclass(frozen=True, kw_only=True)
class NoisyReport:
    """What `measure_noisy` counted."""

    n: int  #: images of each level
    group: int  #: images (or texts) among which the right one is to be found
    seed: int
    rates: dict[str, dict[float, Rate]]  #: by what is counted, then by t/T

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; each rate with its share and its 95 % interval."""
        rates = {
            name: {
                f"{share:.1f}": {**asdict(rate), "value": rate.value, "interval": rate.interval()}
                for share, rate in of.items()
            }
            for name, of in self.rates.items()
        }
        return {"n": self.n, "group": self.group, "seed": self.seed, "rates": rates}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> NoisyReport:
        """Return the report that ``to_dict`` described."""
        rates = {
            name: {float(share): Rate(rate["right"], rate["n"]) for share, rate in of.items()}
            for name, of in values["rates"].items()
        }
        return NoisyReport(n=values["n"], group=values["group"], seed=values["seed"], rates=rates)

    def markdown(self) -> str:
        """Return a Markdown table, a row for each level, with 95 % Wilson intervals."""
        names = list(self.rates)
        lines = [f"| t/T | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
        for share in next(iter(self.rates.values())):
            cells = [_cell(self.rates[name][share]) for name in names]
            lines.append(f"| {share:.1f} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _cell(rate: Rate) -> str:
    low, high = rate.interval()
    return f"{rate.value:.1%} ({low:.1%} to {high:.1%})"


@torch.inference_mode()
def measure_noisy(
    networks: Networks, schedule: NoiseSchedule, *, n: int = 512, group: int = 128, seed: int = 0
) -> NoisyReport:
    """Noise fixed scenes to each of `FRACTIONS` and count what is recognised.

    Scenes are new ones of both splits; those of the CLIPs have one or two objects, those of the classifier one. A CLIP
    is right where, of the ``group`` clean images (or of their captions), the one with the largest cosine is that which
    was noised; of equal captions any will do. Chance is 1 / group.

    Args:
        networks: What is measured.
        schedule: The noise.
        n: Scenes of each level; a multiple of ``group``.
        group: Images among which the right one is to be found.
        seed: Decides scenes and noise.

    Raises:
        UserError: The numbers do not fit.
    """
    require(group >= 2 and n >= group and n % group == 0, f"n is {n} and group {group}; n must be a multiple of group")
    numbers = range(n)
    images, captions = BothSplits(seed=_SEED + seed).batch(numbers)
    clip, noisy = networks.clip, networks.noisy_clip
    truth = torch.cat([clip.image_features(part) for part in torch.split(images, _BATCH)])
    texts = torch.cat([clip.text_features(captions[k : k + _BATCH]) for k in range(0, n, _BATCH)])
    towers: dict[str, Vectors] = {
        "noisy CLIP": lambda x, t: noisy(x, t).vector,
        "un-tuned CLIP": lambda x, t: clip.image_features(x),
    }
    rates: dict[str, dict[float, Rate]] = {}
    for share in FRACTIONS:
        t = round(share * schedule.T)
        x = _noised(images, schedule, t, seed)
        for name, tower in towers.items():
            vectors = functional.normalize(_over(tower, x, t), dim=-1)
            twin, text = _found(vectors, truth, group), _found(vectors, texts, group)
            rates.setdefault(f"{name}: clean image", {})[share] = Rate(int((twin == torch.arange(n)).sum()), n)
            right = sum(captions[i] == captions[k] for k, i in enumerate(text.tolist()))
            rates.setdefault(f"{name}: caption", {})[share] = Rate(right, n)
    if networks.classifier is not None:
        rates["classifier: object"] = _classes(networks.classifier, schedule, numbers, seed)
    return NoisyReport(n=n, group=group, seed=seed, rates=rates)


def _classes(
    classifier: NoisyClassifier, schedule: NoiseSchedule, numbers: Sequence[int], seed: int
) -> dict[float, Rate]:
    """Return how often the class of largest logit is the object of a scene."""
    dataset = BothSplits(seed=_SEED + seed, pairs=0.0)
    scenes = dataset.scenes(numbers)
    images, n = dataset.batch(numbers)[0], len(scenes)
    truth = torch.tensor([classifier.labels.index(scene.items[0].object) for scene in scenes])
    rates = {}
    for share in FRACTIONS:
        t = round(share * schedule.T)
        logits = _over(classifier, _noised(images, schedule, t, seed), t)
        rates[share] = Rate(int((logits.argmax(1) == truth).sum()), n)
    return rates


def _noised(images: Tensor, schedule: NoiseSchedule, t: int, seed: int) -> Tensor:
    """Return images at time ``t``, each with its own noise, another one at each time."""
    alpha_bar = float(np.asarray(schedule.alpha_bars, dtype=np.float64)[t])
    noise = SampleRandom(_SEED + seed, range(len(images))).normal(f"t {t}", images.shape[1:])
    noised: Tensor = alpha_bar**0.5 * images + (1 - alpha_bar) ** 0.5 * noise
    return noised


def _over(network: Vectors, x: Tensor, t: int) -> Tensor:
    """Return what a network makes of all images, some at a time, on the CPU."""
    return torch.cat(
        [network(part, torch.full((len(part),), float(t))).float().cpu() for part in torch.split(x, _BATCH)]
    )


def _found(vectors: Tensor, candidates: Tensor, group: int) -> Tensor:
    """Return the number of the candidate nearest to each vector [n], of those in the vector's own group."""
    parts = zip(torch.split(vectors, group), torch.split(candidates, group), strict=True)
    return torch.cat([(a @ b.T).argmax(1) + group * k for k, (a, b) in enumerate(parts)])
