"""The version, read by the build and by every file that records how it was made."""

__version__ = "0.1.0"
