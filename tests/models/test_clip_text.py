"""CLIP's text tower computes what transformers' and open_clip's do."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError
from steerdiff.models import ClipText, ClipTextConfig, build, load_into
from steerdiff.models.official_clip import hf_text_config
from steerdiff.models.published.part_names import hf_text_keymap
from steerdiff.models.weights import Entry, WeightFile, fill

from ..helpers import golden_files, golden_weight, load_golden

TOLERANCE = 1e-5  # of the largest value; 5e-7 was measured

HF_FILES = golden_files("clip/hf_text_*.npz")
OPENCLIP_FILES = golden_files("clip/openclip_*.npz")
SMALL = {"vocab_size": 50, "length": 16, "width": 32, "heads": 4, "layers": 3, "pad": 0}


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


def golden_weights(meta: dict) -> dict[str, Tensor]:
    keys = dict(meta["keys"])
    scale = meta["weight_scale"]
    return {key: torch.as_tensor(golden_weight(key, shape, scale), dtype=torch.float32) for key, shape in keys.items()}


def in_memory(tensors: dict[str, Tensor]) -> WeightFile:
    entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return WeightFile(Path("golden"), entries, tensors.__getitem__)


@pytest.mark.parametrize("path", HF_FILES, ids=lambda path: Path(path).stem)
@torch.no_grad()
def test_the_text_tower_agrees_with_that_of_transformers(path):
    arrays, meta = load_golden(path)
    weights, ids, outputs = golden_weights(meta), torch.from_numpy(arrays["in.ids"]), {}
    official = build(meta["class"], meta["config"]).config
    for reads, name in (("last", "out.last_hidden_state"), ("penultimate", "out.penultimate_normed")):
        config = dataclasses.replace(official, reads=reads)
        with torch.device("meta"):
            network = ClipText(config).eval()
        fill(network, in_memory(weights), hf_text_keymap(config), source="the golden weights")
        outputs[name] = network(ids)
        outputs["out.pooled" if config.projection is None else "out.text_embeds"] = network.pooled(ids)
    for name, output in outputs.items():
        assert relative_error(output, torch.from_numpy(arrays[name])) <= TOLERANCE, name


@pytest.mark.parametrize("path", OPENCLIP_FILES, ids=lambda path: Path(path).stem)
@torch.no_grad()
def test_the_text_tower_agrees_with_that_of_open_clip(path):
    arrays, meta = load_golden(path)
    given = {"length" if name == "context_length" else name: value for name, value in meta["text_cfg"].items()}
    activation = "quick_gelu" if meta["quick_gelu"] else "gelu"
    ids = torch.from_numpy(arrays["in.ids"])
    for reads, name in (("last", "out.text_last_normed"), ("penultimate", "out.text_penultimate_normed")):
        config = ClipTextConfig(**given, activation=activation, reads=reads, projection=meta["embed_dim"], pad=0)
        network = ClipText(config).eval()
        weights = {key: value for key, value in golden_weights(meta).items() if key in network.state_dict()}
        load_into(network, weights, "the state dict")
        assert relative_error(network(ids), torch.from_numpy(arrays[name])) <= TOLERANCE, name
    vector = functional.normalize(network.pooled(ids), dim=-1)
    assert (
        relative_error(vector, functional.normalize(torch.from_numpy(arrays["out.text_features"]), dim=-1)) <= TOLERANCE
    )


def test_golden_text_towers_are_there():
    assert len(HF_FILES) >= 3 and len(OPENCLIP_FILES) >= 3


def test_a_tower_on_the_meta_device_has_the_same_keys_and_no_memory():
    with torch.device("meta"):
        network = ClipText(ClipTextConfig(projection=768))
    assert all(value.is_meta for value in network.state_dict().values())
    assert len(network.state_dict()) == 4 + 12 * 12 + 1
    assert not list(network.buffers())


@torch.no_grad()
def test_a_token_is_not_changed_by_those_after_it():
    torch.manual_seed(0)
    network = ClipText(ClipTextConfig(**SMALL)).eval()
    ids = torch.tensor([[48, 3, 7, 9, 49, 0]])
    other = ids.clone()
    other[:, 3:] = 5
    assert torch.allclose(network(ids)[:, :3], network(other)[:, :3], atol=1e-6)
    assert not torch.allclose(network(ids)[:, 3:], network(other)[:, 3:], atol=1e-3)


@torch.no_grad()
def test_pooling_takes_the_first_end_token():
    torch.manual_seed(0)
    network = ClipText(ClipTextConfig(**SMALL)).eval()
    ids = torch.tensor([[48, 3, 49, 49, 49], [48, 3, 7, 9, 49]])
    states = network(ids)
    assert torch.allclose(network.pooled(ids), torch.stack([states[0, 2], states[1, 4]]))


def test_the_block_that_is_not_read_does_not_matter_but_is_kept():
    torch.manual_seed(0)
    network = ClipText(ClipTextConfig(**SMALL, reads="penultimate")).eval()
    ids = torch.tensor([[48, 3, 7, 49]])
    before = network(ids)
    last = [value for name, value in network.named_parameters() if name.startswith("transformer.resblocks.2.")]
    assert len(last) == 12
    with torch.no_grad():
        for value in last:
            value.add_(1)
    assert torch.equal(network(ids), before)
    network(ids).sum().backward()
    assert all(value.grad is None for value in last)


def test_a_tower_says_what_it_cannot_read():
    network = ClipText(ClipTextConfig(**SMALL))
    with pytest.raises(UserError, match="this model has 50 tokens and CLIP's vocabulary 49408"):
        network.tokenize(["a cat"])
    with pytest.raises(UserError, match="this model has 50 tokens and CLIP's vocabulary 49408"):
        network.pieces("a cat")
    with pytest.raises(UserError, match="ids has 17 tokens; this model has 16 positions"):
        network(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(UserError, match="call it without a mask"):
        network(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))


def test_transformers_configurations_become_ours_or_are_refused():
    published = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
    bookkeeping = {
        "architectures": ["CLIPTextModel"],
        "torch_dtype": "float16",
        "eos_token_id": 2,
        "projection_dim": 768,
    }
    assert hf_text_config({**published, **bookkeeping}) == ClipTextConfig()
    assert hf_text_config({**published, **bookkeeping}, projects=True) == ClipTextConfig(projection=768)
    with pytest.raises(UserError, match="intermediate_size is 1000; only 4"):
        hf_text_config({**published, "intermediate_size": 1000})
    with pytest.raises(UserError, match="layer_norm_eps is 1e-06; only 1e-05 is supported"):
        hf_text_config({**published, "layer_norm_eps": 1e-6})
    with pytest.raises(UserError, match="activation is 'relu'"):
        hf_text_config({**published, "hidden_act": "relu"})


def test_a_configuration_rejects_what_does_not_exist():
    with pytest.raises(UserError, match="activation is 'relu'; known are quick_gelu, gelu"):
        ClipTextConfig(activation="relu")
    with pytest.raises(UserError, match="reads is 'first'; known are last, penultimate"):
        ClipTextConfig(reads="first")
    with pytest.raises(UserError, match="layers is 1; too few to read from"):
        ClipTextConfig(layers=1, reads="penultimate")
    with pytest.raises(UserError, match="width 768 does not divide into 7 heads"):
        ClipTextConfig(heads=7)
