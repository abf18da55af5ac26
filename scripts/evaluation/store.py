"""Results of cells on the disk."""

from __future__ import annotations
