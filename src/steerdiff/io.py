"""Images, masks and settings between files and tensors: the edge where PIL images and paths become ``[B, C, H, W]``."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from steerdiff.errors import UserError, require

__all__ = [
    "ImageSource",
    "atomic_write",
    "cache_folder",
    "clear_os_errors",
    "embed_image",
    "ensure_writable",
    "grid",
    "load_image",
    "load_mask",
    "read_settings",
    "save_image",
    "to_uint8",
    "unembed_image",
]

ImageSource = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]
Fit = Literal["crop", "stretch", "exact"]
#: Height and width in pixels, or one number for both.
Size = int | tuple[int, int]

_SETTINGS_KEY = "steerdiff"
_MEBIBYTE = 2**20


def load_image(source: ImageSource, size: Size | None = None, *, fit: Fit = "crop") -> Tensor:
    """Return an image as float32 ``[1, 3, H, W]`` in [-1, 1].

    Any mode becomes RGB, a transparent picture is laid on white, and a camera's rotation flag is obeyed.

    Args:
        source: Path, PIL image, or uint8 array ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.
        size: Height and width wanted, in pixels, or one number for both; None keeps the picture's own size.
        fit: What to do where the size differs. "crop" halves with a box filter while both sides are at least twice
            ``size``, resizes with a bicubic filter until they are just covered and cuts out the centre, as ADM's data
            loader does (Dhariwal & Nichol 2021, official code); "stretch" resizes both sides, bicubic; "exact" raises.

    Raises:
        UserError: The file is missing, unreadable, truncated or no picture; an array is not uint8; ``fit`` is "exact"
            and the picture has another size.
    """
    picture = _to_rgb(_open(source))
    if size is not None:
        height, width = _sides(size)
        if picture.size != (width, height):
            require(fit != "exact", f"{_name(source)} is {_shape(picture)}; expected {width} x {height}")
            if fit == "stretch":
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            else:
                picture = _centre_crop(picture, height, width)
    return _from_uint8(np.asarray(picture))


def load_mask(source: ImageSource, size: Size | None = None, *, threshold: float | None = None) -> Tensor:
    """Return a mask as float32 ``[1, 1, H, W]``: 1 (white) where the image may change, 0 (black) where it must not.

    Args:
        source: Path, PIL image or uint8 array of a black and white picture.
        size: Height and width wanted; the short side is resized with the nearest neighbour, then the centre is cut
            out, so that a mask drawn over an image stays over it when ``load_image`` crops. None keeps the size.
        threshold: Brightness in (0, 1) from which a pixel counts as white; None demands pure black and white.

    Raises:
        UserError: The file cannot be read, has transparent pixels, or is not binary and no threshold is given.
    """
    picture = _open(source)
    if _has_alpha(picture):
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        require(bool((alpha == 255).all()), f"{_name(source)} has transparent pixels; a mask is black and white only")
    picture = picture.convert("RGB").convert("L")
    if size is not None:
        picture = _covering(picture, *_sides(size), Image.Resampling.NEAREST)
    grey = np.asarray(picture)
    if threshold is None:
        binary = bool(((grey == 0) | (grey == 255)).all())
        require(binary, f"{_name(source)} is not binary; save it in pure black and white, or give a threshold")
        white = grey == 255
    else:
        require(0 < threshold < 1, f"threshold is {threshold}; it must be between 0 and 1")
        white = grey >= threshold * 255
    return torch.from_numpy(white.astype(np.float32))[None, None]


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8 by rounding to the nearest of 256 values; what lies outside is clipped.

    Raises:
        UserError: Some value is not finite.
    """
    images = images.detach().to("cpu", torch.float32)
    require(bool(torch.isfinite(images).all()), "the image holds values that are not finite; it cannot be saved")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def save_image(image: Tensor, path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> Path:
    """Write one image as PNG, with the settings that made it inside and in a JSON file beside it.

    Both files are written whole or not at all: each goes to a temporary name first.

    Args:
        image: ``[3, H, W]`` or ``[1, 3, H, W]`` (or one channel) in [-1, 1].
        path: Where to write; must end in ``.png``.
        settings: JSON-able; stored in the PNG's text chunk "steerdiff". None stores nothing and writes no JSON file.

    Returns:
        The path.

    Raises:
        UserError: Wrong shape or suffix, values that are not finite, a full disk or a folder that cannot be written.
    """
    path = Path(path)
    require(path.suffix.lower() == ".png", f"{path} does not end in .png, the one format that images are saved in")
    picture = _to_picture(image)
    info = PngInfo()
    if settings is not None:
        text = json.dumps(settings, sort_keys=True)
        info.add_text(_SETTINGS_KEY, text)  # not compressed: PIL refuses compressed texts of more than 1 MB
        pretty = json.dumps(settings, sort_keys=True, indent=2) + "\n"
        atomic_write(path.with_suffix(".json"), lambda file: file.write(pretty.encode()))
    return atomic_write(path, lambda file: picture.save(file, format="PNG", pnginfo=info))


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings stored with an image: from the PNG, else from the JSON file beside it, or from a JSON file.

    Raises:
        UserError: There is no such file, or it holds no settings.
    """
    path = Path(path)
    texts: list[str] = []
    if path.suffix.lower() != ".json":
        stored = _open(path).info.get(_SETTINGS_KEY)
        texts += [stored] if isinstance(stored, str) else []
    sidecar = path.with_suffix(".json")
    if not texts and sidecar.is_file():
        texts.append(sidecar.read_text(encoding="utf-8", errors="replace"))
    require(path.exists(), f"{path} does not exist")
    require(bool(texts), f"{path} carries no settings of steerdiff, and there is no {sidecar.name} beside it")
    try:
        settings = json.loads(texts[0])
    except ValueError as error:
        raise UserError(f"the settings of {path} are not readable JSON ({error})") from error
    require(isinstance(settings, dict), f"the settings of {path} are not a JSON object")
    return dict(settings)


def grid(
    images: Tensor | Sequence[Tensor], columns: int | None = None, pad: int = 2, background: float = 1.0
) -> Tensor:
    """Return one image ``[3, H, W]`` that shows images of one size in rows.

    Args:
        images: ``[B, C, H, W]`` or a list of ``[C, H, W]``.
        columns: Images in a row; None makes the grid about square.
        pad: Pixels between images and around them.
        background: Value of those pixels; 1 is white.
    """
    batch = images if isinstance(images, Tensor) else torch.stack([image.squeeze(0) for image in images])
    require(batch.ndim == 4 and len(batch) > 0, f"images are {list(batch.shape)}; expected [B, C, H, W] with B > 0")
    columns = min(len(batch), columns or math.ceil(math.sqrt(len(batch))))
    rows = math.ceil(len(batch) / columns)
    _, channels, height, width = batch.shape
    size = (channels, rows * (height + pad) + pad, columns * (width + pad) + pad)
    canvas = torch.full(size, background, dtype=batch.dtype, device=batch.device)
    for i, image in enumerate(batch):
        top, left = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def embed_image(image: Tensor) -> str:
    """Return one image ``[1, C, H, W]`` or ``[C, H, W]`` in [-1, 1] as the base64 text of a PNG, for settings."""
    buffer = BytesIO()
    _to_picture(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unembed_image(text: str) -> Image.Image:
    """Return the picture that ``embed_image`` stored, ready for ``load_image`` or ``load_mask``."""
    try:
        picture = Image.open(BytesIO(base64.b64decode(text, validate=True)))
        picture.load()
    except (ValueError, OSError) as error:
        raise UserError(f"the picture stored in the settings is damaged ({error})") from error
    return picture


def cache_folder() -> Path:
    """Return where what was computed or built is kept: ``$STEERDIFF_CACHE``, else ``~/.cache/steerdiff``."""
    given = os.environ.get("STEERDIFF_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "steerdiff"


def ensure_writable(folder: str | os.PathLike[str], need: int = _MEBIBYTE) -> Path:
    """Make a folder and prove that files can be written there, before hours are spent on what goes into it.

    Args:
        folder: The folder; its parents are made too.
        need: Free bytes wanted.

    Raises:
        UserError: It cannot be made or written, or has less than ``need`` bytes free.
    """
    folder = Path(folder)
    with clear_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / "probe")
        probe.write_bytes(b"steerdiff")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    short = f"{folder} has {free / _MEBIBYTE:.1f} MiB free and {need / _MEBIBYTE:.1f} MiB are needed"
    require(free >= need, f"{short}; free some space or choose another folder")
    return folder


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Call ``write`` with a temporary file beside ``path`` and rename it to ``path`` once it is whole and on disk.

    Raises:
        UserError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = _temporary(path)
    with clear_os_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                if os.path.isfile(temporary):
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def clear_os_errors(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals about ``place`` into a ``UserError`` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no space is left on the disk of {place}; free some space or choose another folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{place} cannot be written ({error.strerror}); choose another folder or change its rights"
        else:
            message = f"{place} cannot be written ({error.strerror or error}); choose another folder"
        raise UserError(message) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _open(source: ImageSource) -> Image.Image:
    """Return a fully decoded picture, or say what is wrong with the file."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        fits = source.dtype == np.uint8 and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4)))
        given = f"the array is {source.dtype} {list(source.shape)}"
        require(fits, f"{given}; expected uint8 [H, W], [H, W, 3] or [H, W, 4]")
        return Image.fromarray(source)
    path = Path(source)
    require(path.exists(), f"{path} does not exist")
    require(path.is_file(), f"{path} is a folder; give the path of an image")
    try:
        picture = Image.open(path)
        picture.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that Pillow can read; give a PNG, JPEG or WebP file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}; the file may be truncated or damaged") from error
    return picture


