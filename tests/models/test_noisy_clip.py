"""CLIP's image tower told the time: both kinds of tower, both ways of telling."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from steerdiff.errors import UserError
from steerdiff.models.clip import Clip, build_clip, normalised, prepare
from steerdiff.models.clip_towers import conditioned_widths, tower_features
from steerdiff.models.noisy_clip import NoisyCLIP, NoisyClipConfig, build_noisy_clip, from_clip
from steerdiff.models.published.spec import ClipConfig

TEXT = {"context_length": 8, "vocab_size": 9, "width": 16, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TOWERS = {
    "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 32},
    "vit": VIT,
    "averaging vit": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "vit without a first norm": {**VIT, "no_ln_pre": True},
}
CASES = [
    (name, time) for name, time in itertools.product(TOWERS, ("affine", "token")) if (name, time) != ("resnet", "token")
]
TIMES = torch.tensor([3.0, 940.0])


def config_of(name: str) -> ClipConfig:
    return ClipConfig(embed_dim=12, vision_cfg=TOWERS[name], text_cfg=TEXT)


def network(name: str) -> nn.Module:
    """A CLIP whose every tensor matters."""
    torch.manual_seed(0)
    clip = build_clip(config_of(name))
    with torch.no_grad():
        for tensor in clip.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return clip


def images(name: str, n: int = 2) -> Tensor:
    torch.manual_seed(1)
    size = TOWERS[name]["image_size"]
    return torch.rand(n, 3, size, size) * 2 - 1


def shaken(noisy: NoisyCLIP) -> NoisyCLIP:
    """The same with a time that matters, as after training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in noisy.time.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return noisy


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("name", TOWERS)
def test_features_of_a_tower_are_those_of_open_clip(name: str) -> None:
    clip, x = network(name), images(name)
    seen = prepare(x, TOWERS[name]["image_size"])
    expected = clip.visual.forward_intermediates(seen)
    maps, vector = tower_features(clip.visual, seen)
    assert close(vector, clip.encode_image(seen)) and close(vector, expected["image_features"])
    assert len(maps) == len(expected["image_intermediates"]) == (5 if name == "resnet" else 2)
    assert all(close(a, b) for a, b in zip(maps, expected["image_intermediates"], strict=True))
    bundle = Clip(network=clip, config=config_of(name))
    assert close(bundle.image_features(x), functional.normalize(bundle.feature_maps(x).vector, dim=-1))


@pytest.mark.parametrize("options", [{}, {"token": "add"}], ids=["replace", "add"])
@pytest.mark.parametrize(("name", "time"), CASES)
def test_before_training_a_noisy_clip_is_the_clean_one_at_any_time(name: str, time: str, options: dict) -> None:
    clip, x = network(name), images(name)
    noisy = from_clip(clip, NoisyClipConfig(time=time, **options))
    expected = tower_features(clip.visual, normalised(x))
    for t in (torch.zeros(2), torch.tensor([999, 17]), torch.tensor([0.5, 998.5])):
        maps, vector = noisy(x, t)
        assert close(vector, expected.vector) and all(close(a, b) for a, b in zip(maps, expected.maps, strict=True))


@pytest.mark.parametrize(("name", "time"), CASES)
def test_after_training_the_time_matters_and_each_image_has_its_own(name: str, time: str) -> None:
    noisy, x = shaken(from_clip(network(name), NoisyClipConfig(time=time))), images(name)
    both = noisy(x, TIMES)
    assert not torch.allclose(both.vector, noisy(x, TIMES.flip(0)).vector, atol=1e-3)
    for i in range(2):
        alone = noisy(x[i : i + 1], TIMES[i : i + 1])
        assert close(alone.vector, both.vector[i : i + 1])
        assert all(close(a, b[i : i + 1]) for a, b in zip(alone.maps, both.maps, strict=True))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_published_initial_values_are_not_the_clean_clip(name: str) -> None:
    clip, x = network(name), images(name)
    times = ("affine",) if name == "resnet" else ("affine", "token")
    for time in times:
        noisy = from_clip(clip, NoisyClipConfig(time=time, init="published"))
        assert not torch.allclose(noisy(x, TIMES).vector, clip.encode_image(normalised(x)), atol=1e-3)


