"""Files of weights: read without running code, one tensor at a time, and matched to our networks by name."""

from .reader import Entry, WeightFile

__all__ = ["Entry", "WeightFile"]
