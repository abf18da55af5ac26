"""What the demo shows: prompts, and for each method edits whose true answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["EXAMPLES", "PROMPTS", "Example"]

Kind = Literal["object", "style", "colour", "relation"]

#: Captions to sample: one object in each style, held-out combinations of object and colour, and two objects.
PROMPTS = (
    "a flat apple on a blue background",
    "a 3d rocket on a purple background",
    "a twemoji cat on a green background",
    "a 3d donut on a pink background",
    "a flat house on a yellow background",
    "a 3d umbrella on an orange background",
    "a 3d cat left of a 3d star on a green background",
    "a flat moon above a flat house on a blue background",
    "a 3d gift right of a flat heart on a yellow background",
    "a twemoji rocket below a twemoji cloud on a pink background",
    "a flat car left of a 3d tractor on a gray background",
    "a 3d crown above a 3d book on a red background",
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """An edit of a scene by a method."""

    kind: Kind  #: what the edit changes
    number: int  #: of ``EmojiScenes.edit_pair``
    flags: tuple[str, ...] = ()  #: of ``steerdiff edit METHOD``, chosen for speed
    masked: bool = False  #: give the box around what changes as mask
    source_flag: str | None = None  #: flag that takes the source's caption
    target_flag: str | None = "--prompt"  #: flag that takes the target's caption
    note: str = ""  #: what the row shows
    reconstructs: bool = False  #: the true answer is the input


_ILVR = ("--steps", "50", "--downsample", "8", "--range-t", "10")
_SDEDIT = ("--steps", "50", "--repeats", "1", "--t0", "0.7", "--clip", "clip")
_REPAINT = ("--preset", "quick")
_INVERT = ("--steps", "50", "--spacing", "trailing")
_CLASSIFIER = ("--preset", "emoji64", "--t0", "0.8", "--scale", "4", "--guidance", "1")
_SDG = ("--preset", "emoji64")
_BLENDED = ("--preset", "emoji64")
_DIFFUSIONCLIP = ("--preset", "emoji64", "--delta", "diffusionclip-blue-red")
_ASYRP = ("--preset", "emoji64", "--delta", "asyrp-flat-3d")
_EMOJI64 = ("--preset", "emoji64")  # of the methods that are told both texts

#: For each method of ``METHODS``, in the order shown. A test demands that none is missing.
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "sdedit": (
        Example(kind="object", number=0, flags=_SDEDIT, masked=True, note="another object, inside the mask"),
        Example(kind="style", number=0, flags=_SDEDIT, note="another style, no mask"),
    ),
    "repaint": (
        Example(kind="object", number=1, flags=_REPAINT, masked=True, note="the hole is filled as the prompt says"),
        Example(kind="object", number=2, flags=_REPAINT, masked=True, note="the hole is filled as the prompt says"),
    ),
    "ilvr": (
        Example(kind="style", number=1, flags=_ILVR, note="low frequencies from the input"),
        Example(kind="style", number=2, flags=_ILVR, note="low frequencies from the input"),
    ),
    "invert": (
        Example(kind="object", number=3, flags=_INVERT, reconstructs=True, note="to noise and back"),
        Example(
            kind="object",
            number=3,
            flags=(*_INVERT, "--guidance", "3"),
            source_flag="--prompt",
            target_flag="--target",
            note="to noise with one prompt, back with another",
        ),
    ),
    "classifier": (
        Example(kind="object", number=8, flags=(*_CLASSIFIER, "--y", "panda"), note="pulled towards a class too"),
        Example(kind="object", number=11, flags=(*_CLASSIFIER, "--y", "cat"), note="pulled towards a class too"),
    ),
    "sdg": (
        Example(kind="colour", number=3, flags=_SDG, note="drawn anew: text and layout by CLIP alone"),
        Example(kind="style", number=2, flags=(*_SDG[:1], "emoji64-told"), note="layout by CLIP, text by the model"),
    ),
    "blended": (
        Example(kind="object", number=4, flags=_BLENDED, masked=True, note="only CLIP knows the text"),
        Example(
            kind="object",
            number=4,
            flags=(*_BLENDED, "--guidance", "1", "--clip-scale", "100"),
            masked=True,
            note="the model knows the text too",
        ),
    ),
    "diffusionclip": (
        Example(
            kind="colour",
            number=25,
            flags=_DIFFUSIONCLIP,
            source_flag="--prompt",
            target_flag=None,
            note="inverted, and drawn again by the model that CLIP tuned from blue to red",
        ),
    ),
    "asyrp": (
        Example(
            kind="style",
            number=0,
            flags=_ASYRP,
            target_flag=None,
            note="inverted, and drawn again with a shift of the bottleneck that CLIP tuned from flat to 3d",
        ),
    ),
    "p2p": (
        Example(
            kind="object",
            number=25,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag="--target",
            note="inverted with its text; the attention maps of the input lead the other object",
        ),
        Example(
            kind="colour",
            number=16,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag="--target",
            note="inverted with its text; the attention maps of the input lead the other colour",
        ),
    ),
    "nulltext": (
        Example(
            kind="object",
            number=4,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag=None,
            reconstructs=True,
            note="to noise and back under guidance, with a tuned unconditional branch",
        ),
    ),
    "negprompt": (
        Example(
            kind="object",
            number=4,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag="--target",
            note="inverted, then guided from what the image shows to what it should show",
        ),
    ),
    "diffedit": (
        Example(
            kind="object",
            number=11,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag="--target",
            note="the mask is found where the two texts disagree",
        ),
        Example(
            kind="colour",
            number=10,
            flags=_EMOJI64,
            source_flag="--prompt",
            target_flag="--target",
            note="the mask is found where the two texts disagree",
        ),
    ),
    "imagic": (Example(kind="object", number=8, flags=_EMOJI64, note="text and network are tuned on the input first"),),
    "unitune": (
        Example(
            kind="object", number=17, flags=_EMOJI64, note="the network is tuned on the input and a rare word first"
        ),
    ),
    "dreambooth": (
        Example(
            kind="colour",
            number=14,
            flags=(
                *_EMOJI64,
                *("--prompt", "a sks cactus on a pink background"),
                *("--target", "a sks cactus on a purple background"),
            ),
            target_flag=None,
            note="the network is taught this very object as a sks cactus first; drawn anew",
        ),
    ),
}
