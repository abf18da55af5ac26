"""Tuning on given images: the loss is the network's own, parts and numbers do not matter, weights and streams do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from steerdiff.guidance import Condition, Model
from steerdiff.methods.finetuned import copy_of, descend
from steerdiff.methods.image_tuning import DenoisingLoss, TunedImages, rows_of
from steerdiff.samplers import NoiseSchedule
from steerdiff.train.finetune import FinetuneConfig
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom

from ..guidance.toys import formula_model, pictures, tiny_text_model

SCHEDULE = NoiseSchedule.linear(100)


def batch(images: Tensor, indices: list[int], seed: int = 0) -> Batch:
    states, places = TunedImages(states=images).batch(indices)
    return Batch(states, places, SampleRandom(seed, indices))


def trainable(model: Model) -> tuple[Model, nn.Module]:
    copied = copy_of(model, shares=False)
    network = cast(nn.Module, copied.network)
    return copied, network.requires_grad_(True)


def exact(parameterization: str, image: Tensor) -> Model:
    """A formula that knows the image, and so predicts its noise exactly."""

    def network(x: Tensor, t: Tensor, **_: Any) -> Tensor:
        ab = torch.tensor([SCHEDULE.alpha_bar(float(one)) for one in t]).reshape(-1, 1, 1, 1)
        eps = (x - ab.sqrt() * image) / (1 - ab).sqrt()
        outputs = {"eps": eps, "x0": image.expand_as(x), "v": ab.sqrt() * eps - (1 - ab).sqrt() * image}
        return {**outputs, "score": -eps / (1 - ab).sqrt()}[parameterization].float()

    return formula_model(network, 8, SCHEDULE, parameterization=parameterization)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v", "score"])
def test_who_knows_the_image_has_no_loss_whatever_it_predicts(parameterization: str) -> None:
    image = pictures(1, 8).double()
    numbers = list(range(16))
    known = DenoisingLoss(exact(parameterization, image), Condition()).each(
        image.float().expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.long), SampleRandom(0, numbers)
    )
    assert float(known.max()) < 1e-6
    other = DenoisingLoss(exact(parameterization, 0.5 * image), Condition())(batch(image.float(), numbers))[0]
    assert float(other) > 0.01


def test_the_loss_is_one_of_the_noise_that_was_drawn() -> None:
    model = formula_model(lambda x, t: torch.zeros_like(x), 8, SCHEDULE)
    loss, metrics = DenoisingLoss(model, Condition())(batch(pictures(2, 8), list(range(64))))
    assert abs(float(loss) - 1) < 5 * math.sqrt(2 / (64 * 192))  # of a chi-square with so many degrees of freedom
    assert torch.equal(loss, metrics["mse"])


def test_times_are_spread_over_all_trained_ones_and_scaled_for_the_network() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    model = formula_model(network, 8, SCHEDULE, time_scale=10.0)
    DenoisingLoss(model, Condition())(batch(pictures(1, 8), list(range(1000))))
    (times,) = seen
    assert float(times.min()) == 0 and float(times.max()) == 990
    assert abs(float(times.mean()) - 495) < 5 * 1000 / math.sqrt(12 * 1000)


def test_only_the_channels_of_the_state_count_where_a_variance_is_learned() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, 50.0)], dim=1)

    plain = formula_model(lambda x, t: torch.zeros_like(x), 8, SCHEDULE)
    learned = formula_model(network, 8, SCHEDULE, learns_variance=True)
    losses = [DenoisingLoss(model, Condition())(batch(pictures(1, 8), [3, 4]))[0] for model in (plain, learned)]
    assert torch.equal(*losses)


def test_images_come_round_and_round_with_the_condition_of_their_place() -> None:
    model = tiny_text_model()
    states, places = TunedImages(states=pictures(3, 8)).batch([2, 3, 7])
    assert cast(Tensor, places).tolist() == [2, 0, 1] and torch.equal(states[1], pictures(3, 8)[0])
    conditions = model.condition(["a cat", "a dog", "a red cat"])
    chosen = rows_of(conditions, cast(Tensor, places))
    expected = model.condition(["a red cat", "a cat", "a dog"])
    assert torch.equal(cast(Tensor, chosen.context), cast(Tensor, expected.context))
    assert rows_of(conditions[:1], torch.tensor([0, 0])).rows == 2
    numbers = [2, 3, 7]
    fixed = DenoisingLoss(model, conditions)(batch(pictures(3, 8), numbers))[0]
    asked = DenoisingLoss(model, lambda places: rows_of(conditions, places))(batch(pictures(3, 8), numbers))[0]
    swapped = DenoisingLoss(model, model.condition(["a dog", "a cat", "a cat"]))(batch(pictures(3, 8), numbers))[0]
    assert torch.equal(fixed, asked) and not torch.equal(fixed, swapped)


def test_weights_are_of_the_image_and_streams_change_the_noise_alone() -> None:
    model, images = tiny_text_model(), pictures(2, 8)
    told = model.condition("a cat")
    each = DenoisingLoss(model, told).each(images, torch.tensor([0, 1]), SampleRandom(0, [0, 1]))
    weighted = DenoisingLoss(model, told, weights=torch.tensor([3.0, 0.0]))(batch(images, [0, 1]))[0]
    torch.testing.assert_close(weighted, 1.5 * each[0])
    plain = DenoisingLoss(model, told)(batch(images, [0, 1]))[0]
    named = [DenoisingLoss(model, told, stream=name)(batch(images, [0, 1]))[0] for name in ("prior", "prior", "own")]
    assert torch.equal(named[0], named[1])
    assert len({float(loss) for loss in (plain, *named)}) == 3


def test_gradients_reach_a_condition_that_is_tuned_and_checkpointing_keeps_them() -> None:
    model = tiny_text_model()
    context = cast(Tensor, model.condition("a cat").context)
    mask = model.condition("a cat").context_mask
    gradients = []
    for checkpointing in (False, True):
        embedding = context.clone().requires_grad_()
        loss = DenoisingLoss(model, Condition(context=embedding, context_mask=mask), checkpointing=checkpointing)
        loss(batch(pictures(1, 8), [0, 1, 2]))[0].backward()
        gradients.append(cast(Tensor, embedding.grad))
    assert float(gradients[0].abs().max()) > 0 and torch.equal(*gradients)


def weights_after(folder: Path, *, steps: int = 3, **fields: Any) -> dict[str, Tensor]:
    model, network = trainable(tiny_text_model())
    loss = DenoisingLoss(model, model.condition("a cat"))
    config = FinetuneConfig(folder=str(folder), steps=steps, learning_rate=1e-2, optimizer="sgd", **fields)
    descend(config, network, loss, TunedImages(states=pictures(1, 8)), progress=False)
    return network.state_dict()


def test_four_draws_of_one_image_are_four_accumulated_draws_of_it(tmp_path: Path) -> None:
    together = weights_after(tmp_path / "a", batch_size=4)
    apart = weights_after(tmp_path / "b", batch_size=4, accumulate=4)
    before = cast(nn.Module, tiny_text_model().network).state_dict()
    assert any(not torch.equal(together[name], before[name]) for name in before)
    for name, value in together.items():  # float32 sums in another order
        torch.testing.assert_close(apart[name], value, rtol=1e-4, atol=1e-6)


def test_small_steps_move_weights_that_were_stored_in_half_precision() -> None:
    model = tiny_text_model().to(dtype=torch.bfloat16)
    tuned, _ = trainable(model)
    assert tuned.dtype == torch.float32 and model.dtype == torch.bfloat16
    told = model.condition("a cat")
    assert cast(Tensor, told.context).dtype == torch.bfloat16
    assert DenoisingLoss(tuned, told)(batch(pictures(1, 8), [0]))[0].dtype == torch.float32
