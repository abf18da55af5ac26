"""What a method is given of a case: as its signature asks, and an error where it needs what the task has not."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steerdiff.errors import UserError
from steerdiff.guidance import Model
from steerdiff.methods.finetuned import copy_of
from steerdiff.samplers import NoiseSchedule
from steerdiff.scripts.evaluation import cells
from steerdiff.scripts.evaluation.cells import Cell, call, compute, counted
from steerdiff.scripts.evaluation.contestants import Unchanged
from steerdiff.train.benchmark import draw_cases


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


@pytest.fixture
def model() -> Model:
    schedule = NoiseSchedule.cosine(1000)
    return Model(network=Network(), schedule=schedule, parameterization="v", image_size=64)


@dataclass(frozen=True)
class Noted:
    """Keeps what it was called with."""

    seen: dict[str, Any] = field(default_factory=dict)

    def note(self, **given: Any) -> Tensor:
        self.seen.update({name: value for name, value in given.items() if value is not None})
        return torch.zeros(len(given["seed"]), 3, 64, 64)


class Edits(Noted):
    def __call__(self, model: Any, image: Tensor, mask: Any = None, *, prompt: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, mask=mask, prompt=prompt, **rest)


class Fills(Noted):
    def __call__(self, model: Any, image: Tensor, mask: Tensor, *, prompt: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, mask=mask, prompt=prompt, **rest)


class Inverts(Noted):
    def __call__(self, model: Any, image: Tensor, *, prompt: Any = None, target: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, prompt=prompt, target=target, **rest)


class Draws(Noted):
    def __call__(self, model: Any, image: Any = None, *, prompt: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, prompt=prompt, **rest)


class Classified(Noted):
    def __call__(self, model: Any, image: Any = None, *, y: Any, prompt: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, y=y, prompt=prompt, **rest)


class Tuned(Noted):
    prompt_is: ClassVar[str] = "source"

    def __call__(self, model: Any, image: Tensor, *, prompt: Any = None, **rest: Any) -> Tensor:
        return self.note(image=image, prompt=prompt, **rest)


class TunedByText(Noted):
    prompt_is: ClassVar[str] = "source"

    def __call__(self, model: Any, image: Any = None, *, prompt: Any, **rest: Any) -> Tensor:
        return self.note(image=image, prompt=prompt, **rest)


class Wordless(Noted):
    def __call__(self, model: Any, image: Tensor, **rest: Any) -> Tensor:
        return self.note(image=image, **rest)


PICTURE = {"image", "seed"}


@pytest.mark.parametrize(
    ("kind", "task", "given"),
    [
        (Edits, "object", {*PICTURE, "mask", "prompt"}),
        (Edits, "style", {*PICTURE, "prompt"}),
        (Fills, "hole", {*PICTURE, "mask", "prompt"}),
        (Inverts, "style", {*PICTURE, "prompt", "target"}),
        (Draws, "style", {*PICTURE, "prompt"}),
        (Draws, "draw", {"seed", "prompt"}),
        (Draws, "class", {"seed", "prompt"}),
        (Classified, "class", {"seed", "y"}),
        (Classified, "cat to panda", {*PICTURE, "y"}),
        (Tuned, "flat to 3d", {*PICTURE, "prompt"}),
        (Wordless, "flat to 3d", PICTURE),
    ],
)
def test_a_method_is_given_what_its_signature_takes_and_the_task_has(
    kind: Callable[[], Any], task: str, given: set[str], model: Model
) -> None:
    cases, method = draw_cases(task, 2), kind()
    assert call(method, model, cases, [7, 8]).shape == (2, 3, 64, 64)
    assert set(method.seen) == given and method.seen["seed"] == [7, 8]
    if "image" in given:
        assert torch.equal(method.seen["image"], torch.stack([case.image for case in cases]))
    texts = {
        "prompt": "source_text" if kind in (Inverts, Tuned) else "target_text",
        "target": "target_text",
    }
    for name, text in texts.items():
        if name in given:
            assert method.seen[name] == [getattr(case, text) for case in cases]
    if "y" in given:
        assert method.seen["y"] == [case.target_text.split()[2] for case in cases]


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        (Edits, "draw", "Edits needs an image, which the task 'draw' has not"),
        (Fills, "style", "Fills needs a mask, which the task 'style' has not"),
        (Classified, "move", r"Classified draws one class, and the answer of case 0 of 'move' shows \w+, \w+; give it"),
        (Classified, "subject", "the answer of case 0 of 'subject' shows none that is known"),
        (TunedByText, "class", "TunedByText needs a text of what the image shows, and the task 'class' has no image"),
    ],
)
def test_what_a_task_has_not_is_an_error_that_names_it(
    kind: Callable[[], Any], task: str, message: str, model: Model
) -> None:
    with pytest.raises(UserError, match=message):
        call(kind(), model, draw_cases(task, 2), [0, 1])


def test_rows_of_the_network_and_of_copies_with_its_hooks_count_and_other_networks_do_not(model: Model) -> None:
    x, t = torch.zeros(3, 3, 64, 64), torch.zeros(3)
    network: Any = model.network
    with counted(model) as count:
        network(x, t), copy.deepcopy(network)(x[:1], t[:1])
        Network()(x, t), copy_of(model, shares=True).network(x, t)
        assert count() == 4
    network(x, t)
    assert count() == 4


def test_a_backward_pass_counts_nothing_nor_what_it_computes_again(model: Model) -> None:
    x, t = torch.zeros(3, 3, 64, 64, requires_grad=True), torch.zeros(3)
    network: Any = model.network
    with counted(model) as count:
        checkpoint(network, x, t, use_reentrant=False).square().sum().backward()
        assert count() == 3
    assert x.grad is not None


@dataclass(frozen=True, kw_only=True)
class TunedFirst(Unchanged):
    """As the methods that tune: `deltas` calls the network and takes its time, at the first call."""

    calls: list[str] = field(default_factory=list, compare=False)

    def deltas(self, model: Any, progress: str | None = None) -> None:
        model.network(torch.zeros(5, 3, 64, 64), torch.zeros(5))
        time.sleep(0.3)
        self.calls.append("deltas")


def test_what_is_tuned_first_counts_neither_as_evaluations_nor_as_time(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RUNNERS", {**cells.RUNNERS, "unchanged": TunedFirst})
    settings = TunedFirst()
    result = compute(Cell(method="unchanged", settings=settings, task="style", cases=1, seeds=(0,)), model)
    assert settings.calls == ["deltas"] and result.evaluations == 0 and result.seconds < 0.2
