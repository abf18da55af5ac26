"""One file a paper: each method is a dataclass of its settings, called with a model and an image."""

from .asyrp import Asyrp
from .blended_diffusion import BlendedDiffusion
from .classifier_guided import ClassifierGuided
from .diffedit import DiffEdit
from .diffusion_clip import DiffusionCLIP
from .dreambooth import DreamBooth
from .ilvr import ILVR
from .imagic import Imagic
from .invert import DDIMInversion
from .negative_prompt import NegativePromptInversion
from .null_text import NullTextInversion
from .prompt_to_prompt import PromptToPrompt
from .repaint import RePaint
from .resizing import LowPass
from .sdedit import SDEdit
from .sdg import SDG
from .unitune import UniTune

__all__ = [
    "ILVR",
    "METHODS",
    "SDG",
    "Asyrp",
    "BlendedDiffusion",
    "ClassifierGuided",
    "DDIMInversion",
    "DiffEdit",
    "DiffusionCLIP",
    "DreamBooth",
    "Imagic",
    "LowPass",
    "NegativePromptInversion",
    "NullTextInversion",
    "PromptToPrompt",
    "RePaint",
    "SDEdit",
    "UniTune",
]

#: Every method by its name on the command line.
METHODS = {
    "ilvr": ILVR,
    "sdedit": SDEdit,
    "repaint": RePaint,
    "invert": DDIMInversion,
    "classifier": ClassifierGuided,
    "sdg": SDG,
    "blended": BlendedDiffusion,
    "diffusionclip": DiffusionCLIP,
    "diffedit": DiffEdit,
    "p2p": PromptToPrompt,
    "dreambooth": DreamBooth,
    "nulltext": NullTextInversion,
    "negprompt": NegativePromptInversion,
    "asyrp": Asyrp,
    "imagic": Imagic,
    "unitune": UniTune,
}
