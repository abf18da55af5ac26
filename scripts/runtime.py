"""Flags that every command with a model shares: the weights, the device and the threads."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from steerdiff._version import __version__
from steerdiff.errors import require

if TYPE_CHECKING:
    from steerdiff.guidance import Model

__all__ = ["DeviceFlags", "ModelFlags", "environment"]

Precision = Literal["float32", "bfloat16", "float16"]
Kernels = Literal["auto", "cuda", "reference"]


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Where something runs, and in which numbers."""

    device: str = "auto"  #: cpu, cuda, cuda:1, ...; auto takes CUDA if there is one
    precision: Precision = "float32"  #: floating type of the network
    threads: int | None = None  #: CPU threads; None leaves it to PyTorch
    #: fused CUDA kernels: cuda demands them, reference does without, auto warns where they cannot run; None as the
    #: environment variable STEERDIFF_KERNELS says, else auto
    kernels: Kernels | None = None

    def prepare(self) -> None:
        """Choose the kernels and the threads for this process.

        Raises:
            UserError: There is no such device, it cannot run the kernels that are demanded, or there are no threads.
        """
        import torch

        from steerdiff.models import kernels

        if self.kernels is not None:
            kernels.use(self.kernels)
        if kernels.setting() == "cuda":
            kernels.fused(torch.empty(0, device=self.place()))  # an error now, not in the middle of a run
        if self.threads is not None:
            require(self.threads >= 1, f"threads is {self.threads}; it must be at least 1")
            torch.set_num_threads(self.threads)

    def place(self) -> str:
        """Return the device's name, "auto" decided.

        Raises:
            UserError: There is no such device.
        """
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(self.device)
        except RuntimeError:
            require(False, f"device is {self.device!r}; give cpu, cuda, cuda:1 or the like")
        there = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        require(there, f"device is {self.device!r}, but PyTorch finds {torch.cuda.device_count()} CUDA devices")
        return self.device


@dataclass(frozen=True, kw_only=True)
class ModelFlags(DeviceFlags):
    """Which model, and where it runs."""

    weights: str = "emoji64"  #: name of shipped weights, or the path of a file or folder
    weights_config: str | None = None  #: preset (info --presets), flags or YAML of weights that need it
    ema: bool | None = None  #: of a file with two sets of weights, take the averaged; None as its authors do
    size: tuple[int, int] | None = None  #: height and width, for a model that can draw other sizes than its own
    tile: int | None = None  #: side in pixels of the tiles in which a first stage works, for large images

    def load(self) -> Model:
        """Prepare the device and load the model.

        Raises:
            UserError: There are no such weights, or as `prepare`.
        """
        import torch

        from steerdiff.guidance.loading import load_model

        self.prepare()
        model = load_model(
            self.weights, self.weights_config, ema=self.ema, device=self.place(), dtype=getattr(torch, self.precision)
        )
        model = model if self.size is None else model.resized(*self.size)
        return model if self.tile is None else model.tiled(self.tile)


def environment(device: str) -> dict[str, Any]:
    """Return what an image's bits depend on besides the settings: versions, device and threads."""
    import torch

    from steerdiff.models import kernels

    cuda = device.startswith("cuda")
    return {
        "steerdiff": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        **({"kernels": kernels.setting()} if cuda else {}),
    }
