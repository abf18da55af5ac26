"""Shorter texts about a scene than its caption, and which images of a batch a text is true of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import SampleRandom
from .scene_text import COLOURS, OBJECTS, STYLES, Description, article

__all__ = ["FORMS", "Phrase", "phrases", "true_of"]

#: What a short text says, of style s, object o and colour c, and its wordings.
FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("so", ("{a_s} {s} {o}", "{s} {o}")),
    ("o", ("{a_o} {o}", "{o}")),
    ("s", ("{s}",)),
    ("c", ("{a_c} {c} background", "{c} background", "{c}")),
    ("oc", ("{a_o} {o} on {a_c} {c} background",)),
)
_ANY = -1


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A text about a scene, with what it says of one thing and of the background."""

    text: str  #: the words
    style: str | None = None  #: style of the thing; None: anything
    object: str | None = None  #: what the thing is; None: anything
    colour: str | None = None  #: colour of the background; None: any
    whole: bool = False  #: the whole caption, true of no scene with another one


def phrases(descriptions: Sequence[Description], share: float, random: SampleRandom) -> list[Phrase]:
    """Return a text for each scene: a short one for a ``share`` of them, else the caption."""
    draws = [random.uniform(f"phrase {k}").tolist() for k in range(4)]
    return [
        _short(description, pick, wording, thing) if chance < share else Phrase(text=description.caption, whole=True)
        for description, chance, pick, wording, thing in zip(descriptions, *draws, strict=True)
    ]


def _short(description: Description, pick: float, wording: float, thing: float) -> Phrase:
    style, name = description.things[int(thing * len(description.things))]
    colour = description.colour
    says, texts = FORMS[int(pick * len(FORMS))]
    words = {"s": style, "o": name, "c": colour}
    text = texts[int(wording * len(texts))].format(**words, **{f"a_{k}": article(word) for k, word in words.items()})
    said = {key: words[key] if key in says else None for key in words}
    return Phrase(text=text, style=said["s"], object=said["o"], colour=said["c"])


def true_of(texts: Sequence[Phrase], descriptions: Sequence[Description]) -> Tensor:
    """Return where text i is true of scene j, bool [texts, scenes]."""
    colours = tuple(COLOURS)
    things = torch.tensor(
        [[[STYLES.index(s), OBJECTS.index(o)] for s, o in (*d.things, d.things[0])[:2]] for d in descriptions]
    )  # [scenes, 2, 2]
    behind = torch.tensor([colours.index(d.colour) for d in descriptions])
    style = torch.tensor([_ANY if p.style is None else STYLES.index(p.style) for p in texts])[:, None, None]
    name = torch.tensor([_ANY if p.object is None else OBJECTS.index(p.object) for p in texts])[:, None, None]
    colour = torch.tensor([_ANY if p.colour is None else colours.index(p.colour) for p in texts])[:, None]
    thing = ((style == _ANY) | (style == things[..., 0])) & ((name == _ANY) | (name == things[..., 1]))
    short = thing.any(2) & ((colour == _ANY) | (colour == behind))
    captions = [d.caption for d in descriptions]
    whole = torch.tensor([p.whole for p in texts])[:, None]
    same = torch.tensor([[p.text == caption for caption in captions] for p in texts])
    return torch.where(whole, same, short)
