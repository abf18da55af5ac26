"""Prompt-to-Prompt: edit an image by its prompt, with the attention of the source prompt in charge of the layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from steerdiff.errors import UserError, require, warn
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.local_blend import BLEND_STARTS, BlendVariant, LocalBlend
from steerdiff.guidance.settings import Spacing
from steerdiff.guidance.word_edits import Pairing, WordEdits, WordPairing, word_rows
from steerdiff.models.alignment import DEFAULT, WordTokens, window_ends
from steerdiff.models.control import Control, Taps
from steerdiff.samplers import DDIM, ClipPolicy, Noise, Path, Seeds, Solver, integrate, resolve_seeds

from .negative_prompt import NegativePromptInversion
from .null_text import Inverted, NullTextInversion, descent

__all__ = ["PRESETS", "Inversion", "PromptToPrompt"]

Inversion = Literal["null-text", "negative-prompt", "ddim"]
Texts = str | Sequence[str] | None
Window = float | tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt:
    """Draw or invert what one prompt says, and beside it what another says with the attention maps of the first.

    Word swap, a phrase more or less, and words with more or less weight are edits of the cross-attention in the early
    steps; self-attention of the source keeps the layout. Without an image, source and edit are drawn from one noise.
    A real image is first inverted, see ``inversion``.

    Source: Hertz et al. 2022, section 3 and Algorithm 1. The official code's differences are options: self-attention
    (0 in the paper), local blend, windows by word; ``official`` keeps its faults, see `steerdiff.models.alignment`.
    """

    #: how words are paired: "replace" word for word, "refine" by alignment, "reweight" leaves each in its place; "auto"
    #: replaces where both prompts have as many words and refines otherwise
    pairing: Pairing = "auto"
    #: in which part of the steps cross-attention follows the source: a fraction from the start, or from one to another
    cross_replace_steps: Window = 0.8
    word_steps: tuple[str, ...] = ()  #: other parts for words of the target, such as lion=0.4 or burger=0.2:0.6
    self_replace_steps: Window = 0.4  #: the same for self-attention; the paper has none
    self_cells: int | None = None  #: on grids of at most so many cells; None is a 16th of the state's, 16 x 16 of 512
    cross_cells: int | None = None  #: cross-attention is edited on grids of at most so many cells; None is all
    reweight: tuple[str, ...] = ()  #: factors of the attention to words of the target, such as smiling=5 or pink=-1
    official: bool = False  #: mappers and tables of steps as the official code has them
    blend_words: tuple[str, ...] = ()  #: words of either prompt: only where they are looked at the image may change
    blend_variant: BlendVariant = "p2p"  #: whose local blend: p2p, ldm (does not widen maps), null-text (starts later)
    blend_threshold: float = 0.3  #: share of the largest attention to the words from which a cell may change
    subtract_words: tuple[str, ...] = ()  #: words whose places do not change after all
    subtract_threshold: float = 0.3  #: the same for them
    blend_start: float | None = None  #: part of the steps before the first blend; None is that of the variant
    blend_factor: int = 4  #: cells of the state, along each axis, for one of the maps: 16 x 16 of 64 x 64
    inversion: Inversion = "null-text"  #: how a real image is inverted; the last two without optimisation
    inner_steps: int = 10  #: updates of null-text inversion at each step, at most
    learning_rate: float = 1e-2  #: of these updates
    fixed_point: int = 0  #: network calls of an implicit step of the inversion; 1 is the official code's, 0 explicit
    steps: int = 50  #: moves
    spacing: Spacing = "compvis"  #: how they are spread over the trained times
    solver: Solver = DDIM()  #: of drawn images; real ones are inverted and edited by DDIM
    guidance: float | None = (
        7.5  #: classifier-free guidance; None is the model's. Attention is edited in its prompt's branch
    )
    clip: ClipPolicy | None = None  #: of x0; None is the model's own way where it draws, and none where it inverts

    def __post_init__(self) -> None:
        """Check the numbers and names."""
        whole = isinstance(self.steps, int) and self.steps >= 1
        require(whole, f"steps is {self.steps!r}; give a number of moves, at least 1")
        require(self.guidance != 0, "guidance is 0, which draws without the edited prompts; give another, 1 for none")
        known = get_args(Inversion)
        require(self.inversion in known, f"inversion is {self.inversion!r}; known are {', '.join(known)}")
        require(
            self.blend_variant in BLEND_STARTS,
            f"blend_variant is {self.blend_variant!r}; known are {', '.join(BLEND_STARTS)}",
        )
        require(self.blend_factor >= 1, f"blend_factor is {self.blend_factor}; it must be at least 1")
        start = self.blend_start
        require(start is None or 0 <= start <= 1, f"blend_start is {start}; give a part of the steps in [0, 1]")
        blends = bool(self.blend_words) or not self.subtract_words
        require(blends, "subtract_words takes places out of those of blend_words; give blend_words too")
        for name in ("inner_steps", "fixed_point"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it must be positive")
        for name in ("cross_replace_steps", "self_replace_steps"):
            window_ends(getattr(self, name), name)
        self._pairing(0)

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: Texts = None,
        target: Texts = None,
        negative: str = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Return the edited images.

        Args:
            model: A model with a text encoder.
            image: A real picture to edit, [B, 3, H, W] in [-1, 1]; None edits what ``prompt`` draws.
            prompt: What the image shows, one text or one for each image.
            target: What the result should show; None is ``prompt``, for an edit by ``reweight`` alone.
            negative: What takes the place of the empty prompt. Null-text inversion tunes it from there, and
                negative-prompt inversion takes none.
            seed: One integer (image i uses ``seed + i``) or one for each image; real images do not depend on it.
            progress: Label of a progress bar; None shows none.

        Returns:
            Images [B, 3, H, W], about in [-1, 1].

        Raises:
            UserError: No prompt, words that are in none or cannot be paired, or what the model cannot take.
        """
        return self.pair(model, image, prompt=prompt, target=target, negative=negative, seed=seed, progress=progress)[1]

    @torch.no_grad()
    def pair(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: Texts = None,
        target: Texts = None,
        negative: str = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the images of ``prompt`` and those of ``target`` beside them; arguments as for the call."""
        text, count = _text_of(model), _count(image, prompt, target, seed)
        require(
            image is None or self.solver == DDIM(),
            f"solver is {self.solver}; a real image is inverted and edited by DDIM: leave it out",
        )
        prompts, targets = self._texts(prompt, target, count)
        seeds, cond = resolve_seeds(seed, count), model.condition([*prompts, *targets])
        path = model.path(self.steps, self.spacing) if image is None else descent(model, self.steps, self.spacing)
        edits = self._edits(model, text, prompts, targets, cond, len(path))
        taps = self._taps(model, text, [*prompts, *targets], cond)
        blends = [] if taps is None else [self._blend(taps, edits, len(path))]
        if image is None:
            noise = Noise(seeds * 2, model.state_shape(2 * count), model.device)
            both = self._drawn(model, path, noise(), negative)
        else:
            found = self._inverted(model, image, prompts, negative, progress)
            both = found.rows([*range(count), *range(count)])
            noise = Noise(seeds * 2, like=both.latent)

        def control(index: int) -> Control | None:
            edit = edits.at(index)
            return None if edit is None and taps is None else Control(edit=edit, taps=taps)

        denoise = both.denoiser(model, cond, control=control)
        solver = self.solver if image is None else DDIM()
        x = integrate(denoise, solver, both.path, both.latent, constraints=blends, noise=noise, progress=progress)
        source, edited = model.decode(x).chunk(2)
        return source, edited

    def _texts(self, prompt: Texts, target: Texts, count: int) -> tuple[list[str], list[str]]:
        """Return a prompt and a target for each of so many images."""
        require(not (prompt is None and target is None), "there is no prompt whose words are edited; give one")
        prompts, targets = (_listed(one, count) for one in (prompt, prompt if target is None else target))
        if prompts == targets and not self.reweight:
            warn("the target is the prompt, and no word is re-weighted: nothing is edited")
        return prompts, targets

    def _drawn(self, model: Model, path: Path, x: Tensor, negative: str) -> Inverted:
        """Return where drawing starts, in the form of an inverted image."""
        clip = model.sampling.clip if self.clip is None else self.clip
        uncond = model.condition(negative)
        return Inverted(latent=x, path=path, uncond=uncond, guidance=self.guidance, clip=clip)

    def _inverted(
        self, model: Model, image: Tensor, prompts: list[str], negative: str, progress: str | None
    ) -> Inverted:
        """Return the inverted images [B, 3, H, W]."""
        shared: dict[str, Any] = {
            "steps": self.steps,
            "spacing": self.spacing,
            "fixed_point": self.fixed_point,
            "clip": "none" if self.clip is None else self.clip,
            "guidance": model.sampling.guidance if self.guidance is None else self.guidance,
        }
        if self.inversion == "negative-prompt":
            require(
                negative == "", "negative-prompt inversion takes the image's prompt for the negative one; give none"
            )
            return NegativePromptInversion(**shared).invert(model, image, prompt=prompts, progress=progress)
        inner_steps = self.inner_steps if self.inversion == "null-text" else 0
        tuned = NullTextInversion(**shared, inner_steps=inner_steps, learning_rate=self.learning_rate)
        return tuned.invert(model, image, prompt=prompts, negative=negative, progress=progress)

    def _pairing(self, cells: int) -> WordPairing:
        """Return what of the edit is known without prompts; ``cells`` are those of the state."""
        windows = {word: _window(value, word) for word, value in _entries(self.word_steps, "word_steps")}
        factors = {word: _number(value, "reweight", word) for word, value in _entries(self.reweight, "reweight")}
        return WordPairing(
            pairing=self.pairing,
            windows={DEFAULT: self.cross_replace_steps, **windows},
            factors=factors,
            self_window=self.self_replace_steps,
            self_cells=cells // 16 if self.self_cells is None else self.self_cells,
            cross_cells=self.cross_cells,
            official=self.official,
        )

    def _edits(
        self, model: Model, text: WordTokens, prompts: list[str], targets: list[str], cond: Condition, steps: int
    ) -> WordEdits:
        height, width = model.state_shape(1)[2:]
        length = cast(Tensor, cond.context).shape[1]
        seen = None if cond.context_mask is None else cond.context_mask[len(prompts) :]
        pairing = self._pairing(height * width)
        return pairing.edits(text, prompts, targets, steps=steps, length=length, seen=seen)

    def _taps(self, model: Model, text: WordTokens, prompts: list[str], cond: Condition) -> Taps | None:
        """Return what collects the maps of the blended words; None without local blend."""
        if not self.blend_words:
            return None
        length = cast(Tensor, cond.context).shape[1]
        sets = [self.blend_words] + ([self.subtract_words] if self.subtract_words else [])
        pairs = list(zip(prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :], strict=True))
        rows = [torch.stack([word_rows(text, pair, words, length) for words in sets], 1) for pair in pairs]
        weights = torch.cat([torch.stack([pair[side] for pair in rows]) for side in (0, 1)])
        height, width = (side // self.blend_factor for side in model.state_shape(1)[2:])
        return Taps(weights=weights.to(model.device), cells=(height, width))

    def _blend(self, taps: Taps, edits: WordEdits, moves: int) -> LocalBlend:
        start = BLEND_STARTS[self.blend_variant] if self.blend_start is None else self.blend_start
        return LocalBlend(
            taps=taps,
            source=edits.source,
            target=edits.target,
            threshold=self.blend_threshold,
            subtract_threshold=self.subtract_threshold,
            variant=self.blend_variant,
            start=int(start * moves + 1e-9),
        )


def _text_of(model: Model) -> WordTokens:
    text = model.text
    if not isinstance(text, WordTokens):
        raise UserError(f"{model.name} reads no words, whose attention is edited; use a model with a text encoder")
    return text


def _count(image: Tensor | None, *given: object) -> int:
    """Return the number of results: of the images, else of the longest list."""
    if image is not None:
        return len(image)
    return max((len(one) for one in given if isinstance(one, Sequence) and not isinstance(one, str)), default=1)


def _listed(texts: Texts, count: int) -> list[str]:
    """Return one text for each image."""
    given = [texts or ""] if texts is None or isinstance(texts, str) else texts
    plain = isinstance(given, Sequence) and all(isinstance(one, str) for one in given)
    require(plain, "prompts are edited word by word; give texts, and not what Model.condition made of them")
    require(len(given) in (1, count), f"{len(given)} prompts were given for {count} images; give one, or {count}")
    return list(given) * (count if len(given) == 1 else 1)


def _entries(given: Sequence[str], name: str) -> list[tuple[str, str]]:
    """Return the words and values of settings such as ``lion=0.4``."""
    pairs = [one.rpartition("=") for one in given]
    for one, (word, _, _) in zip(given, pairs, strict=True):
        require(word.strip() != "", f"{name} has the entry '{one}'; write a word and its value, such as lion=0.4")
    return [(word.strip(), value) for word, _, value in pairs]


def _number(text: str, name: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name} of '{word}' is '{text}'; give a number") from None


def _window(text: str, word: str) -> Window:
    parts = [_number(part, "word_steps", word) for part in text.split(":")]
    require(len(parts) in (1, 2), f"word_steps of '{word}' is '{text}'; give a fraction, or two as in 0.2:0.6")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


#: The official notebooks, the paper's own form, and what fits the shipped model.
PRESETS: dict[str, PromptToPrompt] = {
    "p2p": PromptToPrompt(),
    "paper": PromptToPrompt(self_replace_steps=0.0),
    "ldm": PromptToPrompt(guidance=5.0, self_cells=256, blend_variant="ldm", blend_factor=2),
    "null-text": PromptToPrompt(
        self_replace_steps=0.5, self_cells=1024, blend_variant="null-text", fixed_point=1, official=True
    ),
    "diffusers": PromptToPrompt(cross_replace_steps=0.4),
    "emoji64": PromptToPrompt(
        cross_replace_steps=0.4,
        steps=16,
        spacing="compvis",
        guidance=1.0,
        inversion="negative-prompt",
        fixed_point=2,
    ),
}
