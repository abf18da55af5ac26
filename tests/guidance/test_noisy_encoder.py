"""CLIPs and noisy CLIPs of our own format, and the networks that methods look up by name."""

from pathlib import Path

import pytest
import torch

import steerdiff
from steerdiff.errors import UserError
from steerdiff.guidance.loading import load_cached, load_model
from steerdiff.guidance.noisy_encoder import NoisyEncoder
from steerdiff.models import Clip, build_clip, file_hash, load_clip, read_header, read_safetensors, save_safetensors
from steerdiff.models.noisy_clip import NoisyClipConfig, from_clip
from steerdiff.models.published.spec import ClipConfig

WORDS = ("a", "cat", "dog")
CONFIG = ClipConfig(
    embed_dim=8,
    vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    text_cfg={"context_length": 6, "vocab_size": len(WORDS) + 3, "width": 16, "heads": 2, "layers": 1},
    quick_gelu=True,
)


def halves(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in network.state_dict().items()}


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "clip.safetensors"
    save_safetensors(path, halves(build_clip(CONFIG)), {"kind": "clip", "clip": vars(CONFIG), "words": list(WORDS)})
    return path


@pytest.fixture
def noisy_file(tmp_path: Path, clip_file: Path) -> Path:
    network = from_clip(load_clip(clip_file).network, NoisyClipConfig(time="token", init="published", T=50))
    header = {"kind": "noisy-clip", "clip": vars(CONFIG), "noisy": network.config.to_dict()}
    save_safetensors(tmp_path / "noisy.safetensors", halves(network), {**header, "clip_hash": file_hash(clip_file)})
    return tmp_path / "noisy.safetensors"


def test_a_clip_of_our_own_reads_its_own_words_however_it_is_loaded(clip_file: Path) -> None:
    clips = [steerdiff.load(clip_file), load_clip(clip_file), load_cached(clip_file, "clip")]
    for clip in clips:
        assert isinstance(clip, Clip) and clip.words == WORDS and clip.size == 16 and clip.config == CONFIG
        assert clip.weights_hash == file_hash(clip_file) and clip.name == "clip"
        assert {p.dtype for p in clip.network.parameters()} == {torch.float32} and not clip.network.training
        assert clip.tokenize(["a cat"]).tolist() == [[1, 2, 3, 5, 0, 0]]
        vectors = clip.text_features(["a cat", "dog"])
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2)) and vectors.dtype == torch.float32
    with pytest.raises(UserError, match="has words that this CLIP does not know: 'dig' "):
        clips[0].text_features(["a dig"])
    with pytest.raises(UserError, match="holds its own configuration"):
        load_clip(clip_file, quick_gelu=True)


def test_image_features_take_any_size_and_give_gradients(clip_file: Path) -> None:
    clip = load_clip(clip_file)
    image = (torch.rand(2, 3, 40, 24) * 2 - 1).requires_grad_()
    vectors = clip.image_features(image)
    assert vectors.shape == (2, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(2))
    (gradient,) = torch.autograd.grad(vectors[:, 0].sum(), image)
    assert gradient.shape == image.shape and bool(gradient.any())
    assert clip.feature_maps(image).maps[0].shape == (2, 16, 2, 2)


def test_a_noisy_clip_is_loaded_with_what_is_known_of_it(noisy_file: Path, clip_file: Path) -> None:
    encoder = steerdiff.load(noisy_file)
    assert isinstance(encoder, NoisyEncoder) and encoder.image_size == 16 and encoder.schedule is None
    assert encoder.clip_hash == file_hash(clip_file) and encoder.weights_hash == file_hash(noisy_file)
    x = torch.rand(2, 3, 16, 16)
    half = NoisyEncoder(network=encoder.network.half(), image_size=16)(x, torch.tensor([3.0, 7.0]))
    assert half.vector.dtype == half.maps[0].dtype == torch.float32
    assert not torch.allclose(half.vector, half.vector.flip(0))
    with pytest.raises(UserError, match="is a noisy CLIP; give the weights of a diffusion model"):
        load_model(noisy_file)


def test_networks_that_methods_name_are_loaded_once_and_of_the_right_kind(noisy_file: Path, clip_file: Path) -> None:
    clip = load_cached(clip_file, "clip")
    assert load_cached(str(clip_file), "clip") is clip and load_cached(clip, "clip") is clip
    assert load_cached(clip_file, "encoder") is clip
    assert isinstance(load_cached(noisy_file, "encoder"), NoisyEncoder)
    with pytest.raises(UserError, match="is a noisy CLIP; give the weights of a CLIP"):
        load_cached(noisy_file, "clip")
    with pytest.raises(UserError, match="is a CLIP; give the weights of a noisy classifier"):
        load_cached(clip_file, "classifier")
    with pytest.raises(UserError, match="'emoji64-clap' is neither a file or folder"):
        load_cached("emoji64-clap", "clip")
    save_safetensors(clip_file, read_safetensors(clip_file), {**read_header(clip_file), "name": "another"})
    assert load_cached(clip_file, "clip").name == "another"


@pytest.mark.parametrize(("kind", "lost"), [("clip", "words"), ("clip", "clip"), ("noisy-clip", "noisy")])
def test_a_header_that_lacks_something_says_so(clip_file: Path, noisy_file: Path, kind: str, lost: str) -> None:
    path = clip_file if kind == "clip" else noisy_file
    header = {name: value for name, value in read_header(path).items() if name != lost}
    save_safetensors(path, read_safetensors(path), header)
    with pytest.raises(UserError, match=f"lacks {lost}; fetch or save the file again"):
        steerdiff.load(path)


def test_a_file_of_another_kind_is_no_clip(noisy_file: Path) -> None:
    with pytest.raises(UserError, match="holds a model of kind 'noisy-clip', no CLIP; give the weights of a CLIP"):
        load_clip(noisy_file)
