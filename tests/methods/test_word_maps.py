"""Word maps: a network that looks at known places shows them, and looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import steerdiff
from steerdiff import UserError
from steerdiff.guidance.loading import load_model
from steerdiff.methods.word_maps import WordMaps, look_for

from .. import published_files as files
from ..guidance.toys import formula_model, pictures, tiny_text_model


def test_maps_of_all_words_and_marks_share_all_attention() -> None:
    found = look_for(tiny_text_model(), "a red cat", steps=3)
    assert found.words == ("a", "red", "cat") and list(found.maps) == [(4, 4)]
    maps = found.maps[4, 4]
    assert maps.shape == (3, 4, 4) and (maps > 0).all() and (maps.sum(0) < 1).all()  # the rest is that of the marks
    both = look_for(tiny_text_model(), "a red cat", ["red cat"], steps=3).maps[4, 4]
    torch.testing.assert_close(both[0], maps[1] + maps[2])


def test_looking_does_not_change_what_is_drawn() -> None:
    model = tiny_text_model()
    found = look_for(model, "a cat", steps=3, guidance=2.0, seed=4)
    assert torch.equal(found.image, model.sample("a cat", steps=3, guidance=2.0, seed=4))


def test_a_given_image_is_shown_as_it_is() -> None:
    image = pictures(1, 8) * 0.9
    found = look_for(tiny_text_model(), "a cat", ["cat"], image=image, steps=4)
    assert torch.equal(found.image, image)
    other = look_for(tiny_text_model(), "a cat", ["cat"], image=-image, steps=4)
    assert not torch.equal(found.maps[4, 4], other.maps[4, 4])


def test_the_brightest_cells_are_those_looked_at_most() -> None:
    maps = torch.tensor([[[0.1, 0.4], [0.0, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
    found = WordMaps(image=torch.ones(1, 3, 4, 4), words=("a", "b"), maps={(2, 2): maps})
    assert found.large()[0, ::2, ::2].tolist() == [[0.25, 1.0], [0.0, 0.5]]
    lit = found.lit(dark=0.2)
    assert lit.shape == (2, 3, 4, 4) and lit[0, 0, 0, 3] == 1
    assert lit[1].max() == lit[1].min() and abs(float(lit[1].max()) + 0.6) < 1e-6  # 0.2 of the light of white
    with pytest.raises(UserError, match=r"grid is \(3, 3\); there are \(2, 2\)"):
        found.large((3, 3))


def test_latent_models_show_each_of_their_grids(tmp_path: Path) -> None:
    described = files.tiny_sd(1)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    found = look_for(load_model(tmp_path / "sd.safetensors", described), "a rhinoceros", ["rhinoceros"], steps=2)
    assert list(found.maps) == [(16, 16), (8, 8)] and found.image.shape == (1, 3, 32, 32)
    assert found.lit().shape == (1, 3, 32, 32)


def test_the_shipped_model_looks_for_objects_where_they_are() -> None:
    """Left and right as the caption says, on seeds fixed before any was seen."""
    model = steerdiff.load("emoji64")
    for seed in (11, 12):
        found = look_for(
            model, "a flat cat left of a 3d apple on a green background", ["cat", "apple"], steps=8, seed=seed
        )
        halves = found.large((16, 16)).unflatten(-1, (2, 32)).sum((1, 3))
        assert halves[0, 0] > 2 * halves[0, 1] and halves[1, 1] > 2 * halves[1, 0]


def test_what_cannot_be_looked_for_is_an_error() -> None:
    model = tiny_text_model()
    with pytest.raises(UserError, match="'dig' is not in the prompt 'a dog' \\(nearest: dog\\)"):
        look_for(model, "a dog", ["dig"])
    with pytest.raises(UserError, match="the prompt is empty"):
        look_for(model, "")
    with pytest.raises(UserError, match="one image is looked at a time"):
        look_for(model, "a dog", image=pictures(2, 8))
    with pytest.raises(UserError, match="plain reads no words"):
        look_for(formula_model(lambda x, t: x, 8, name="plain"), "a dog")
