"""What can be measured of two sides, and why the rest cannot: decided before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from steerdiff.errors import require

from .fidelity import INCEPTION_FILE, FeatureNetwork
from .perceptual import backbone_file, lpips_backbone
from .sample_flags import METRICS, Samples
from .sample_sources import Source
from .statistics_file import Statistics

__all__ = ["Planned", "fid_statistics", "kid_subsets", "partners", "plan"]

_SPLIT = 10  # images that each part of an Inception score needs at least
_FULL_SUBSET = 1000  # as in torch-fidelity and in the paper


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A number that was asked for."""

    metric: str  #: name in ``METRICS``
    features: str  #: network that it is measured with
    missing: str = ""  #: why it cannot be measured; "" where it can


def plan(
    flags: Samples,
    generated: Source,
    reference: Source | None,
    networks: dict[str, FeatureNetwork | None],
    no_captions: str,
) -> list[Planned]:
    """Return every number that is asked for, with what stands in the way of those that cannot be had.

    Args:
        flags: What is asked for.
        generated: One side.
        reference: The other side, if there is one.
        networks: The feature networks by name; None without weights.
        no_captions: Why the generated images have no captions; "" if they have.

    Raises:
        UserError: A metric is asked for by name and can be had in no features, or nothing can be measured at all.
    """
    found = []
    for name in flags.asked or METRICS:
        if name == "clip":
            found.append(Planned(metric=name, features="CLIP", missing=_no_clip(flags, generated, no_captions)))
        elif name == "lpips":
            missing = _no_backbone(flags) or partners(generated, reference, same_size=True)[1]
            found.append(Planned(metric=name, features=flags.lpips, missing=missing))
        elif name == "dino":
            absent = "" if flags.dino else f"weights absent: give --dino FILE (timm's {flags.dino_model})"
            missing = absent or partners(generated, reference, same_size=False)[1]
            found.append(Planned(metric=name, features="DINO", missing=missing))
        else:
            for features, network in networks.items():
                missing = _no_distance(name, network, generated, reference, flags)
                found.append(Planned(metric=name, features=features, missing=missing))
    for name in flags.asked or ("",):
        rows = [row for row in found if row.metric == name or not name]
        reasons = "; ".join(dict.fromkeys(f"{row.metric} ({row.features}): {row.missing}" for row in rows))
        require(any(not row.missing for row in rows), f"{name or 'nothing'} cannot be measured: {reasons}")
    return found


def fid_statistics(source: Source, network: FeatureNetwork) -> Statistics | None:
    """Return the statistics of a file in the features of a network; None if it holds none of that width.

    Raises:
        UserError: They carry steerdiff's stamp and were made with other weights or another resize.
    """
    found = source.statistics
    if found is None or found.width != network.width:
        return None
    if found.stamp is not None:
        own = network.to_dict()
        for key in ("sha256", "resize"):
            theirs = found.stamp.get("network", {}).get(key)
            other = f"{found.path} was made with {key} {theirs!r}, and {network.name} here has {own[key]!r}"
            require(theirs == own[key], f"{other}; make the statistics again")
    return found


def kid_subsets(flags: Samples, generated: Source, reference: Source) -> tuple[int, int]:
    """Return number and size of the KID's subsets; of all images there is only one."""
    size = flags.kid_subset_size or min(_FULL_SUBSET, generated.n, reference.n)
    return (1 if size == generated.n == reference.n else flags.kid_subsets), size


def partners(generated: Source, reference: Source | None, *, same_size: bool) -> tuple[list[int], str]:
    """Return which image of the reference belongs to each generated one, by name; or why there are no pairs."""
    how = "needs pairs: two folders with the same file names"
    if reference is None:
        return [], "needs --reference"
    if not generated.names or not reference.names:
        return [], how
    place = {name: number for number, name in enumerate(reference.names)}
    lonely = [name for name in generated.names if name not in place]
    if lonely:
        return [], f"{how}; {len(lonely)} images have no partner in {reference.title}, {lonely[0]!r} for one"
    if same_size and generated.size != reference.size:
        return [], f"needs pairs of one size; {_size(generated)} is not {_size(reference)}"
    return [place[name] for name in generated.names], ""


def _no_distance(
    metric: str, network: FeatureNetwork | None, generated: Source, reference: Source | None, flags: Samples
) -> str:
    """Return why a distance in some features cannot be had."""
    if METRICS[metric].compares and reference is None:
        return "needs --reference"
    if network is None:
        return f"weights absent: give --inception FILE ({INCEPTION_FILE}, from torch-fidelity's release v0.2.0)"
    sides = [
        side for side in (generated, reference) if side is not None and (METRICS[metric].compares or side is generated)
    ]
    reasons = [_no_statistics(side, network) if metric == "fid" else _no_images(side) for side in sides]
    reason = next(filter(None, reasons), "")
    n = min((side.n for side in sides), default=0)
    if reason or metric == "fid":
        return reason
    needed = {
        "kid": max(2, flags.kid_subset_size or 2),
        "precision": flags.neighbours + 1,
        "recall": flags.neighbours + 1,
        "inception": _SPLIT * flags.splits,
    }[metric]
    option = {"kid": "--kid-subset-size", "inception": "--splits"}.get(metric, "--neighbours")
    sparse = f"needs {needed} images of each side that it sees, and {n} are there; give more, or a smaller {option}"
    return "" if n >= needed else sparse


def _no_statistics(side: Source, network: FeatureNetwork) -> str:
    if fid_statistics(side, network) is not None or side.n > network.width:
        return ""
    if side.n == 0 and side.statistics is not None:
        other = f"{side.title} holds statistics of {side.statistics.width} features"
        return f"{other}, and {network.name} has {network.width}; give statistics made with it, or images"
    few = f"needs {network.width + 1} images a side, or its covariance has not full rank, and {side.title} has {side.n}"
    return f"{few}; the KID works with fewer"


def _no_images(side: Source) -> str:
    return "" if side.n else f"needs images; {side.title} holds statistics, from which only the FID follows"


def _no_clip(flags: Samples, generated: Source, no_captions: str) -> str:
    if flags.clip is None:
        return "weights absent: give --clip FILE (a CLIP of OpenAI, open_clip or transformers)"
    return _no_images(generated) or no_captions


def _no_backbone(flags: Samples) -> str:
    if lpips_backbone(flags.lpips, flags.lpips_backbone) is not None:
        return ""
    return f"weights absent: give --lpips-backbone FILE ({backbone_file(flags.lpips)}, torchvision's)"


def _size(source: Source) -> str:
    height, width = source.size or (0, 0)
    return f"{width} x {height}"
