"""``steerdiff invert``: invert an image by DDIM, keep its noise, and sample back from it."""

from __future__ import annotations

from collections.abc import Sequence

from .edit import replay, run_method

__all__ = ["main", "replay"]


def main(arguments: Sequence[str], prog: str) -> int:
    """Reconstruct an image, or edit it with a target text, and say how far the result is from the image."""
    paths, images = run_method("invert", arguments, prog, command="invert")
    from steerdiff.io import load_image, read_settings, to_uint8, unembed_image

    source = load_image(unembed_image(read_settings(paths[0])["inputs"]["image"]["png"]))
    error = (to_uint8(images).float() - to_uint8(source).float()).square().mean().sqrt()
    for path in paths:
        print(path)
    print(f"root mean square difference from the image: {float(error):.2f} of 255")
    return 0
