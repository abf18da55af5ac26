"""The evaluation of the embedded model: it counts what its docstrings say, and true scenes score nearly 100 %."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerdiff.errors import UserError
from steerdiff.train.evaluate import (
    PARTS,
    Rate,
    TrueScenes,
    evaluate_embedded,
    prompts,
    score_pairs,
    score_singles,
)
from steerdiff.train.recogniser import Sighting, load_recogniser, reading_order
from steerdiff.train.scenes import is_held_out, parse_caption

ONE = "a flat cat on a blue background"
TWO = "a flat cat left of a 3d apple on a blue background"


def test_true_scenes_score_nearly_everything() -> None:
    report = evaluate_embedded(TrueScenes(), n=256)
    for part, rates in report.rates.items():
        for name, rate in rates.items():
            # both objects of a pair are right if each of two readings of 98 % is
            assert rate.value >= (0.96 if "both" in name or "and" in name else 0.98), (part, name)


def test_true_scenes_survive_noise_and_blur() -> None:
    def distort(images: torch.Tensor) -> torch.Tensor:
        noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.avg_pool2d(noisy, 3, 1, 1, count_include_pad=False).clamp(-1, 1)

    rates = evaluate_embedded(TrueScenes(distort=distort), n=256).rates
    assert rates["seen"]["object"].value >= 0.95
    assert rates["two objects"]["both objects"].value >= 0.85


def test_scenes_of_other_captions_score_nothing() -> None:
    class Liar(TrueScenes):
        def sample(self, prompt: Sequence[str], /, **settings: float) -> torch.Tensor:
            return TrueScenes().sample(["a 3d snail on a gray background"] * len(prompt), seed=0)

    rates = evaluate_embedded(Liar(), n=128).rates
    assert rates["seen"]["object"].value < 0.08
    assert rates["two objects"]["both objects"].right == 0
    assert math.isnan(rates["two objects"]["relation"].value)
    assert rates["seen"]["colour"].value < 0.3


def test_images_and_prompts_do_not_depend_on_the_batch() -> None:
    model = TrueScenes()
    captions = prompts("two objects", 7, seed=3)
    whole = model.sample(captions, seed=5)
    parts = torch.cat([model.sample(captions[:4], seed=5), model.sample(captions[4:], seed=9)])
    assert torch.equal(whole, parts)
    reports = [evaluate_embedded(model, n=20, batch=batch).to_dict() for batch in (3, 20)]
    assert reports[0] == reports[1]


def test_the_model_is_asked_for_the_settings_given() -> None:
    asked = []

    class Spy(TrueScenes):
        def sample(self, prompt: Sequence[str], /, **settings: float) -> torch.Tensor:
            asked.append((len(prompt), settings))
            return TrueScenes().sample(prompt)

    evaluate_embedded(Spy(), n=5, steps=7, guidance=2.5, seed=100, batch=3, parts=["seen"])
    assert asked == [
        (3, {"steps": 7, "guidance": 2.5, "seed": 100}),
        (2, {"steps": 7, "guidance": 2.5, "seed": 103}),
    ]


def test_prompts_are_fixed_and_of_their_part() -> None:
    assert prompts("seen", 5) == prompts("seen", 9)[:5]
    assert prompts("seen", 50) != prompts("seen", 50, seed=1)
    for part in PARTS:
        for text in prompts(part, 200):
            description = parse_caption(text)
            assert len(description.things) == (2 if part == "two objects" else 1)
            for _, name in description.things:
                assert is_held_out(name, description.colour) == (part == "held out")


def test_singles_are_counted_by_their_definition() -> None:
    right = reading_order(parse_caption(ONE))
    two = Sighting(layout="horizontal", things=(("flat", "cat"), ("3d", "apple")), colour="blue")
    styled = Sighting(layout="single", things=(("3d", "cat"),), colour="blue")
    other = Sighting(layout="single", things=(("flat", "pig"),), colour="red")
    rates = score_singles([ONE] * 4, [right, two, styled, other])
    assert rates == {"object": Rate(2, 4), "style": Rate(3, 4), "colour": Rate(3, 4)}


@pytest.mark.parametrize(
    ("things", "layout", "expected"),
    [
        ((("flat", "cat"), ("3d", "apple")), "horizontal", (1, 1, 1, 2, 2)),
        ((("3d", "apple"), ("flat", "cat")), "horizontal", (1, 0, 0, 2, 2)),  # swapped
        ((("flat", "cat"), ("3d", "apple")), "vertical", (1, 0, 0, 2, 2)),  # along the other axis
        ((("3d", "cat"), ("flat", "apple")), "horizontal", (1, 1, 1, 2, 0)),  # styles mixed up
        ((("flat", "cat"), ("flat", "cat")), "horizontal", (0, 0, 0, 1, 1)),  # one object twice
        ((("flat", "pig"), ("3d", "apple")), "horizontal", (0, 0, 0, 1, 1)),
        ((("flat", "cat"),), "single", (0, 0, 0, 1, 1)),
    ],
)
def test_pairs_are_counted_by_their_definition(things: tuple, layout: str, expected: tuple[int, ...]) -> None:
    rates = score_pairs([TWO], [Sighting(layout=layout, things=things, colour="red")])
    both, relation, together, each, styled = expected
    assert rates == {
        "both objects": Rate(both, 1),
        "relation": Rate(relation, both),
        "objects and relation": Rate(together, 1),
        "each object": Rate(each, 2),
        "style": Rate(styled, each),
        "colour": Rate(0, 1),
    }


@given(st.integers(1, 500), st.data())
def test_wilson_intervals_hold_the_share_and_shrink(n: int, data: st.DataObject) -> None:
    rate = Rate(data.draw(st.integers(0, n)), n)
    low, high = rate.interval()
    assert 0 <= low <= rate.value <= high + 1e-12 <= 1 + 1e-9
    wide = Rate(4 * rate.right, 4 * n).interval()
    assert wide[1] - wide[0] < high - low


def test_wilson_interval_of_a_textbook_value() -> None:
    low, high = Rate(8, 10).interval()  # solves (p - 0.8)^2 = 1.96^2 p (1 - p) / 10
    assert all(abs((p - 0.8) ** 2 - 1.96**2 * p * (1 - p) / 10) < 1e-12 for p in (low, high))
    assert Rate(0, 0).interval() == (0.0, 1.0)


def test_reports_are_json_and_markdown() -> None:
    report = evaluate_embedded(TrueScenes(), n=16, parts=["seen", "two objects"], recogniser=load_recogniser())
    values = json.loads(json.dumps(report.to_dict()))
    assert values["samples"] == 16
    assert set(values["rates"]) == {"seen", "two objects"}
    assert {"right", "n", "value", "interval"} == set(values["rates"]["seen"]["object"])
    table = report.markdown().splitlines()
    assert len(table) == 2 + 3 + 6
    assert all(row.count("|") == 6 for row in table)
    assert "n = 16" in str(report.rates["seen"]["object"])


def test_bad_requests_are_named() -> None:
    class Short(TrueScenes):
        def sample(self, prompt: Sequence[str], /, **settings: float) -> torch.Tensor:
            return TrueScenes().sample(prompt)[:-1]

    for action, message in [
        (lambda: prompts("all", 3), "no part of the evaluation"),
        (lambda: prompts("seen", 0), "at least one"),
        (lambda: evaluate_embedded(TrueScenes(), n=4, batch=0), "at least 1"),
        (lambda: evaluate_embedded(Short(), n=4), "sample one for each"),
        (lambda: TrueScenes().sample("a flat cat on a blue background"), "a list of captions"),
    ]:
        with pytest.raises(UserError, match=message):
            action()
