"""``steerdiff ablate METHOD``: vary the settings of a method and measure each."""

from __future__ import annotations
