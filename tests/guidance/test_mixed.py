"""Mixed denoisers: linear in each prediction, one alone is itself, thresholds in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance.mixed import MixedDenoiser
from steerdiff.samplers import CLEAN, Level, Prediction

LEVEL = Level(40.0, 0.5)
X = torch.ones(1, 1, 2, 2)


class Says:
    """A denoiser that says one number, and counts its calls."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.calls += 1
        return Prediction(x0=x * self.value, eps=x * (self.value + 10))


def test_predictions_are_added_with_the_weights_of_their_stage() -> None:
    mixed = MixedDenoiser(denoisers=(Says(1), Says(2)), stages=((0, (0.3, 0.7)), (50, (0.5, 0.5))))
    assert float(mixed(X, LEVEL).x0.mean()) == pytest.approx(1.7)
    assert float(mixed(X, LEVEL).eps.mean()) == pytest.approx(11.7)
    assert float(mixed(X, Level(50.0, 0.4)).x0.mean()) == pytest.approx(1.5)


def test_one_of_weight_one_is_itself_and_the_others_are_not_called() -> None:
    first, second = Says(1), Says(2)
    mixed = MixedDenoiser(denoisers=(first, second), stages=((0, (0, 1)),))
    assert torch.equal(mixed(X, LEVEL).eps, Says(2)(X, LEVEL).eps)
    assert (first.calls, second.calls) == (0, 1)


def test_thresholds_are_sorted_and_belong_to_the_stage_above_them() -> None:
    stages = ((0, (1.0, 0.0)), (60, (0.0, 1.0)), (30, (0.5, 0.5)))
    mixed = MixedDenoiser(denoisers=(Says(1), Says(2)), stages=stages)
    assert [threshold for threshold, _ in mixed.stages] == [60, 30, 0]
    weights = {t: mixed.weights_at(t) for t in (99, 60, 59.9, 30, 29.9, 0, CLEAN.t)}
    assert weights[99] == weights[60] == (0, 1)
    assert weights[59.9] == weights[30] == (0.5, 0.5)
    assert weights[29.9] == weights[0] == weights[CLEAN.t] == (1, 0)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (((0, (1.0,)),), "the stage from t = 0 has 1 weights for 2 models; give each model one"),
        (((0, (0.5, 0.6)),), "the weights from t = 0 on are .*; they must sum to 1"),
        (((30, (0.5, 0.5)),), "no weights are given for times below 30; add a stage from 0 on"),
        ((), "no weights are given for times below 1"),
    ],
)
def test_stages_that_leave_something_open_are_an_error(
    stages: tuple[tuple[float, tuple[float, ...]], ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MixedDenoiser(denoisers=(Says(1), Says(2)), stages=stages)
