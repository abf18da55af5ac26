"""Latent diffusion's text transformer and its table of classes, against their formulas."""

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models.bert_text import BertText
from steerdiff.models.class_context import ClassContext
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig

VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s")
SMALL = BertTextConfig(vocab_size=7, length=8, width=24, heads=2, head_channels=8, layers=2)


@pytest.fixture(scope="module")
def encoder() -> BertText:
    torch.manual_seed(0)
    network = BertText(SMALL, VOCAB).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def formula(weights: dict[str, Tensor], ids: Tensor, heads: int, layers: int) -> Tensor:
    """The encoder written as sums and products, token by token."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["token_emb.weight"][ids] + weights["pos_emb.emb.weight"][: ids.shape[1]]
    for layer in range(0, 2 * layers, 2):
        at, ff = f"attn_layers.layers.{layer}", f"attn_layers.layers.{layer + 1}"
        inside = norm(x, f"{at}.0")
        q, k, v = (inside @ weights[f"{at}.1.to_{part}.weight"].T for part in "qkv")
        mixed = []
        for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            mixed.append(((qh @ kh.transpose(1, 2)) / qh.shape[-1] ** 0.5).softmax(-1) @ vh)
        x = x + torch.cat(mixed, -1) @ weights[f"{at}.1.to_out.weight"].T + weights[f"{at}.1.to_out.bias"]
        inside = norm(x, f"{ff}.0") @ weights[f"{ff}.1.net.0.0.weight"].T + weights[f"{ff}.1.net.0.0.bias"]
        inside = inside * (1 + torch.erf(inside / 2**0.5)) / 2
        x = x + inside @ weights[f"{ff}.1.net.2.weight"].T + weights[f"{ff}.1.net.2.bias"]
    return norm(x, "norm")


@torch.no_grad()
def test_the_encoder_is_its_formula(encoder):
    ids, mask = encoder.tokenize(["a cat", "cats"])
    assert mask is None and ids.tolist() == [[2, 4, 5, 3, 0, 0, 0, 0], [2, 5, 6, 3, 0, 0, 0, 0]]
    expected = formula(encoder.state_dict(), ids, SMALL.heads, SMALL.layers)
    result = encoder(ids)
    assert result.shape == (2, 8, 24)
    assert float((result - expected).abs().max() / expected.abs().max()) < 1e-5


@torch.no_grad()
def test_every_token_sees_the_padding(encoder):
    ids, _ = encoder.tokenize(["a cat"])
    other = ids.clone()
    other[:, -1] = 4
    assert not torch.allclose(encoder(ids)[:, 0], encoder(other)[:, 0], atol=1e-4)


def test_the_published_size_has_the_published_names():
    with torch.device("meta"):
        network = BertText(BertTextConfig())
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["token_emb.weight"] == (30522, 1280) and shapes["pos_emb.emb.weight"] == (77, 1280)
    assert shapes["attn_layers.layers.62.1.to_q.weight"] == (512, 1280)
    assert shapes["attn_layers.layers.62.1.to_out.weight"] == (1280, 512)
    assert shapes["attn_layers.layers.63.1.net.0.0.weight"] == (5120, 1280)
    assert shapes["attn_layers.layers.63.1.net.2.bias"] == (1280,) and shapes["norm.bias"] == (1280,)
    assert len(shapes) == 2 + 32 * (2 + 5 + 2 + 4) + 2
    assert "attn_layers.layers.62.1.to_q.bias" not in shapes


def test_an_encoder_without_a_vocabulary_asks_for_one():
    network = BertText(SMALL)
    for call in (network.tokenize, network.pieces):
        with pytest.raises(UserError, match="put the vocab.txt of bert-base-uncased beside the weights, or name the"):
            call(["a cat"])
    with pytest.raises(UserError, match="the vocabulary has 6 pieces; this model has 7"):
        BertText(SMALL, VOCAB[:6])


def test_the_encoder_says_what_does_not_fit(encoder):
    with pytest.raises(UserError, match="has 7 tokens and this model reads at most 6, so 'cat' would be lost"):
        encoder.tokenize(["a a a a a a cat"])
    with pytest.raises(UserError, match="ids has 9 tokens; this model has 8 positions"):
        encoder(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(UserError, match="call it without a mask"):
        encoder(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))
    assert encoder.pieces("A Cats") == ["a", "cat", "s"]


def test_a_label_is_one_state():
    torch.manual_seed(0)
    table = ClassContext(ClassContextConfig(classes=5, width=3))
    assert list(table.state_dict()) == ["embedding.weight"]
    states = table(torch.tensor([4, 0]))
    assert states.shape == (2, 1, 3) and torch.equal(states[:, 0], table.embedding.weight[[4, 0]])


@pytest.mark.parametrize("labels", [[5], [0, -1]])
def test_labels_outside_the_table_are_an_error(labels):
    with pytest.raises(UserError, match="this model has 0 to 4"):
        ClassContext(ClassContextConfig(classes=5, width=3))(torch.tensor(labels))


def test_labels_are_a_row_of_integers():
    table = ClassContext(ClassContextConfig(classes=5, width=3))
    for labels in (torch.tensor([[1]]), torch.tensor([1.0])):
        with pytest.raises(UserError, match=r"expected one integer label an image, \[B\]"):
            table(labels)