def _has_alpha(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparency on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey: PIL's own conversion cuts at 255
        grey = np.clip(np.asarray(picture).astype(np.float64) / 257, 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    require(picture.mode != "F", "the image holds floating-point pixels, whose range is unknown; save it as 8-bit RGB")
    if not _has_alpha(picture):
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _centre_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return _covering(picture, height, width, Image.Resampling.BICUBIC)


def _covering(picture: Image.Image, height: int, width: int, resampling: Image.Resampling) -> Image.Image:
    """Resize until height and width are covered, then cut out the centre."""
    scale = max(height / picture.height, width / picture.width)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), resampling)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _from_uint8(pixels: npt.NDArray[np.uint8]) -> Tensor:
    return (torch.from_numpy(pixels.copy()).to(torch.float32) / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def _to_picture(image: Tensor) -> Image.Image:
    single = image[0] if image.ndim == 4 and len(image) == 1 else image
    fits = single.ndim == 3 and single.shape[0] in (1, 3)
    require(fits, f"image is {list(image.shape)}; expected [3, H, W] or [1, 3, H, W]")
    pixels = to_uint8(single).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _sides(size: Size) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    fits = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    require(fits, f"size is {size}; it must be a positive number of pixels, or a height and a width")
    return sides[0], sides[1]


def _name(source: ImageSource) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "the image"


def _shape(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
