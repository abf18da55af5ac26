"""``steerdiff reproduce PAPER``: the main experiment of a paper, with its published numbers."""

from __future__ import annotations
