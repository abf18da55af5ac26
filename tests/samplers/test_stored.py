"""A stored trajectory: what is held is the stored state of its own level, and what is wrong with one is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.samplers import DDIM, NetworkDenoiser, NoiseSchedule, Path, Recorder, StoredTrajectory, integrate

SCHEDULE = NoiseSchedule.linear(100)
DOWN = Path.spaced(SCHEDULE, 6)[:-1]
KEEP = torch.zeros(1, 1, 4, 4)
KEEP[..., 2:] = 1


def eps(x: Tensor, t: Tensor) -> Tensor:
    return 0.6 * x + 0.3 * torch.sin(2 * x + 0.05 * t.reshape(-1, 1, 1, 1))


def other(x: Tensor, t: Tensor) -> Tensor:
    return 0.2 * x - 0.1


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def encoded(keep: Tensor = KEEP, lag: int = 0) -> StoredTrajectory:
    recorder = Recorder()
    up = Path.from_levels(DOWN.levels[::-1], T=100, kind="invert")
    integrate(NetworkDenoiser(network=eps), DDIM(), up, image(), callback=recorder)
    return StoredTrajectory.recorded(image(), recorder, keep=keep, lag=lag)


def decoded(held: StoredTrajectory) -> list[Tensor]:
    """States at every level of the way down with another network, in the order of travel."""
    recorder = Recorder()
    start = held.states[-1]
    integrate(NetworkDenoiser(network=other), DDIM(), DOWN, start, constraints=[held], callback=recorder)
    return [start, *recorder.images]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_held_part_is_the_stored_state_of_each_level_bit_for_bit(lag: int) -> None:
    held = encoded(lag=lag)
    stored = list(held.states)[::-1]  # in the order of travel down
    kept, free = (KEEP == 1).expand(2, 3, 4, 4), (KEEP == 0).expand(2, 3, 4, 4)
    for number, state in enumerate(decoded(held)):
        assert torch.equal(state[kept], stored[max(0, number - lag)][kept])
        assert number == 0 or not torch.equal(state[free], stored[number][free])


def test_the_last_held_state_is_the_image_and_with_a_lag_is_not() -> None:
    everything = torch.ones(1, 1, 4, 4)
    assert torch.equal(decoded(encoded(everything))[-1], image())
    assert not torch.equal(decoded(encoded(everything, lag=1))[-1], image())


def test_nothing_held_changes_nothing() -> None:
    held = encoded(torch.zeros(1, 1, 4, 4))
    plain = integrate(NetworkDenoiser(network=other), DDIM(), DOWN, held.states[-1])
    assert torch.equal(decoded(held)[-1], plain)


def test_each_image_holds_its_own_part() -> None:
    keep = torch.cat([KEEP, 1 - KEEP])
    last = decoded(encoded(keep))[-1]
    same = last == image()
    assert bool(same[0, ..., 2:].all()) and not bool(same[0, ..., :2].all())
    assert bool(same[1, ..., :2].all()) and not bool(same[1, ..., 2:].all())


def test_a_level_that_was_not_stored_is_an_error() -> None:
    held = encoded()
    elsewhere = Path.spaced(SCHEDULE, 7)[:-1]
    with pytest.raises(UserError, match=r"the state at t = \d+ was not stored; come down through the stored levels"):
        integrate(NetworkDenoiser(network=other), DDIM(), elsewhere, held.states[-1], constraints=[held])


def test_an_incomplete_trajectory_is_an_error() -> None:
    with pytest.raises(UserError, match="there are 2 levels and 1 states; give one for each"):
        StoredTrajectory(DOWN.levels[:2], [image()], keep=KEEP)
    with pytest.raises(UserError, match="lag is 2; it must be 0, or 1"):
        encoded(lag=2)
    with pytest.raises(UserError, match="the recorder has kept nothing"):
        StoredTrajectory.recorded(image(), Recorder(), keep=KEEP)
    sparse = Recorder(every=2)
    integrate(NetworkDenoiser(network=eps), DDIM(), DOWN, image(), callback=sparse)
    with pytest.raises(UserError, match="has not kept every move; make it with every=1"):
        StoredTrajectory.recorded(image(), sparse, keep=KEEP)
