"""Models of latents, with labels that have a null, and with inputs beside the state: what crosses over, and where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff import UserError
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.extra_inputs import ExtraInput
from steerdiff.guidance.settings import Sampling
from steerdiff.models.config import AutoencoderConfig
from steerdiff.samplers import Noise, NoiseSchedule

from .toys import Recording, pictures

SCHEDULE = NoiseSchedule.scaled_linear()


class Averaging(nn.Module):
    """A first stage whose latents are half the means of 4 x 4 pixels; its images are constant on these."""

    config = AutoencoderConfig(channel_mult=(1, 1, 1), embed_dim=3, z_channels=3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def latents(self, image: Tensor, eps: Tensor | None = None, *, tile: int | None = None) -> Tensor:
        mean = functional.avg_pool2d(image, 4) / 2
        return mean if eps is None else mean + 0.1 * eps

    def images(self, latents: Tensor, *, tile: int | None = None) -> Tensor:
        return functional.interpolate(latents * 2, scale_factor=4, mode="nearest")


def shrink(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    return 0.7 * x + 0.1 * torch.sin(x + 0.01 * t.reshape(-1, 1, 1, 1))


def latent_model(**fields: Any) -> Model:
    defaults: dict[str, Any] = {"network": shrink, "sampling": Sampling(clip="none"), "image_size": 16, "name": "toy"}
    return Model(schedule=SCHEDULE, autoencoder=Averaging(), **{**defaults, **fields})  # type: ignore[arg-type]


def test_images_and_masks_cross_into_latents_and_back() -> None:
    model = latent_model()
    image = pictures(2, 16)
    latent = model.encode(image)
    assert latent.shape == (2, 3, 4, 4)
    torch.testing.assert_close(model.decode(latent), functional.interpolate(functional.avg_pool2d(image, 4), None, 4))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 9] = 1  # one pixel frees its cell
    assert model.fit_mask(mask).nonzero().tolist() == [[0, 0, 1, 2]]


def test_a_posterior_is_sampled_with_one_noise_for_each_image() -> None:
    model, image = latent_model(), pictures(2, 16)
    noise = Noise([5, 6], [2, 3, 4, 4])
    sampled = model.encode(image, noise)
    assert not torch.equal(sampled, model.encode(image))
    assert torch.equal(sampled[1:], model.encode(image[1:], Noise(6, [1, 3, 4, 4])))


def test_images_of_a_latent_model_are_clamped_and_have_the_size_of_images() -> None:
    drawn = latent_model().sample(n=2, steps=3, solver="ddim")
    assert drawn.shape == (2, 3, 16, 16)
    assert float(drawn.min()) >= -1 and float(drawn.max()) <= 1


def test_another_size_is_asked_for_by_name_and_checked() -> None:
    wide = latent_model().resized(16, 32)
    assert wide.sample(steps=2, solver="ddim").shape == (1, 3, 16, 32)
    assert wide.encode(pictures(1, 32)[:, :, :16]).shape == (1, 3, 4, 8)
    with pytest.raises(UserError, match=r"the size is 16 x 18; toy needs multiples of 4"):
        latent_model().resized(16, 18)
    with pytest.raises(UserError, match=r"image is \[1, 3, 16, 16\]; expected \[B, 3, 16, 32\]"):
        wide.encode(pictures(1, 16))


def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * y.reshape(-1, 1, 1, 1)


def test_labels_with_a_null_are_guided_in_one_batch() -> None:
    network = Recording(labelled)
    model = latent_model(network=network, num_classes=3, null_class=3, sampling=Sampling(clip="none", guidance=2.0))
    x, level = torch.zeros(2, 3, 4, 4), SCHEDULE.level(500)
    guided = model.denoiser(y=[0, 2], scale=2.0)(x, level)
    assert network.rows == [4]
    torch.testing.assert_close(guided.eps[:, 0, 0, 0], torch.tensor([0.3 + 2 * (0 - 0.3), 0.3 + 2 * (0.2 - 0.3)]))
    assert torch.equal(model.denoiser(y=[0, 2], scale=None)(x, level).eps, guided.eps)  # the published strength
    network.rows.clear()
    model.sample(n=2, y=1, steps=2, solver="ddim")
    model.sample(n=2, y=1, steps=2, solver="ddim", guidance=1.0)
    assert network.rows == [4, 4, 2, 2]


def test_labels_without_a_null_run_one_branch() -> None:
    network = Recording(labelled)
    latent_model(network=network, num_classes=3).sample(n=2, y=1, steps=2, solver="ddim", guidance=5.0)
    assert network.rows == [2, 2]


def seeing(x: Tensor, t: Tensor, concat: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * concat[:, -3:]


@pytest.fixture
def inpainting() -> Model:
    return latent_model(network=seeing, extra=ExtraInput(kind="inpainting"))


def test_an_inpainting_input_is_the_mask_and_the_latent_of_the_image_in_grey(inpainting: Model) -> None:
    image, mask = pictures(2, 16), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    extra = inpainting.inpainting_input(image, mask)
    assert extra.shape == (2, 4, 4, 4)
    assert torch.equal(extra[:, :1], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 1, 4, 4))
    assert torch.equal(extra[:, 1:], inpainting.encode(image * (1 - mask)))
    assert float(extra[:, 1:, :, :2].abs().max()) == 0


def test_extra_inputs_reach_both_branches_and_each_image_its_own(inpainting: Model) -> None:
    image, mask = pictures(2, 16), torch.ones(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 0
    extra = inpainting.inpainting_input(image, mask)
    both = inpainting.sample(extra=extra, steps=3, solver="ddim", seed=[3, 4])
    one = inpainting.sample(extra=extra[1:], steps=3, solver="ddim", seed=4)
    assert both.shape == (2, 3, 16, 16)
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-5)
    assert Condition(concat=extra).repeat(2).rows == 4
    assert Condition(concat=extra).join(Condition(concat=extra)).rows == 4


def test_a_missing_or_superfluous_input_is_named(inpainting: Model) -> None:
    with pytest.raises(UserError, match=r"pass extra=model.inpainting_input\(image, mask\)"):
        inpainting.sample(steps=2)
    with pytest.raises(UserError, match="sees nothing beside the noisy state; leave extra out"):
        latent_model().sample(steps=2, extra=torch.zeros(1, 4, 4, 4))
    with pytest.raises(UserError, match="takes no low_res input; it has the kind 'inpainting'"):
        inpainting.low_res_input(pictures(1, 4))
    with pytest.raises(UserError, match="3 masks were given for 2 images"):
        inpainting.inpainting_input(pictures(2, 16), torch.ones(3, 1, 16, 16))


def test_an_upsampler_sees_small_images_of_its_size_only() -> None:
    model = Model(
        network=seeing, schedule=SCHEDULE, image_size=16, extra=ExtraInput(kind="low_res", low_res_size=4), name="up"
    )
    small = pictures(2, 4)
    large = functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(model.low_res_input(small), large)
    assert model.sample(extra=model.low_res_input(small), steps=2).shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=r"low_res is \[1, 3, 8, 8\]; expected \[B, 3, 4, 4\]"):
        model.low_res_input(pictures(1, 8))


def test_depth_is_scaled_image_by_image() -> None:
    model = latent_model(network=seeing, extra=ExtraInput(kind="depth"))
    depth = torch.stack([torch.linspace(0, 1, 256).reshape(1, 16, 16), torch.linspace(5, 90, 256).reshape(1, 16, 16)])
    extra = model.depth_input(depth)
    assert extra.shape == (2, 1, 4, 4)
    assert extra.amin((1, 2, 3)).tolist() == [-1, -1] and extra.amax((1, 2, 3)).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"depth is \[1, 3, 16, 16\]"):
        model.depth_input(torch.zeros(1, 3, 16, 16))


def test_what_was_published_with_a_model_is_its_default() -> None:
    rows = []
    for sampling in (Sampling(steps=3, solver="ddim", spacing="leading", clip="none"), Sampling(steps=5, clip="none")):
        network = Recording(shrink)
        latent_model(network=network, sampling=sampling).sample()
        rows.append(len(network.rows))
    assert rows == [3, 5]
