"""Published models: what they are made of, how their files name the parts, and the presets."""

from .spec import ClipConfig, PublishedModel

__all__ = ["ClipConfig", "PublishedModel"]
