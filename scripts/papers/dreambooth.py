"""DreamBooth."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import DreamBooth
from steerdiff.methods.dreambooth import PRESETS

from .dreambooth_recipes import DREAMBOOTH_RECIPES
from .spec import Claim, Paper

__all__ = ["DREAMBOOTH_PAPER"]

#: The preset with a quarter of its updates' work, for each case is tuned alone. So few teach the word only if the text
#: encoder is tuned too: otherwise they keep the class and the subject is not learned.
_TUNED = replace(
    PRESETS["emoji64"],
    n_class=16,
    tunes_text=True,
    tune_steps=80,
    learning_rate=8e-4,
    ema_decay=0.9,
    batch_size=1,
    guidance=2.0,
)
_CASES = 64
_TABLE = "section 4.3 and its table of prior preservation, read in a stored copy: "


def _prior(text: str, numbers: str, task: str, score: str, rises: bool) -> Claim:
    """Return a claim of the paper's ablation of prior preservation: without it, then with it."""
    return Claim(
        text=text,
        source=f"{_TABLE}{numbers}",
        method="dreambooth",
        task=task,
        base=_TUNED,
        before={"prior_weight": 0.0},
        after={"prior_weight": 1.0},
        score=score,
        rises=rises,
        cases=_CASES,
    )


DREAMBOOTH_PAPER = Paper(
    name="dreambooth",
    title="DreamBooth: Fine tuning text-to-image diffusion models for subject-driven generation",
    authors="Ruiz, Li, Jampani, Pritch, Rubinstein and Aberman",
    year=2023,
    arxiv="2208.12242",
    method="dreambooth",
    tasks=("subject", "class beside subject"),
    published=DreamBooth(
        n_class=16, class_steps=12, tune_steps=100, learning_rate=1e-4, batch_size=1, steps=25, guidance=3.0
    ),
    translation="lambda 1 and one picture of the class for each of the subject stay; of 1,000 updates a tenth, for "
    "time, at ten times Imagen's 1e-5, since Imagen works on pixels as this model does; 16 class pictures in 12 moves "
    "in place of 1,000, of which the paper says that fewer do; one picture of the subject in place of 3 to 5, which is "
    "what a case has; 25 moves and guidance 3, the model's own, where none is stated",
    tuned=_TUNED,
    seeds=1,
    claims=(
        _prior(
            "prior preservation keeps pictures of the class from becoming the subject",
            "PRES .664 without and .493 with it",
            task="class beside subject",
            score="guide",
            rises=True,
        ),
        _prior(
            "with prior preservation the class is still drawn as it is asked for",
            "PRES .664 without and .493 with it",
            task="class beside subject",
            score="right",
            rises=True,
        ),
        _prior(
            "prior preservation makes pictures of the class more diverse",
            "DIV .371 without and .391 with it, there of the subject",
            task="class beside subject",
            score="diversity",
            rises=True,
        ),
        _prior(
            "prior preservation makes pictures of the subject more diverse",
            "DIV .371 without and .391 with it",
            task="subject",
            score="diversity",
            rises=True,
        ),
        _prior(
            "prior preservation costs a little of the likeness to the subject",
            "DINO .712 without and .684 with it",
            task="subject",
            score="feature_outside",
            rises=True,
        ),
        _prior(
            "with prior preservation the subject follows the text a little better",
            "CLIP-T .306 without and .308 with it",
            task="subject",
            score="right",
            rises=True,
        ),
    ),
    ablations=("dreambooth-prior", "dreambooth-class"),
    recipes=DREAMBOOTH_RECIPES,
)
