"""One entry for each paper: the tasks it claims, its settings on the benchmark, its recipe and its claims."""

from __future__ import annotations

from .adm import ADM
from .asyrp import ASYRP_PAPER
from .blended import BLENDED_PAPER
from .classifier_free import CLASSIFIER_FREE
from .ddim import DDIM_PAPER
from .diffedit import DIFFEDIT_PAPER
from .diffusionclip import DIFFUSIONCLIP_PAPER
from .dreambooth import DREAMBOOTH_PAPER
from .ilvr import ILVR_PAPER
from .imagic import IMAGIC_PAPER
from .negprompt import NEGPROMPT_PAPER
from .nulltext import NULLTEXT_PAPER
from .p2p import P2P_PAPER
from .repaint import REPAINT_PAPER
from .sdedit import SDEDIT_PAPER
from .sdg import SDG_PAPER
from .spec import Claim, Paper, PaperSetting
from .unitune import UNITUNE_PAPER

__all__ = ["PAPERS", "Claim", "Paper", "PaperSetting"]

#: Every paper by the word that follows ``steerdiff reproduce``, in the order of the tables.
PAPERS: dict[str, Paper] = {
    paper.name: paper
    for paper in (
        DDIM_PAPER,
        CLASSIFIER_FREE,
        ADM,
        ILVR_PAPER,
        SDEDIT_PAPER,
        REPAINT_PAPER,
        SDG_PAPER,
        DIFFUSIONCLIP_PAPER,
        BLENDED_PAPER,
        ASYRP_PAPER,
        P2P_PAPER,
        NULLTEXT_PAPER,
        NEGPROMPT_PAPER,
        DIFFEDIT_PAPER,
        IMAGIC_PAPER,
        UNITUNE_PAPER,
        DREAMBOOTH_PAPER,
    )
}
