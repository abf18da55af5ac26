"""How often samples of the embedded model show what their captions say, as the recogniser sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor
from tqdm import tqdm

from steerdiff.errors import UserError, require

from .recogniser import Recogniser, Sighting, load_recogniser, reading_order
from .scenes import CANVAS, OFFSETS, Draws, EmojiScenes, compose, parse_caption

__all__ = [
    "EmbeddedReport",
    "Part",
    "Rate",
    "Sampler",
    "TrueScenes",
    "evaluate_embedded",
    "prompts",
    "score_pairs",
    "score_singles",
]

Part = Literal["seen", "held out", "two objects"]
PARTS: tuple[Part, ...] = get_args(Part)
_PROMPT_SEED = 1_000_000  # added to the seed of an evaluation: no training run has it
_TRUE_STREAM = 3  # random places of `TrueScenes`, beside the streams of the scenes


class Sampler(Protocol):
    """What an evaluation asks of a model: image k of the result uses ``seed + k``."""

    def sample(self, prompt: Sequence[str], /, *, steps: int, guidance: float, seed: int) -> Tensor:
        """Return one image [len(prompt), 3, 64, 64] in [-1, 1] for each prompt."""
        ...


@dataclass(frozen=True)
class Rate:
    """A number of right answers out of ``n``."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The share, 0..1; NaN if ``n`` is 0."""
        return self.right / self.n if self.n else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Return the Wilson score interval of the true share; ``z`` standard errors wide, 95 % by default.

        Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
        """
        if self.n == 0:
            return 0.0, 1.0
        share = self.right / self.n
        centre = share + z * z / (2 * self.n)
        reach = z * math.sqrt(share * (1 - share) / self.n + z * z / (4 * self.n**2))
        scale = 1 + z * z / self.n
        return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)

    def __str__(self) -> str:
        low, high = self.interval()
        return "-" if self.n == 0 else f"{self.value:.1%} ({low:.1%} to {high:.1%}, n = {self.n})"


@dataclass(frozen=True, kw_only=True)
class EmbeddedReport:
    """What `evaluate_embedded` measured, and with which settings."""

    samples: int  #: images of each part
    steps: int
    guidance: float
    seed: int
    rates: dict[str, dict[str, Rate]]  #: part of the evaluation, then measure

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; each rate with its share and its 95 % interval."""
        rates = {
            part: {
                name: {**asdict(rate), "value": rate.value if rate.n else None, "interval": rate.interval()}
                for name, rate in of.items()
            }
            for part, of in self.rates.items()
        }
        return {**{key: getattr(self, key) for key in ("samples", "steps", "guidance", "seed")}, "rates": rates}

    def markdown(self) -> str:
        """Return a Markdown table, a row for each measure, with 95 % Wilson intervals."""
        rows = [
            f"| {part} | {name} | {rate.value:.1%} | {rate.interval()[0]:.1%} to {rate.interval()[1]:.1%} | {rate.n} |"
            if rate.n
            else f"| {part} | {name} | - | - | 0 |"
            for part, of in self.rates.items()
            for name, rate in of.items()
        ]
        return "\n".join(["| captions | right | share | 95 % interval | n |", "| --- | --- | --- | --- | --- |", *rows])


def prompts(part: Part, n: int, seed: int = 0) -> list[str]:
    """Return the captions of a part of the evaluation; they depend on nothing but these arguments.

    Args:
        part: "seen", one object on a colour that training shows it on; "held out", one object on the colour that
            training never shows it on; "two objects", both on a colour that training shows them on.
        n: Number of captions; the first ones of a larger number are the same.
        seed: Another seed asks for other captions.

    Raises:
        UserError: Unknown part, or ``n`` below 1.
    """
    require(part in PARTS, f"{part!r} is no part of the evaluation; the parts are {', '.join(PARTS)}")
    require(n >= 1, f"n is {n}; evaluate at least one sample")
    split: Literal["train", "held_out"] = "held_out" if part == "held out" else "train"
    scenes = EmojiScenes(_PROMPT_SEED + seed, split, pairs=1.0 if part == "two objects" else 0.0)
    return [scene.caption for scene in scenes.scenes(range(n))]


