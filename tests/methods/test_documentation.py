"""The code blocks of docs/methods run as they stand, on a formula in the place of the shipped weights."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff.guidance import Model
from steerdiff.guidance.loading import SHIPPED, load
from steerdiff.io import save_image
from steerdiff.methods import METHODS
from steerdiff.models.config import UNetConfig
from steerdiff.models.text import TextConfig, WordEncoder
from steerdiff.models.unet import UNet
from steerdiff.samplers import NoiseSchedule
from steerdiff.train.scenes import WORDS

from ..guidance.toys import half_mask, pictures

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methods"
PAGES = ("sampling", *sorted(METHODS))


def stand_in(source: Any, *args: Any, **kwargs: Any) -> Any:
    """A model with the words and the size of the shipped one, a formula for a network; what guides is as shipped."""
    if source in SHIPPED and source != "emoji64":
        return load(source)
    torch.manual_seed(0)
    text = WordEncoder(TextConfig(words=WORDS, width=16, depth=1, heads=2)).eval().requires_grad_(False)

    def network(x: Tensor, t: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        return 0.3 * x + 0.01 * context[:, 1, 0].reshape(-1, 1, 1, 1)

    return Model(
        network=network, text=text, schedule=NoiseSchedule.cosine(1000, shift=0.5), parameterization="v", image_size=64
    )


def attentive(source: Any, *args: Any, **kwargs: Any) -> Any:
    """The same with a small network that looks at words."""
    model = stand_in("emoji64")
    shape: dict[str, Any] = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_at": (1,)}
    network = UNet(UNetConfig(**shape, context_dim=16, unshuffle=4)).eval().requires_grad_(False)
    return dataclasses.replace(model, network=network)


#: Pages of methods that change the attention inside the network, which a formula has not.
ATTENTIVE = ("p2p",)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_of_the_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steerdiff, "load", attentive if page in ATTENTIVE else stand_in, raising=False)
    save_image(pictures(1, 64), tmp_path / "scene.png")
    save_image(half_mask(64) * 2 - 1, tmp_path / "mask.png")
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), scope)  # the pages are ours


def test_every_method_has_a_page_that_fits_the_page_width() -> None:
    wide = [
        f"{page}.md:{number}"
        for page in PAGES
        for number, line in enumerate((DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")
    ]
    assert wide == []
