"""Training data and trainers, and what they share: the loop, optimisers, averages, checkpoints, distribution."""

from .config import LoopConfig, TrainConfig, read_config
from .data import Dataset, ImageFolder
from .diffusion import train_diffusion
from .ema import EMA
from .loop import NonFiniteLossError, Trainer, TrainResult
from .losses import DiffusionLoss
from .muon import Muon
from .scenes import EmojiScenes

__all__ = [
    "EMA",
    "Dataset",
    "DiffusionLoss",
    "EmojiScenes",
    "ImageFolder",
    "LoopConfig",
    "Muon",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "read_config",
    "train_diffusion",
]
