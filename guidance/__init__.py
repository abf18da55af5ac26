"""Everything that turns a denoiser into a denoiser, and the model that binds network, text and schedule together."""

from .classifier_free import ClassifierFree, Condition, Conditioned
from .model import Model, load

__all__ = ["ClassifierFree", "Condition", "Conditioned", "Model", "load"]