def test_every_norm_of_the_main_path_is_changed_after_it_and_no_shortcut() -> None:
    clip = network("resnet")
    widths = conditioned_widths(clip.visual)
    assert widths == [4, 4, 8, *(8, 8, 32), *(16, 16, 64) * 2, *(32, 32, 128), *(64, 64, 256)]
    counted = {name: m for name, m in clip.visual.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(widths) == sum("downsample" not in name for name in counted)
    pairs = [(torch.full((2, width), 0.3), torch.full((2, width), 0.1)) for width in widths]
    seen = normalised(images("resnet"))
    changed = tower_features(clip.visual, seen, pairs)

    def affine(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        return out * 1.3 + 0.1

    for name, module in counted.items():
        if "downsample" not in name:
            module.register_forward_hook(affine)
    assert close(changed.vector, clip.visual(seen))


def test_the_published_tower_has_as_many_scales_as_its_code() -> None:
    with torch.device("meta"):
        layers = {"image_size": 256, "layers": [6, 8, 18, 8], "width": 96, "patch_size": None}
        noisy = build_noisy_clip(ClipConfig(embed_dim=768, vision_cfg=layers, text_cfg=TEXT))
    assert sum(noisy.time.widths) == 91_200 and noisy.time.out.weight.numel() == 512 * 2 * 91_200


@pytest.mark.parametrize(("name", "time"), CASES)
def test_checkpoints_and_copies_give_the_same_gradients(name: str, time: str) -> None:
    noisy, x = shaken(from_clip(network(name), NoisyClipConfig(time=time))).train(), images(name)

    def gradients(run: Callable[[Tensor], Tensor], model: NoisyCLIP) -> list[Tensor]:
        model.zero_grad()
        seen = x.clone().requires_grad_()
        run(seen).square().sum().backward()
        return [seen.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    copied = copy.deepcopy(noisy)
    plain = gradients(lambda seen: noisy(seen, TIMES).vector, noisy)
    saved = gradients(lambda seen: checkpoint(lambda s: noisy(s, TIMES).vector, seen, use_reentrant=False), noisy)
    other = gradients(lambda seen: copied(seen, TIMES).vector, copied)
    assert len(plain) == len(saved) == len(other) > 10
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, saved, other, strict=True))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_it_runs_under_distributed_data_parallel(tmp_path: Path) -> None:
    noisy, x = shaken(from_clip(network("resnet"))).train(), images("resnet")
    noisy(x, TIMES).vector.square().sum().backward()
    expected = [p.grad.clone() for p in noisy.parameters() if p.grad is not None]
    noisy.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(noisy)
        features = wrapped(x, TIMES)
        features.vector.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(features.maps) == 5
    assert all(close(a, p.grad) for a, p in zip(expected, noisy.parameters(), strict=True))


@pytest.mark.parametrize(("name", "time"), CASES)
def test_a_state_dict_goes_round_and_keeps_the_towers_names(name: str, time: str) -> None:
    clip = network(name)
    noisy = shaken(from_clip(clip, NoisyClipConfig(time=time)))
    again = build_noisy_clip(config_of(name), NoisyClipConfig(time=time))
    again.load_state_dict(noisy.state_dict())
    assert close(again(images(name), TIMES).vector, noisy(images(name), TIMES).vector)
    own = {key for key in clip.state_dict() if key.startswith("visual.")}
    assert own == {key for key in noisy.state_dict() if not key.startswith("time.")}


@pytest.mark.parametrize(("name", "size"), [("resnet", 96), ("vit", 48)])
def test_positions_are_resized_or_drawn_anew_for_another_size(name: str, size: int) -> None:
    clip = network(name)
    resized = from_clip(clip, size=size)
    holder = resized.visual.attnpool if name == "resnet" else resized.visual
    old = (clip.visual.attnpool if name == "resnet" else clip.visual).positional_embedding
    assert resized.size == size and torch.equal(holder.positional_embedding[0], old[0])
    assert close(holder.positional_embedding[1:].mean(0), old[1:].mean(0)) or name == "vit"
    assert resized(torch.zeros(1, 3, size, size), torch.zeros(1)).vector.shape == (1, 12)
    fresh = from_clip(clip, NoisyClipConfig(positions="fresh"))
    table = (fresh.visual.attnpool if name == "resnet" else fresh.visual).positional_embedding
    assert table.shape == old.shape and not torch.allclose(table, old)
    with pytest.raises(UserError, match="size is 50; this image tower needs a multiple of"):
        from_clip(clip, size=50)


def test_frozen_norms_keep_the_clean_statistics_and_others_follow() -> None:
    clip, x = network("resnet"), images("resnet", 4)
    for norm, moves in (("frozen", False), ("train", True)):
        noisy = from_clip(clip, NoisyClipConfig(norm=norm)).train()
        noisy(x, torch.zeros(4))
        assert torch.equal(noisy.visual.bn1.running_mean, clip.visual.bn1.running_mean) != moves
        assert noisy.training and noisy.visual.bn1.training == moves
    assert not clip.training and not any(parameter.requires_grad for parameter in clip.parameters())


def test_a_token_between_two_times_lies_between_theirs() -> None:
    noisy = shaken(from_clip(network("vit"), NoisyClipConfig(time="token", T=10)))
    token = noisy.time(torch.tensor([3.0, 3.25, 4.0, 11.0]), noisy.visual.class_embedding)
    assert close(token[1], 0.75 * token[0] + 0.25 * token[2]) and torch.equal(token[3], noisy.time.table[9])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="time is 'token', but a ResNet has no class token; choose 'affine'"):
        from_clip(network("resnet"), NoisyClipConfig(time="token"))
    with pytest.raises(UserError, match=r"x is \[1, 3, 32, 32\]; this noisy CLIP sees \[B, 3, 64, 64\]"):
        from_clip(network("resnet"))(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    with pytest.raises(UserError, match="norm is 'thawed'; choose frozen or train"):
        NoisyClipConfig(norm="thawed")  # type: ignore[arg-type]
    pooled = ClipConfig(
        embed_dim=12, vision_cfg={**VIT, "attentional_pool": True, "attn_pooler_heads": 1}, text_cfg=TEXT
    )
    with pytest.raises(UserError, match="only CLIP's ResNets and plain vision transformers do"):
        from_clip(build_clip(pooled))
