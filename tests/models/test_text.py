"""The word encoder: tokens, masks and its errors."""

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import TextConfig, TextToImage, UNetConfig, WordEncoder

WORDS = ("a", "cat", "apple", "on", "blue", "background", "sks")


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(TextConfig(words=WORDS, width=32, length=8)).eval()


def test_tokens_have_marks_and_a_mask(encoder):
    ids, mask = encoder.tokenize(["a cat", "", "A Cat, on"])
    assert ids.tolist() == [[1, 3, 4, 2, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0], [1, 3, 4, 6, 2, 0, 0, 0]]
    assert torch.equal(mask, ids != 0)


@torch.no_grad()
def test_padding_does_not_change_the_words_before_it(encoder):
    ids, mask = encoder.tokenize(["a cat"])
    other = ids.clone()
    other[:, 4:] = 5
    assert torch.allclose(encoder(ids, mask)[:, :4], encoder(other, mask)[:, :4], atol=1e-6)


def test_unknown_words_are_named_with_the_nearest_known_ones(encoder):
    with pytest.raises(UserError, match=r"'aple' \(nearest: apple, blue\), 'xyzzy'; `steerdiff info` lists"):
        encoder.tokenize(["a cat", "a aple xyzzy"])


def test_too_long_prompts_are_an_error(encoder):
    encoder.tokenize(["a cat a cat a cat"])
    with pytest.raises(UserError, match="has 7 words; this model reads at most 6"):
        encoder.tokenize(["a cat a cat a cat a"])


def test_a_string_is_not_a_list_of_prompts(encoder):
    with pytest.raises(UserError, match="give a list of strings"):
        encoder.tokenize("a cat")


def test_a_vocabulary_names_each_word_once():
    with pytest.raises(UserError, match="names a word twice"):
        TextConfig(words=("a", "a"))


@torch.no_grad()
def test_the_bundle_reads_the_prompt():
    torch.manual_seed(0)
    unet = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_at=(1,), context_dim=32)
    model = TextToImage(unet, TextConfig(words=WORDS, width=32, length=8)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.zeros(2, 3, 8, 8), torch.tensor([5.0, 5.0])
    out = model(x, t, *model.text.tokenize(["a cat", "a blue apple"]))
    assert out.shape == x.shape and not torch.allclose(out[0], out[1])
