"""Prompt-to-Prompt."""

from __future__ import annotations

from steerdiff.methods import PromptToPrompt
from steerdiff.methods.prompt_to_prompt import PRESETS

from .p2p_recipes import FREE_WINDOWS, P2P_RECIPES
from .spec import Claim, Paper

__all__ = ["P2P_PAPER"]

_TUNED = PRESETS["emoji64"]
_WINDOWS = {"cross_replace_steps": _TUNED.cross_replace_steps, "self_replace_steps": _TUNED.self_replace_steps}

P2P_PAPER = Paper(
    name="p2p",
    title="Prompt-to-Prompt image editing with cross attention control",
    authors="Hertz, Mokady, Tenenbaum, Aberman, Pritch and Cohen-Or",
    year=2022,
    arxiv="2208.01626",
    method="p2p",
    tasks=("object", "style", "colour"),
    published=PromptToPrompt(inversion="ddim", guidance=3.0),
    translation="50 steps, the windows 0.8 and 0.4 of the notebooks and the paper's plain DDIM inversion of a real "
    "image stay; guidance 7.5 becomes 3, the model's own",
    tuned=_TUNED,
    deterministic=True,
    claims=(
        Claim(
            text="the attention of the source prompt keeps what is not edited better than the target prompt alone",
            source="section 3 and Figure 2, recalled",
            method="p2p",
            task="object",
            base=_TUNED,
            before=FREE_WINDOWS,
            after=_WINDOWS,
            score="feature_outside",
            rises=False,
            cases=64,
        ),
        Claim(
            text="the more steps follow the source's attention, the more of the image stays",
            source="section 3.2 and its figure on the number of injected steps, recalled",
            method="p2p",
            task="object",
            base=_TUNED,
            before={"cross_replace_steps": 0.2},
            after={"cross_replace_steps": 0.8},
            score="guide",
            rises=False,
            cases=64,
        ),
        Claim(
            text="attention that follows the source for too long holds a change of shape back",
            source="section 3.2, on softer constraints for a word swap, recalled",
            method="p2p",
            task="object",
            base=_TUNED,
            before={"cross_replace_steps": 0.2},
            after={"cross_replace_steps": 1.0},
            score="right",
            rises=False,
            cases=64,
        ),
        Claim(
            text="the stronger the guidance, the less is kept of a real image",
            source="section 4, on real images, recalled",
            method="p2p",
            task="object",
            base=_TUNED,
            before={"guidance": 1.0},
            after={"guidance": 3.0},
            score="feature_outside",
            rises=True,
            cases=64,
        ),
    ),
    ablations=("p2p-control", "p2p-cross", "p2p-self"),
    recipes=P2P_RECIPES,
)