def evaluate_embedded(
    model: Sampler,
    n: int = 512,
    *,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
    batch: int = 32,
    recogniser: Recogniser | None = None,
    parts: Sequence[Part] = PARTS,
    progress: str | None = None,
) -> EmbeddedReport:
    """Sample captions of each part and count how often the recogniser sees what they say.

    Args:
        model: Anything that samples 64 x 64 images from captions.
        n: Samples of each part.
        steps: Denoising steps of each sample.
        guidance: Strength of classifier-free guidance.
        seed: Decides the captions and the noise; image k of each part uses ``seed + k``.
        batch: Images sampled together; it does not change the images.
        recogniser: None takes the shipped one.
        parts: Which parts, of ``PARTS``.
        progress: Label of a progress bar; None is silent.

    Returns:
        The rates that `score_singles` and `score_pairs` define.

    Raises:
        UserError: An argument is out of range, no recogniser is there, or the model gives images of another shape.
    """
    require(batch >= 1, f"batch is {batch}; it must be at least 1")
    captions = {part: prompts(part, n, seed) for part in parts}
    recogniser = recogniser or load_recogniser()
    rates: dict[str, dict[str, Rate]] = {}
    with tqdm(total=n * len(captions), desc=progress, disable=progress is None, unit="image") as bar:
        for part, texts in captions.items():
            sightings: list[Sighting] = []
            for start in range(0, n, batch):
                images = _sampled(model, texts[start : start + batch], steps, guidance, seed + start)
                sightings += recogniser.read(images)
                bar.update(len(images))
            score = score_pairs if part == "two objects" else score_singles
            rates[part] = score(texts, sightings)
    return EmbeddedReport(samples=n, steps=steps, guidance=guidance, seed=seed, rates=rates)


def _sampled(model: Sampler, texts: list[str], steps: int, guidance: float, seed: int) -> Tensor:
    images = model.sample(texts, steps=steps, guidance=guidance, seed=seed)
    require(len(images) == len(texts), f"{len(texts)} captions gave {len(images)} images; sample one for each")
    return images


def score_singles(captions: Sequence[str], sightings: Sequence[Sighting]) -> dict[str, Rate]:
    """Return the rates of captions with one object; each is over all samples.

    - ``object``: exactly one object is seen, and it is the captioned one.
    - ``style``: the object seen (the first, if two are) has the captioned style, whatever object it is.
    - ``colour``: the background has the captioned colour.
    """
    rights = {"object": 0, "style": 0, "colour": 0}
    for caption, sight in zip(captions, sightings, strict=True):
        truth = reading_order(parse_caption(caption))
        (style, name), *others = sight.things
        rights["object"] += name == truth.things[0][1] and not others
        rights["style"] += style == truth.things[0][0]
        rights["colour"] += sight.colour == truth.colour
    return {name: Rate(right, len(captions)) for name, right in rights.items()}


def score_pairs(captions: Sequence[str], sightings: Sequence[Sighting]) -> dict[str, Rate]:
    """Return the rates of captions with two objects.

    - ``both objects``: the two objects seen are the two captioned ones, in any place. Over all samples.
    - ``relation``: they lie along the captioned axis and in the captioned order. Over the samples with both objects.
    - ``objects and relation``: both of the above. Over all samples.
    - ``each object``: a captioned object is seen. Over all captioned objects, two a sample.
    - ``style``: a captioned object that is seen has its captioned style. Over the captioned objects that are seen.
    - ``colour``: the background has the captioned colour. Over all samples.
    """
    both = relation = each = styled = colour = 0
    for caption, sight in zip(captions, sightings, strict=True):
        truth = reading_order(parse_caption(caption))
        wanted = {name: style for style, name in truth.things}
        found = {name: style for style, name in sight.things if name in wanted}
        order = [name for _, name in sight.things] == [name for _, name in truth.things]
        both += len(found) == 2
        relation += order and sight.layout == truth.layout
        each += len(found)
        styled += sum(style == wanted[name] for name, style in found.items())
        colour += sight.colour == truth.colour
    n = len(captions)
    return {
        "both objects": Rate(both, n),
        "relation": Rate(relation, both),
        "objects and relation": Rate(relation, n),
        "each object": Rate(each, 2 * n),
        "style": Rate(styled, each),
        "colour": Rate(colour, n),
    }


@dataclass(frozen=True)
class TrueScenes:
    """A model without fault: it draws the scene of the caption. What it scores is the ceiling of the measure."""

    distort: Callable[[Tensor], Tensor] | None = None  #: applied to the images, to see what the recogniser bears

    def sample(self, prompt: Sequence[str], /, *, steps: int = 0, guidance: float = 0.0, seed: int = 0) -> Tensor:
        """Return the scene of each caption [B, 3, 64, 64], its objects placed by ``seed + k``."""
        _ = steps, guidance  # a true scene needs neither
        if isinstance(prompt, str):
            raise UserError("prompt is one text; give a list of captions")
        draws = [Draws(seed + k, _TRUE_STREAM) for k in range(len(prompt))]
        places = [(draw.choose(OFFSETS), draw.choose(OFFSETS)) for draw in draws]
        scenes = [compose(parse_caption(text), *place) for text, place in zip(prompt, places, strict=True)]
        images = EmojiScenes(image_size=CANVAS).render_all(scenes)
        return images if self.distort is None else self.distort(images)
