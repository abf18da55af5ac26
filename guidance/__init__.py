"""Everything that turns a denoiser into a denoiser, and the model that binds network, text and schedule together."""

from .classifier import ClassifierGuidance
from .classifier_free import ClassifierFree, Condition, Conditioned
from .clean_clip import CleanClipGuidance
from .loading import load
from .model import Model
from .prompts import Weighted
from .strength import Guidance, scale_of, w_of

__all__ = [
    "ClassifierFree",
    "ClassifierGuidance",
    "CleanClipGuidance",
    "Condition",
    "Conditioned",
    "Guidance",
    "Model",
    "Weighted",
    "load",
    "scale_of",
    "w_of",
]
