"""Templates of the emoji domain: captions that scenes may have, with right articles."""

from __future__ import annotations

from collections import Counter

import pytest

from steerdiff import UserError
from steerdiff.guidance.directional import GENERAL_TEMPLATES, filled
from steerdiff.train.scene_text import COLOURS, OBJECTS, STYLES, parse_caption
from steerdiff.train.templates import DOMAIN_TEMPLATES, kind_of, source_captions, templates_for

WORDS = {"style": STYLES, "object": OBJECTS, "colour": tuple(COLOURS)}


def test_every_template_with_every_word_of_its_kind_is_a_caption() -> None:
    for kind, templates in DOMAIN_TEMPLATES.items():
        for word in WORDS[kind]:
            for template in templates:
                caption = filled(template, word)
                assert parse_caption(caption).caption == caption


def test_templates_vary_all_but_the_word_evenly() -> None:
    for kind, other in (("style", OBJECTS), ("colour", OBJECTS), ("object", STYLES), ("object", tuple(COLOURS))):
        counts = Counter(word for t in DOMAIN_TEMPLATES[kind] for word in t.split() if word in other)
        assert set(counts) == set(other) and len(set(counts.values())) == 1
    assert all(len(set(templates)) == len(templates) for templates in DOMAIN_TEMPLATES.values())
    styles = Counter(t.split()[1] for t in DOMAIN_TEMPLATES["colour"])
    assert set(styles.values()) == {16}


@pytest.mark.parametrize(("word", "kind"), [("3d", "style"), ("panda", "object"), ("red", "colour"), ("dog", None)])
def test_a_word_is_found_by_what_it_names(word: str, kind: str | None) -> None:
    assert kind_of(word) == kind


def test_templates_fit_the_texts_and_what_a_clip_can_read() -> None:
    assert templates_for("flat", "3d") == DOMAIN_TEMPLATES["style"]
    assert templates_for("flat", "red") == ("{}",)
    assert templates_for("a red cat", "a blue cat") == ("{}",)
    assert templates_for("face", "tanned face") == GENERAL_TEMPLATES
    assert templates_for("face", "tanned face", {"a", "photo", "of"}) == ("a photo of a {}",)
    assert templates_for("face", "tanned face", {"face"}) == ("{}",)


def test_captions_of_a_word_have_it_and_all_else_at_random() -> None:
    for word in ("flat", "cat", "blue"):
        captions = source_captions(word, 40, seed=3)
        seen = [parse_caption(caption) for caption in captions]
        assert all(word in caption.split() for caption in captions) and len(set(captions)) > 20
        kinds = [{d.things[0][0] for d in seen}, {d.things[0][1] for d in seen}, {d.colour for d in seen}]
        assert sorted(len(kind) > 1 for kind in kinds) == [False, True, True]
        assert source_captions(word, 5, seed=3) == captions[:5]
    assert source_captions("a person", 2) == ["a person", "a person"]
    with pytest.raises(UserError, match="n is 0; ask for at least one caption"):
        source_captions("cat", 0)
