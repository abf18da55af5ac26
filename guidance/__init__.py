"""Everything that turns a denoiser into a denoiser, and the model that binds network, text and schedule together."""

from .classifier import ClassifierGuidance
from .classifier_free import ClassifierFree, Condition, Conditioned
from .clean_clip import CleanClipGuidance
from .loading import load
from .model import Model

__all__ = ["ClassifierFree", "ClassifierGuidance", "CleanClipGuidance", "Condition", "Conditioned", "Model", "load"]
