"""The numbers of an evaluation of samples: networks first, then images, then the metrics, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from steerdiff.errors import require

from .fidelity import (
    FeatureNetwork,
    Features,
    features_of,
    fid,
    inception_score,
    kid,
    precision_recall,
    statistics_of,
)
from .perceptual import ClipScore, PairMeasure, clip_score, dino_similarity, lpips_backbone, lpips_distance
from .sample_flags import METRICS, Samples
from .sample_plan import Planned, fid_statistics, kid_subsets, partners
from .sample_sources import Source
from .statistics_file import Statistics

__all__ = ["Measuring", "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number, or why it is missing."""

    metric: str  #: name in ``METRICS``
    features: str  #: network that it is measured with
    value: float | None = None
    spread: float | None = None
    spread_is: str = ""  #: what the spread is
    n: tuple[int, ...] = ()  #: images of the generated side, and of the reference
    settings: str = ""  #: of the metric
    missing: str = ""  #: why there is no value
    ceiling: float | None = None  #: the same of true scenes in the place of the samples

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**asdict(self), "n": list(self.n), "title": METRICS[self.metric].title}


@dataclass(frozen=True, kw_only=True, eq=False)
class Measuring:
    """All networks that a plan needs, built and ready, and the features seen so far."""

    flags: Samples
    device: str
    networks: dict[str, FeatureNetwork]  #: feature networks in use, by name
    built: dict[str, nn.Module]  #: the same, ready to use
    clip: ClipScore | None = None
    lpips: PairMeasure | None = None
    dino: PairMeasure | None = None
    seen: dict[tuple[str, Source], Features] = field(default_factory=dict)  #: by network and source

    @classmethod
    def of(cls, flags: Samples, planned: Sequence[Planned], networks: dict[str, FeatureNetwork | None]) -> Measuring:
        """Build what the plan needs.

        Raises:
            UserError: A file of weights is damaged or does not fit.
        """
        device = flags.place()
        needed = {row.metric: row for row in planned if not row.missing}
        names = {row.features for row in planned if not row.missing}
        if flags.save_statistics is not None:
            absent = networks[flags.statistics_features] is None
            require(not absent, "statistics_features is Inception, whose weights are absent; give --inception FILE")
            names.add(flags.statistics_features)
        used = {name: network for name, network in networks.items() if network is not None and name in names}
        backbone = lpips_backbone(flags.lpips, flags.lpips_backbone)
        measures: dict[str, Any] = {}
        if "clip" in needed and flags.clip is not None:
            measures["clip"] = clip_score(flags.clip, flags.clip_model, flags.clip_quick_gelu, device)
        if "lpips" in needed and backbone is not None:
            measures["lpips"] = lpips_distance(backbone, flags.lpips, device)
        if "dino" in needed and flags.dino is not None:
            measures["dino"] = dino_similarity(flags.dino, flags.dino_model, device)
        built = {name: network.build(device) for name, network in used.items()}
        return cls(flags=flags, device=device, networks=used, built=built, **measures)

    def rows(self, planned: Sequence[Planned], generated: Source, reference: Source | None) -> list[Row]:
        """Return a row for each number of the plan."""
        return [self._row(row, generated, reference) for row in planned]

    def with_ceiling(self, rows: Sequence[Row], true: Source, reference: Source) -> list[Row]:
        """Return the rows with what true images in the place of the samples get."""
        plans = [Planned(metric=row.metric, features=row.features, missing=row.missing) for row in rows]
        best = self.rows(plans, true, reference)
        return [replace(row, ceiling=top.value) for row, top in zip(rows, best, strict=True)]

    def features(self, name: str, source: Source) -> Features:
        """Return what a network sees in the images of a source; each is looked at once."""
        if (name, source) not in self.seen:
            progress = f"{name}: {source.title}"
            seen = features_of(self.built[name], source, batch=self.flags.batch, device=self.device, progress=progress)
            self.seen[name, source] = seen
        return self.seen[name, source]

    def statistics(self, name: str, source: Source) -> Statistics:
        """Return mean and covariance in the features of a network, of a file or of the images."""
        stored = fid_statistics(source, self.networks[name])
        return stored or statistics_of(self.features(name, source).features, source.title)

    def _row(self, planned: Planned, generated: Source, reference: Source | None) -> Row:
        row = Row(metric=planned.metric, features=planned.features, missing=planned.missing)
        if row.missing:
            return row
        measures: dict[str, Callable[[Row, Source, Any], Row]] = {
            "fid": self._fid,
            "kid": self._kid,
            "precision": self._near,
            "recall": self._near,
            "inception": self._inception,
            "clip": self._clip,
            "lpips": self._pairs,
            "dino": self._pairs,
        }
        return measures[row.metric](row, generated, reference)

    def _fid(self, row: Row, generated: Source, reference: Source) -> Row:
        sides = [self.statistics(row.features, side) for side in (generated, reference)]
        counts = [_count(side, statistics) for side, statistics in zip((generated, reference), sides, strict=True)]
        return replace(row, value=fid(*sides), n=tuple(counts))

    def _kid(self, row: Row, generated: Source, reference: Source) -> Row:
        subsets, size = kid_subsets(self.flags, generated, reference)
        seen = [self.features(row.features, side).features for side in (generated, reference)]
        value, spread = kid(*seen, subsets=subsets, size=size, seed=self.flags.metric_seed)
        shared = " that share most images" if 2 * size > min(generated.n, reference.n) else ""
        return replace(
            row,
            value=value,
            spread=spread if subsets > 1 else None,
            spread_is=f"standard deviation over subsets{shared}" if subsets > 1 else "",
            n=(generated.n, reference.n),
            settings=f"{subsets} subset{'s' * (subsets > 1)} of {size}, seed {self.flags.metric_seed}",
        )

    def _near(self, row: Row, generated: Source, reference: Source) -> Row:
        seen = [self.features(row.features, side).features for side in (generated, reference)]
        both = precision_recall(*seen, neighbours=self.flags.neighbours)
        value = both[row.metric == "recall"]
        return replace(row, value=value, n=(generated.n, reference.n), settings=f"k = {self.flags.neighbours}")

    def _inception(self, row: Row, generated: Source, reference: Source | None) -> Row:
        logits = self.features(row.features, generated).logits
        value, spread = inception_score(logits, splits=self.flags.splits, seed=self.flags.metric_seed)
        settings = f"{self.flags.splits} splits, seed {self.flags.metric_seed}"
        about = {"spread_is": "standard deviation over splits", "n": (generated.n,), "settings": settings}
        return replace(row, value=value, spread=spread, **about)  # type: ignore[arg-type]

    def _clip(self, row: Row, generated: Source, reference: Source | None) -> Row:
        parts = []
        for part in _batches(generated.n, self.flags.batch):
            parts.append(self.clip(generated.images(part), (generated.captions or ())[part]))  # type: ignore[misc]
        return _mean(replace(row, n=(generated.n,)), torch.cat(parts))

    def _pairs(self, row: Row, generated: Source, reference: Source) -> Row:
        order, _ = partners(generated, reference, same_size=False)
        measure: Any = getattr(self, row.metric)
        parts = []
        for part in _batches(generated.n, self.flags.batch):
            theirs = torch.cat([reference.images(slice(number, number + 1)) for number in order[part]])
            parts.append(measure(generated.images(part), theirs))
        return _mean(replace(row, n=(generated.n,), settings="pairs by name"), torch.cat(parts))


def _batches(n: int, batch: int) -> list[slice]:
    return [slice(start, min(start + batch, n)) for start in range(0, n, batch)]


def _mean(row: Row, values: Tensor) -> Row:
    spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return replace(row, value=float(values.mean()), spread=spread, spread_is="" if spread is None else "standard error")


def _count(source: Source, statistics: Statistics) -> int:
    """Return of how many images statistics are; 0 where their file does not say."""
    if statistics is source.statistics:
        return int((statistics.stamp or {}).get("n", 0))
    return source.n
