from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import NoiseSchedule, Prediction
from steerdiff.samplers.variational import vlb_terms
from steerdiff.train.losses import Batch, DiffusionLoss, Parameterization, snr_weights
from steerdiff.train.randomness import SampleRandom

SCHEDULE = NoiseSchedule.cosine(200)


def batch(n: int = 6, labels: list[str] | None = None) -> Batch:
    images = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return Batch(images, labels, SampleRandom(5, range(n)))


class Guess:
    """A network that always means the same image, whatever it has to say it in."""

    def __init__(self, parameterization: Parameterization, x0: Tensor) -> None:
        self.parameterization, self.x0 = parameterization, x0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        kept = torch.from_numpy(SCHEDULE.alpha_bars.copy())[t.long()].view(-1, 1, 1, 1)
        eps = (x.double() - kept.sqrt() * self.x0) / (1 - kept).sqrt()
        v = kept.sqrt() * eps - (1 - kept).sqrt() * self.x0
        return {"eps": eps, "x0": self.x0.double(), "v": v}[self.parameterization]


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_same_loss_in_every_parameterisation(gamma: float) -> None:
    guess = torch.zeros(6, 3, 4, 4)
    losses = []
    for parameterization in ("eps", "x0", "v"):
        name: Parameterization = parameterization  # type: ignore[assignment]
        network = Guess(name, guess)
        loss = DiffusionLoss(network, SCHEDULE, lambda *_: {}, parameterization=name, min_snr=gamma)
        losses.append(loss(batch())[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)  # eps is a difference of float32 numbers
    torch.testing.assert_close(losses[1], losses[2], rtol=1e-4, atol=0)


def test_min_snr_weights_the_error_of_x0_by_the_clipped_snr() -> None:
    alpha_bars = SCHEDULE.alpha_bars
    snr = alpha_bars / (1 - alpha_bars)
    weights = {name: snr_weights(alpha_bars, name, 5.0).numpy() for name in ("eps", "x0", "v")}  # type: ignore[arg-type]
    np.testing.assert_allclose(weights["x0"], np.minimum(snr, 5))
    np.testing.assert_allclose(weights["eps"] * snr, weights["x0"], rtol=1e-12)
    np.testing.assert_allclose(weights["v"] * (snr + 1), weights["x0"], rtol=1e-12)
    assert (snr_weights(alpha_bars, "v", None) == 1).all()
    zero_terminal = np.append(alpha_bars, 0.0)
    assert np.isfinite(snr_weights(zero_terminal, "eps", 5.0).numpy()).all()


def test_a_perfect_network_has_no_loss() -> None:
    data = batch()
    loss = DiffusionLoss(Guess("v", data.images), SCHEDULE, lambda *_: {}, parameterization="v")
    assert loss(data)[0] < 1e-9


def test_the_network_sees_the_noised_image_and_its_time() -> None:
    data, seen = batch(), {}

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    value, metrics = DiffusionLoss(network, SCHEDULE, lambda *_: {}, parameterization="eps", min_snr=None)(data)
    eps = data.random.normal("noise", (3, 4, 4))
    torch.testing.assert_close(seen["x"], SCHEDULE.q_sample(data.images, seen["t"].long(), eps))
    assert value == pytest.approx(float(eps.square().mean())) and metrics["mse"] == value


@pytest.mark.parametrize("strata", [1, 8])
def test_times_cover_the_range(strata: int) -> None:
    loss = DiffusionLoss(lambda x, t: x, SCHEDULE, lambda *_: {}, strata=strata)
    n = 40_000
    counts = torch.bincount(loss.times(SampleRandom(0, range(n))), minlength=200)
    assert len(counts) == 200
    assert (counts - n / 200).abs().max() < 5 * (n / 200) ** 0.5


def test_stratified_times_put_one_sample_in_each_part() -> None:
    loss = DiffusionLoss(lambda x, t: x, SCHEDULE, lambda *_: {}, strata=8)
    for step in range(5):
        times = loss.times(SampleRandom(0, range(8 * step, 8 * step + 8)))
        assert (times // 25).tolist() == list(range(8))


def test_captions_are_dropped_at_the_given_rate() -> None:
    n = 4000
    data = Batch(torch.zeros(n, 3, 1, 1), ["word"] * n, SampleRandom(0, range(n)))
    loss = DiffusionLoss(lambda x, t: x, SCHEDULE, lambda *_: {}, dropout=0.2)
    labels = loss.labels(data)
    assert isinstance(labels, list) and set(labels) == {"", "word"}
    assert abs(labels.count("") / n - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5
    classes = Batch(data.images, torch.arange(n), data.random)
    assert loss.labels(classes) is classes.labels


def test_class_labels_are_dropped_to_the_null_class_at_the_given_rate() -> None:
    n = 4000
    data = Batch(torch.zeros(n, 3, 1, 1), torch.arange(n) % 3, SampleRandom(0, range(n)))
    loss = DiffusionLoss(lambda x, t: x, SCHEDULE, lambda *_: {}, dropout=0.2, null_class=7)
    labels = loss.labels(data)
    assert isinstance(labels, Tensor) and isinstance(data.labels, Tensor)
    dropped = labels == 7
    assert torch.equal(labels[~dropped], data.labels[~dropped]) and labels.dtype == data.labels.dtype
    assert data.labels.max() == 2  # the batch's own are left alone
    for number in range(3):  # whatever the class
        count = int((data.labels == number).sum())
        share = float(dropped[data.labels == number].double().mean())
        assert abs(share - 0.2) < 5 * (0.2 * 0.8 / count) ** 0.5


def test_which_labels_are_dropped_depends_on_the_samples_and_not_on_the_batch() -> None:
    data = Batch(torch.zeros(40, 3, 1, 1), torch.arange(40), SampleRandom(3, range(40)))
    captions = Batch(data.images, ["word"] * 40, data.random)
    loss = DiffusionLoss(lambda x, t: x, SCHEDULE, lambda *_: {}, dropout=0.5, null_class=99)
    whole, told = loss.labels(data), loss.labels(captions)
    parts = [loss.labels(data.part(rows, torch.device("cpu"))) for rows in (slice(0, 7), slice(7, 40))]
    assert isinstance(whole, Tensor) and torch.equal(whole, torch.cat(parts))  # type: ignore[arg-type]
    assert told == ["" if label == 99 else "word" for label in whole.tolist()]


def hybrid(parameterization: Parameterization, output: Tensor, **options: bool) -> DiffusionLoss:
    return DiffusionLoss(
        lambda x, t: output,
        SCHEDULE,
        lambda *_: {},
        parameterization=parameterization,
        learns_variance=True,
        min_snr=None,
        **options,  # type: ignore[arg-type]
    )


def test_the_variational_term_trains_the_variance_alone() -> None:
    output = torch.randn(6, 6, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    data = batch()
    hybrid("eps", output)(data)[0].backward()
    with_vlb = output.grad
    eps = data.random.normal("noise", (3, 4, 4))
    assert with_vlb is not None
    torch.testing.assert_close(with_vlb[:, :3], 2 * (output[:, :3] - eps).detach() / eps.numel())
    assert with_vlb[:, 3:].abs().sum() > 0


@pytest.mark.parametrize("rescaled", [False, True])
def test_hybrid_loss_is_mse_plus_bits_per_dimension(rescaled: bool) -> None:
    output, data = torch.randn(6, 6, 4, 4, generator=torch.Generator().manual_seed(1)), batch()
    loss = hybrid("eps", output, rescales_vlb=rescaled)
    value, metrics = loss(data)
    t, eps = loss.times(data.random), data.random.normal("noise", (3, 4, 4))
    x = SCHEDULE.q_sample(data.images, t, eps)
    kept = torch.from_numpy(SCHEDULE.alpha_bars.copy())[t].float().view(-1, 1, 1, 1)
    x0 = (x - (1 - kept).sqrt() * output[:, :3]) / kept.sqrt()
    prediction = Prediction(x0=x0, eps=output[:, :3], log_variance_fraction=output[:, 3:])
    bits = vlb_terms(SCHEDULE, prediction, data.images, x, t).mean()
    torch.testing.assert_close(metrics["vlb"], bits, rtol=1e-4, atol=1e-5)
    expected = (output[:, :3] - eps).square().mean() + bits * (0.2 if rescaled else 1)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_the_variational_term_does_not_depend_on_the_parameterisation() -> None:
    data, values = batch(), []
    fraction = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for name in ("eps", "x0", "v"):
        guess = Guess(name, torch.full((6, 3, 4, 4), 0.1))  # type: ignore[arg-type]

        def network(x: Tensor, t: Tensor, guess: Guess = guess) -> Tensor:
            return torch.cat([guess(x, t).float(), fraction], dim=1)

        loss = DiffusionLoss(network, SCHEDULE, lambda *_: {}, parameterization=name, learns_variance=True)  # type: ignore[arg-type]
        values.append(loss(data)[1]["vlb"])
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values[2], values[1], rtol=1e-3, atol=1e-4)


def test_a_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(UserError, match="returns 3 channels.*learns_variance=True"):
        hybrid("eps", torch.zeros(6, 3, 4, 4))(batch())
