"""The fine-tuning loop: its rates, its state, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerdiff import UserError
from steerdiff.train.data import Labels
from steerdiff.train.finetune import FinetuneConfig, finetune, recomputed
from steerdiff.train.losses import Batch


class Numbers:
    """Sample number i is the image i / 10."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        return torch.stack([torch.full((1, 2, 2), i / 10) for i in indices]), None


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 1))


def loss_of(net: nn.Module) -> Any:
    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (net(batch.images) - batch.random.normal("noise", (1, 2, 2))).square().mean(), {}

    return loss


def config(folder: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"folder": str(folder), "steps": 8, "learning_rate": 0.05, "log_every": 1, **changes})


class Carrying:
    """A loss whose target grows with every step, as a trajectory that is carried does."""

    def __init__(self, net: nn.Module, dies_at: int | None = None) -> None:
        self.net, self.dies_at, self.x = net, dies_at, torch.zeros(1)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.random.indices[0] == self.dies_at:
            raise RuntimeError("killed")
        out = self.net(batch.images)
        self.x = self.x + out.detach().mean().reshape(1)
        return (out - self.x).square().mean(), {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.x = state["x"]


def test_a_loss_with_a_state_goes_on_exactly_after_a_crash(tmp_path: Path) -> None:
    whole, killed = network(), network()
    finetune(config(tmp_path / "a"), whole, Carrying(whole), Numbers(), progress=False)
    options = {"checkpoint_every": 3}
    with pytest.raises(RuntimeError, match="killed"):
        finetune(config(tmp_path / "b", **options), killed, Carrying(killed, 5), Numbers(), progress=False)
    again = network()
    result = finetune(config(tmp_path / "b", **options), again, Carrying(again), Numbers(), resume=True, progress=False)
    assert result.completed and result.step == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_module_comes_back_in_eval_mode_and_the_callers_random_state_is_untouched(tmp_path: Path) -> None:
    net = network()
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    finetune(config(tmp_path), net, loss_of(net), Numbers(), progress=False)
    assert torch.equal(torch.randn(3), expected)
    assert not net.training and all(p.grad is None for p in net.parameters())


def test_only_what_requires_gradients_is_tuned(tmp_path: Path) -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    finetune(config(tmp_path), net, loss_of(net), Numbers(), progress=False)
    before = network()
    assert torch.equal(net[0].weight, before[0].weight)  # type: ignore[index]
    assert not torch.equal(net[3].weight, before[3].weight)  # type: ignore[index]
    net.requires_grad_(False)
    with pytest.raises(UserError, match="nothing of the module requires gradients to be tuned"):
        finetune(config(tmp_path / "none"), net, loss_of(net), Numbers(), progress=False)


def test_plain_gradient_descent_moves_by_rate_times_gradient(tmp_path: Path) -> None:
    net = nn.Conv2d(1, 1, 1)
    nn.init.constant_(net.weight, 1.0), nn.init.constant_(net.bias, 0.0)

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return 3 * net.weight.sum(), {}

    options = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 3, "rate_gamma": 0.5, "rate_every": 1}
    finetune(config(tmp_path, **options), net, loss, Numbers(), progress=False)
    assert float(net.weight) == pytest.approx(1 - 0.3 * (1 + 0.5 + 0.25))


def test_averaged_weights_are_the_result_where_they_are_asked_for(tmp_path: Path) -> None:
    plain, averaged = network(), network()
    finetune(config(tmp_path / "a"), plain, loss_of(plain), Numbers(), progress=False)
    finetune(config(tmp_path / "b", ema_decay=0.9), averaged, loss_of(averaged), Numbers(), progress=False)
    start = network()
    distances = [float((net[3].weight - start[3].weight).abs().mean()) for net in (plain, averaged)]  # type: ignore[index]
    assert 0 < distances[1] < distances[0]


def test_recomputing_activations_gives_the_same_gradient() -> None:
    net, x = network().eval(), torch.randn(2, 1, 2, 2)
    grads = []
    for enabled in (False, True):
        net.zero_grad()
        recomputed(net, enabled=enabled)(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert recomputed(net, enabled=False) is net
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_bf16_is_autocast_and_weights_stay_float32(tmp_path: Path) -> None:
    net, seen = network(), set[torch.dtype]()

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        out = net(batch.images)
        seen.add(out.dtype)
        return out.float().square().mean(), {}

    finetune(config(tmp_path, precision="bf16"), net, loss, Numbers(), progress=False)
    assert seen == {torch.bfloat16} and next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_gamma": 0.0}, "rate_gamma is 0.0; it must be positive, 1 for a constant rate"),
        ({"rate_every": -1}, "rate_every is -1; it must be at least 0"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, **changes)
