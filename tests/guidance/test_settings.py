"""Every spacing has a name on the command line and a path; what a model publishes is what it does."""

from __future__ import annotations

from typing import get_args

import pytest

from steerdiff import UserError
from steerdiff.guidance.scales import ScaleSchedule
from steerdiff.guidance.settings import OtherLibraries, Sampling, Spacing, solver_of, spaced_path
from steerdiff.samplers import CONVENTIONS, DDIM, ClipPolicy, NoiseSchedule
from steerdiff.scripts import sample

SCHEDULE = NoiseSchedule.scaled_linear()


def names(kind: object) -> set[str]:
    parts = get_args(kind)
    return {name for part in parts for name in ({part} if isinstance(part, str) else names(part))}


def test_the_command_line_and_the_library_know_the_same_names() -> None:
    assert names(Spacing) == set(get_args(sample.Spacing))
    assert names(ScaleSchedule) == names(sample.Schedule) and names(ClipPolicy) == names(sample.Clip)
    assert set(get_args(OtherLibraries)) == set(CONVENTIONS) - {"diffusers-ddim-inverse"}  # which goes up


@pytest.mark.parametrize("spacing", sorted(names(Spacing)))
def test_every_spacing_gives_a_path_down_to_the_image(spacing: Spacing) -> None:
    path = spaced_path(SCHEDULE, 10, spacing)
    assert len(path) == 10 and path.end.alpha_bar >= SCHEDULE.alpha_bar(0)


def test_other_libraries_are_reproduced_by_name() -> None:
    assert spaced_path(SCHEDULE, 50, "compvis") == CONVENTIONS["compvis"](SCHEDULE, 50)
    assert [move.here.t for move in spaced_path(SCHEDULE, 4, "compvis")] == [751, 501, 251, 1]
    with pytest.raises(UserError, match="spacing 'compvis' needs an integer"):
        spaced_path(SCHEDULE, "ddim25", "compvis")


def test_what_is_not_given_is_the_models_own() -> None:
    own = Sampling(steps=7, guidance=2.0)
    assert own.or_given(steps=None, guidance=4.0) == {"steps": 7, "guidance": 4.0}
    assert solver_of("ddim") == DDIM() and solver_of(DDIM(eta=0.5)) == DDIM(eta=0.5)
    with pytest.raises(UserError, match="solver is 'dimm'; known are"):
        solver_of("dimm")
