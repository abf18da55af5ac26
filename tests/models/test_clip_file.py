"""Files of whole CLIPs, in each layout that they are published in."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models import Clip, build_clip, image_features, load_clip, text_features
from steerdiff.models.published.part_names import hf_clip_keymap
from steerdiff.models.published.spec import ClipConfig
from steerdiff.models.weights import published_tensors

TEXT = {"context_length": 8, "vocab_size": 49, "width": 64, "heads": 1, "layers": 2}
VIT = ClipConfig(
    embed_dim=24,
    vision_cfg={"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
    text_cfg=TEXT,
    quick_gelu=True,
)
RESNET = ClipConfig(
    embed_dim=24,
    vision_cfg={"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None},
    text_cfg=TEXT,
    quick_gelu=True,
)
IDS = torch.tensor([[47, 3, 7, 48, 0, 0, 0, 0]])


def made(config: ClipConfig):
    """A CLIP whose every tensor is random, so that each matters, and whose numbers are those of half precision."""
    torch.manual_seed(0)
    clip = build_clip(config)
    with torch.no_grad():
        for tensor in clip.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor)).copy_(tensor.half())
    return clip


def seen(clip) -> Tensor:
    clip = clip.network if isinstance(clip, Clip) else clip
    torch.manual_seed(1)
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    return torch.cat([image_features(clip, torch.rand(1, 3, size, size) * 2 - 1), text_features(clip, IDS)])


def write_state_dict(clip, path: Path) -> None:
    torch.save(clip.state_dict(), path)


def write_safetensors(clip, path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in clip.state_dict().items()}, path)


def write_training_checkpoint(clip, path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in clip.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}}, path)


def write_transformers(clip, path: Path) -> None:
    tensors = dict(published_tensors(clip.state_dict(), hf_clip_keymap(VIT)))
    tensors["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(tensors, path)


def write_archive(clip, path: Path) -> None:
    """As OpenAI's: TorchScript in half precision, with three numbers beside the weights."""
    for name, value in (("input_resolution", 32), ("context_length", 8), ("vocab_size", 49)):
        if hasattr(clip, name):
            delattr(clip, name)
        clip.register_buffer(name, torch.tensor(value))
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(clip, (torch.zeros(1, 3, size, size), IDS), check_trace=False)
        torch.jit.save(traced.half(), str(path))


@pytest.mark.parametrize(
    ("config", "write"),
    [
        (VIT, write_state_dict),
        (RESNET, write_state_dict),
        (VIT, write_safetensors),
        (RESNET, write_training_checkpoint),
        (VIT, write_transformers),
    ],
)
def test_a_file_is_read_once_its_activation_is_told(tmp_path, config, write):
    clip = made(config)
    expected = seen(clip)
    write(clip, tmp_path / "clip.bin")
    with pytest.raises(UserError, match="does not tell its activation; give quick_gelu=True for OpenAI's weights"):
        load_clip(tmp_path / "clip.bin")
    loaded = load_clip(tmp_path / "clip.bin", quick_gelu=True)
    assert torch.equal(seen(loaded), expected)
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    other = seen(load_clip(tmp_path / "clip.bin", quick_gelu=False))
    assert not torch.allclose(other, expected, atol=1e-3)
    assert torch.equal(seen(load_clip(tmp_path / "clip.bin", config)), expected)


@pytest.mark.parametrize("config", [VIT, RESNET])
def test_an_archive_of_openai_tells_everything(tmp_path, config):
    clip = made(config)
    expected = seen(clip)
    write_archive(clip, tmp_path / "clip.pt")
    loaded = load_clip(tmp_path / "clip.pt")
    assert torch.equal(seen(loaded), expected)
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    with pytest.raises(UserError, match="is OpenAI's, which has the quick GELU; leave quick_gelu out"):
        load_clip(tmp_path / "clip.pt", quick_gelu=False)


def test_weights_come_in_the_type_that_is_asked_for(tmp_path):
    clip = made(VIT)
    write_state_dict(clip, tmp_path / "clip.pt")
    loaded = load_clip(tmp_path / "clip.pt", VIT, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.bfloat16}
    assert float((seen(loaded) * seen(clip)).sum(dim=-1).min()) > 0.99


def test_heads_that_shapes_do_not_tell_are_asked_for(tmp_path):
    wide = {"image_size": 16, "layers": 1, "width": 1408, "head_width": 88, "patch_size": 8}
    odd = {"image_size": 16, "layers": 1, "width": 48, "head_width": 16, "patch_size": 8}
    for vision, width in ((wide, 1408), (odd, 48)):
        config = ClipConfig(embed_dim=24, vision_cfg=vision, text_cfg=TEXT)
        write_state_dict(made(config), tmp_path / "clip.pt")
        with pytest.raises(UserError, match=f"of width 64 and {width}, which do not tell their number of heads"):
            load_clip(tmp_path / "clip.pt", quick_gelu=False)
        assert torch.equal(seen(load_clip(tmp_path / "clip.pt", config)), seen(made(config)))


def test_an_architecture_must_fit_the_file_and_the_activation(tmp_path):
    write_state_dict(made(VIT), tmp_path / "clip.pt")
    for name in ("ViT-B-32-quickgelu", "clip-vit-b-32"):
        with pytest.raises(UserError, match="does not fit this architecture"):
            load_clip(tmp_path / "clip.pt", name)
    with pytest.raises(UserError, match="quick_gelu is False, but the architecture has True"):
        load_clip(tmp_path / "clip.pt", "clip-vit-b-32", quick_gelu=False)
    with pytest.raises(UserError, match="'ViT-B-32' does not say its activation"):
        load_clip(tmp_path / "clip.pt", "ViT-B-32")


def test_files_that_are_no_clip_are_refused(tmp_path):
    save_file({"temb.dense.0.weight": torch.zeros(4, 4)}, tmp_path / "ddpm.safetensors")
    with pytest.raises(UserError, match="is no CLIP but of the layout ddpm"):
        load_clip(tmp_path / "ddpm.safetensors")
    state = {f"text.{name}": value for name, value in made(VIT).state_dict().items() if not name.startswith("visual")}
    state |= {name: value for name, value in made(VIT).state_dict().items() if name.startswith("visual")}
    torch.save(state, tmp_path / "custom.pt")
    with pytest.raises(UserError, match="is no CLIP that steerdiff knows: it has no text_projection, token_embedding"):
        load_clip(tmp_path / "custom.pt", quick_gelu=True)
