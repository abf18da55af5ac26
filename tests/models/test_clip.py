"""A whole CLIP: the golden features and gradients, its configurations, its images and its tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError
from steerdiff.models import build, load_into
from steerdiff.models.clip import (
    build_clip,
    clip_config,
    clip_size,
    image_features,
    prepare,
    text_features,
    tokenize_for,
)
from steerdiff.models.official_clip import hf_clip_config
from steerdiff.models.published.part_names import hf_clip_keymap
from steerdiff.models.published.spec import ClipConfig
from steerdiff.models.weights import Entry, WeightFile, fill

from ..helpers import golden_files, golden_weight, load_golden

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # of the largest value; 2e-6 and 1e-6 were measured

OPENCLIP_FILES = golden_files("clip/openclip_*.npz")
HF_FILES = golden_files("clip/hf_clip*.npz")
TINY = ClipConfig(
    embed_dim=16,
    vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    quick_gelu=True,
)


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


def golden_weights(meta: dict) -> dict[str, Tensor]:
    keys, scale = dict(meta["keys"]), meta["weight_scale"]
    return {key: torch.as_tensor(golden_weight(key, shape, scale), dtype=torch.float32) for key, shape in keys.items()}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_clip(TINY)


@pytest.mark.parametrize("path", OPENCLIP_FILES, ids=lambda path: Path(path).stem)
def test_clip_agrees_with_open_clip(path):
    arrays, meta = load_golden(path)
    clip = build(meta["class"], {name: meta[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})
    weights = golden_weights(meta)
    weights["logit_scale"] = torch.tensor(meta["logit_scale"])
    own = clip.state_dict()
    weights |= {name: own[name] for name in weights if name.endswith("num_batches_tracked")}
    load_into(clip, weights, "the state dict")
    ids, image = torch.from_numpy(arrays["in.ids"]), torch.from_numpy(arrays["in.image"]).requires_grad_()
    pictures, texts = clip.encode_image(image), clip.encode_text(ids)
    units = functional.normalize(pictures, dim=-1), text_features(clip, ids)
    outputs = {
        "out.image_features": pictures,
        "out.text_features": texts,
        "out.logits_per_image": clip.logit_scale.exp() * units[0] @ units[1].T,
    }
    for name, output in outputs.items():
        assert relative_error(output.detach(), torch.from_numpy(arrays[name])) <= TOLERANCE, name
    (grad,) = torch.autograd.grad((units[0] * units[1]).sum(), image)
    assert relative_error(grad, torch.from_numpy(arrays["out.grad_image"])) <= GRADIENT_TOLERANCE
    assert not any(parameter.requires_grad for parameter in clip.parameters())


@pytest.mark.parametrize("path", HF_FILES, ids=lambda path: Path(path).stem)
@torch.no_grad()
def test_clip_agrees_with_transformers(path):
    arrays, meta = load_golden(path)
    config = hf_clip_config(meta["text"], meta["vision"], meta["projection_dim"])
    with torch.device("meta"):
        clip = build_clip(config)
    weights = golden_weights(meta)
    weights["logit_scale"] = torch.tensor(meta["logit_scale"])
    entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    file = WeightFile(Path("golden"), entries, weights.__getitem__)
    fill(clip, file, hf_clip_keymap(config), source="the golden weights")
    ids = torch.from_numpy(arrays["in.ids"])
    text = text_features(clip, torch.cat([ids, torch.zeros(len(ids), 16 - ids.shape[1], dtype=ids.dtype)], dim=1))
    image = functional.normalize(clip.encode_image(torch.from_numpy(arrays["in.image"])), dim=-1)
    logits = clip.logit_scale.exp() * image @ text.T
    outputs = {"out.image_embeds": image, "out.text_embeds": text, "out.logits_per_image": logits}
    for name, output in outputs.items():
        assert relative_error(output, torch.from_numpy(arrays[name])) <= TOLERANCE, name
    built = build(meta["class"], {name: meta[name] for name in ("text", "vision", "projection_dim")})
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        name: value.shape for name, value in clip.state_dict().items()
    }


def test_golden_clips_are_there():
    assert len(OPENCLIP_FILES) >= 3 and len(HF_FILES) >= 1


def test_a_clip_on_the_meta_device_takes_no_memory_but_for_its_mask():
    with torch.device("meta"):
        clip = build_clip(TINY)
    assert all(value.is_meta for value in clip.state_dict().values())
    assert torch.equal(clip.attn_mask, build_clip(TINY).attn_mask)


def test_the_bundled_configurations_say_their_activation_or_ask():
    assert clip_config("ViT-B-32-quickgelu").quick_gelu
    assert not clip_config("ViT-B-32", quick_gelu=False).quick_gelu
    assert clip_config("RN50", quick_gelu=True).vision_cfg["layers"] == [3, 4, 6, 3]
    with pytest.raises(UserError, match="'ViT-B-32' does not say its activation; give quick_gelu=True for OpenAI's"):
        clip_config("ViT-B-32")
    with pytest.raises(UserError, match="quick_gelu is False, but 'RN50-quickgelu' has True"):
        clip_config("RN50-quickgelu", quick_gelu=False)


def test_architectures_that_are_no_plain_clip_are_refused():
    with pytest.raises(UserError, match="'ViT-B/32' is not one of open_clip's architectures; the nearest are ViT-B-32"):
        clip_config("ViT-B/32")
    for name in ("convnext_base", "coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        with pytest.raises(UserError, match=f"'{name}' is no plain CLIP"):
            clip_config(name)


def test_an_image_of_clips_size_is_only_normalised():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    expected = ((image + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(prepare(image, 32), expected, atol=1e-6)


def test_a_resized_image_is_pillows():
    from PIL import Image

    rows, columns = torch.meshgrid(torch.linspace(0, 6, 60), torch.linspace(0, 5, 45), indexing="ij")
    channel = 0.5 * torch.sin(3 * rows) * torch.cos(2 * columns)
    small = Image.fromarray(channel.numpy(), mode="F").resize((24, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(small).copy())[4:28]
    result = prepare(channel.expand(1, 3, 60, 45), 24)
    assert result.shape == (1, 3, 24, 24)
    result = (result[0, 0] * 0.26862954 + 0.48145466) * 2 - 1
    assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 20, 20), (2, 3, 64, 48), (1, 3, 31, 100), (1, 3, 32, 33)])
def test_images_of_any_size_are_seen_and_have_gradients(tiny, shape):
    torch.manual_seed(0)
    image = (torch.rand(shape) * 2 - 1).requires_grad_()
    features = image_features(tiny, image)
    assert features.shape == (shape[0], 16) and torch.allclose(features.norm(dim=-1), torch.ones(shape[0]))
    features[:, 0].sum().backward()
    assert image.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    with pytest.raises(UserError, match=r"expected \[B, 3, H, W\]"):
        image_features(tiny, image[0])


def test_texts_become_open_clips_tokens(tiny):
    arrays, meta = load_golden(golden_files("clip/tokens.npz")[0])
    ids = tokenize_for(tiny, meta["texts"], truncates=True)
    assert torch.equal(ids, torch.from_numpy(arrays["ids"]))
    features = text_features(tiny, ids)
    assert features.shape == (len(ids), 16) and torch.allclose(features.norm(dim=-1), torch.ones(len(ids)))
    with pytest.raises(UserError, match="has 76 tokens and this model reads at most 75"):
        tokenize_for(tiny, ["word " * 76])


def test_a_foreign_vocabulary_is_refused():
    clip = build_clip(
        ClipConfig(embed_dim=16, vision_cfg=TINY.vision_cfg, text_cfg={**TINY.text_cfg, "vocab_size": 49})
    )
    with pytest.raises(UserError, match="this CLIP has 49 tokens"):
        tokenize_for(clip, ["a cat"])


def test_half_precision_gives_nearly_the_same_features(tiny):
    torch.manual_seed(0)
    image, ids = torch.rand(1, 3, 32, 32) * 2 - 1, tokenize_for(tiny, ["a cat"])
    half = build_clip(TINY)
    half.load_state_dict(tiny.state_dict())
    half.to(torch.bfloat16)
    assert clip_size(half) == 32
    for one, other in (
        (image_features(half, image), image_features(tiny, image)),
        (text_features(half, ids), text_features(tiny, ids)),
    ):
        assert one.dtype == torch.float32 and float((one * other).sum()) > 0.99
