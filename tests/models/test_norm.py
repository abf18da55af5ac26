"""Group norm, FiLM and SiLU: bit for bit what PyTorch's own layers give, or one operator where the kernels run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.models import (
    Autoencoder,
    AutoencoderConfig,
    Control,
    EncoderUNet,
    EncoderUNetConfig,
    UNet,
    UNetConfig,
    kernels,
)
from steerdiff.models.delta_h import DeltaHConfig, build_delta_h
from steerdiff.models.layers import Block, Downsample, ResBlock
from steerdiff.models.norm import GroupNorm, Layers, norm_act

ADM = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_at=(2,),
    head_channels=16,
    scale_shift_norm=True,
    resblock_updown=True,
)
TEXT = dataclasses.replace(ADM, scale_shift_norm=False, resblock_updown=False, context_dim=8)
CLASSIFIER = EncoderUNetConfig(trunk=dataclasses.replace(ADM, out_channels=5), image_size=16)
KL = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_at=(2,))
FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def times(x: Tensor) -> Tensor:
    return torch.tensor([10.0, 700.5], device=x.device)


def filled(network: nn.Module) -> Any:
    """The network with numbers everywhere: nothing is zero, no norm is without effect."""
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def plain(x: Tensor, norm: nn.GroupNorm, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The formula written out, in the arithmetic of guided-diffusion: the norm at least in float32, the rest in x's."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = functional.group_norm(x, 32, norm.weight.to(wide), norm.bias.to(wide), norm.eps)
    return functional.silu(h if film is None else torch.addcmul(film[1], h, 1 + film[0]))


def block_written_out(block: ResBlock, x: Tensor, emb: Tensor) -> Tensor:
    h = plain(x, block.in_layers[0])
    if block.resample is not None:
        h, x = block.resample(h), block.resample(x)
    h = block.in_layers[2](h)
    time = block.emb_layers[1](functional.silu(emb))[:, :, None, None].to(h.dtype)
    film = time.chunk(2, dim=1) if block.film else None
    h = plain(h, block.out_layers[0], film) if block.film else plain(h + time, block.out_layers[0])
    return block.skip_connection(x) + block.out_layers[3](h)


def same(own: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in zip(own, other, strict=True)
    )


def close(own: tuple[Tensor, ...], expected: tuple[Tensor, ...], error: float = 1e-5) -> None:
    """Compare an output and its gradients; some of these are nothing but rounding, as of a bias before a norm."""
    out, *gradients = (tensor.detach() for tensor in expected)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    torch.testing.assert_close(own[0], out, rtol=10 * error, atol=error * float(out.abs().max()))
    for one, other in zip(own[1:], gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=100 * error, atol=error * largest)


def with_gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = normal(*out.shape, seed=9).to(out)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("order", FORMATS, ids=["plain", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("film", [True, False])
def test_on_the_cpu_the_bits_are_those_of_the_formula(
    film: bool, dtype: torch.dtype, order: torch.memory_format
) -> None:
    for parameters in {dtype, torch.float32}:
        norm = filled(GroupNorm(64, 1e-6)).to(parameters)
        x = (3 * normal(2, 64, 4, 6) + 1).to(dtype).contiguous(memory_format=order).requires_grad_()
        parts = normal(2, 128, 1, 1, seed=1).to(dtype).requires_grad_()
        both = parts.chunk(2, dim=1) if film else None
        inputs = [x, norm.weight, norm.bias, *([parts] if film else [])]
        own = with_gradients(norm_act(x, norm, film=both), inputs)
        assert own[0].dtype == dtype
        assert same(own, with_gradients(plain(x, norm, both), inputs))


@pytest.mark.parametrize("order", FORMATS, ids=["plain", "channels last"])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_narrow_norm_is_that_of_float32_rounded_once(narrow: torch.dtype, order: torch.memory_format) -> None:
    norm = filled(GroupNorm(64, 1e-6)).to(narrow)
    x = (3 * normal(2, 64, 12, 10) + 5).to(narrow).contiguous(memory_format=order).requires_grad_()
    inputs, weights = [x, norm.weight, norm.bias], normal(*x.shape, seed=9).to(narrow)
    out = norm(x)
    exact_inputs = [one.detach().double().requires_grad_() for one in inputs]
    exact_out = functional.group_norm(exact_inputs[0], 32, *exact_inputs[1:], norm.eps)
    own = (out, *torch.autograd.grad(out, inputs, weights))
    exact = (exact_out, *torch.autograd.grad(exact_out, exact_inputs, weights.double()))
    for one, other in zip(own, exact, strict=True):
        assert one.dtype == narrow
        rounding = other.abs() * torch.finfo(narrow).eps / 2
        assert torch.all((one - other).abs() <= 1.01 * rounding + 1e-6 * other.abs().max())


@pytest.mark.parametrize("order", FORMATS, ids=["plain", "channels last"])
@pytest.mark.parametrize("dtype", [*DTYPES[:3], "autocast"])
@pytest.mark.parametrize("film", [True, False])
def test_a_block_has_the_bits_of_its_formula(film: bool, dtype: Any, order: torch.memory_format) -> None:
    config = dataclasses.replace(ADM, scale_shift_norm=film)
    for resample in (None, Downsample(32, learned=False)):
        block = filled(ResBlock(config, 32, 64, resample))
        x, emb = normal(2, 32, 4, 6, seed=1).contiguous(memory_format=order), normal(2, 128, seed=2)
        if dtype != "autocast":
            block, x, emb = block.to(dtype), x.to(dtype), emb.to(dtype)
        inputs = [x.requires_grad_(), emb.requires_grad_(), *block.parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            own = with_gradients(block(x, emb), inputs)
            assert same(own, with_gradients(block_written_out(block, x, emb), inputs))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "adm": (lambda: UNet(ADM), lambda unet, x: unet(x, times(x)), (2, 3, 16, 16)),
    "text": (lambda: UNet(TEXT), lambda unet, x: unet(x, times(x), normal(2, 5, 8, seed=3).to(x)), (2, 3, 16, 16)),
    "encode": (lambda: Autoencoder(KL).encoder, lambda encoder, x: encoder(x), (2, 3, 16, 16)),
    "decode": (lambda: Autoencoder(KL).decoder, lambda decoder, x: decoder(x), (2, 4, 8, 8)),
    **{
        pool: (
            lambda pool=pool: EncoderUNet(dataclasses.replace(CLASSIFIER, pool=pool)),
            lambda network, x: network(x, times(x)),
            (2, 3, 16, 16),
        )
        for pool in ("attention", "adaptive", "spatial", "spatial_v2")
    },
    **{
        f"delta_h {form}": (
            lambda form=form: build_delta_h(DeltaHConfig(channels=32, time_channels=16, form=form)),
            lambda network, x: network(x, normal(2, 16, seed=3).to(x), times(x)),
            (2, 32, 4, 4),
        )
        for form in ("ddpm", "adm")
    },
}


def sites(network: nn.Module) -> dict[str, nn.Module]:
    """All group norms that SiLU follows: those that no attention begins with."""
    norms = {name: part for name, part in network.named_modules() if isinstance(part, nn.GroupNorm)}
    return {name: part for name, part in norms.items() if name.rpartition(".")[2] != "norm"}


@pytest.fixture
def on_operators(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As on a device with the kernels; holds the weight of each norm that went to the operator."""
    seen, operator = [], kernels.norm_silu

    def counted(x: Tensor, weight: Tensor, *args: Any, **fields: Any) -> Tensor:
        seen.append(weight)
        return operator(x, weight, *args, **fields)

    monkeypatch.setattr(kernels, "at_hand", lambda _: True)
    monkeypatch.setattr(kernels, "norm_silu", counted)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_every_norm_with_silu_goes_to_the_operator(name: str, on_operators: list[Tensor]) -> None:
    make, call, shape = CASES[name]
    network = filled(make())
    x = normal(*shape, seed=1).requires_grad_()
    used = [x, *(parameter for parameter in network.parameters() if parameter.requires_grad)]
    own = with_gradients(call(network, x), used)
    wanted = sites(network)
    assert sorted(map(id, on_operators)) == sorted(id(norm.weight) for norm in wanted.values())
    assert len(wanted) >= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "at_hand", lambda _: False)
        expected = with_gradients(call(network, x), used)
    assert len(on_operators) == len(wanted)
    close(own, expected)


@torch.no_grad()
def test_the_operator_has_the_groups_and_the_eps_of_its_norm(on_operators: list[Tensor]) -> None:
    x = normal(2, 64, 4, 4)
    for norm in (filled(GroupNorm(64, 0.5)), filled(nn.GroupNorm(8, 64, eps=0.5))):
        torch.testing.assert_close(norm_act(x, norm), functional.silu(norm(x)))
    assert len(on_operators) == 2


@pytest.mark.parametrize("order", FORMATS, ids=["plain", "channels last"])
def test_a_checkpointed_network_on_the_operators_has_the_same_gradients(
    order: torch.memory_format, on_operators: list[Tensor]
) -> None:
    network = filled(UNet(ADM)).to(memory_format=order)
    x = normal(2, 3, 16, 16, seed=1).contiguous(memory_format=order).requires_grad_()
    inputs = [x, *network.parameters()]
    kept = with_gradients(network(x, times(x)), inputs)
    calls = len(on_operators)
    again = with_gradients(network(x, times(x), control=Control(checkpoints=True)), inputs)
    assert same(again, kept)
    assert len(on_operators) == 3 * calls - 1  # all but the norm of `out` run twice


@torch.no_grad()
def test_a_block_compiles_into_one_graph_with_the_operators_or_without(monkeypatch: pytest.MonkeyPatch) -> None:
    block = filled(Block(ResBlock(ADM, 32, 32, Downsample(32, learned=False)), ResBlock(ADM, 32, 64)))
    x, emb = normal(2, 32, 4, 4, seed=1), normal(2, 128, seed=2)

    def run(x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = block(x, emb, None, None, None)
        return out

    expected, graphs = run(x, emb), []

    def kept(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([node.target for node in graph.graph.nodes])
        return graph.forward

    for fused, nodes in ((False, 0), (True, 4)):
        monkeypatch.setattr(kernels, "at_hand", lambda _, fused=fused: fused)
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(run, fullgraph=True, backend=kept)(x, emb), expected)
        assert graphs[-1].count(torch.ops.steerdiff.norm_silu) == nodes


def test_the_setting_is_read_where_a_block_is_compiled() -> None:
    """Without a patch: `at_hand` itself must not break the graph."""
    block = filled(Layers(GroupNorm(32), nn.SiLU(), nn.Conv2d(32, 4, 1)))
    x = normal(2, 32, 4, 4)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), block(x))


@torch.no_grad()
def test_hooks_see_what_their_module_gives(on_operators: list[Tensor]) -> None:
    block = filled(ResBlock(ADM, 32, 32))
    x, emb, seen = normal(2, 32, 4, 4, seed=1), normal(2, 128, seed=2), {}
    expected = block(x, emb)
    assert len(on_operators) == 2
    for name in ("in_layers", "in_layers.0", "in_layers.1", "out_layers.1"):
        part = block.get_submodule(name)
        handle = part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        on_operators.clear()
        torch.testing.assert_close(block(x, emb), expected)
        assert name in seen and len(on_operators) == (2 if name == "in_layers" else 1)
        handle.remove()
    norm = block.in_layers[0]
    assert torch.equal(seen["in_layers.0"], norm(x))
    assert torch.equal(seen["in_layers.1"], functional.silu(norm(x)))
    for kind in ("forward_pre", "full_backward", "full_backward_pre"):
        handle = getattr(norm, f"register_{kind}_hook")(lambda *_: None)
        on_operators.clear()
        torch.testing.assert_close(block(x, emb), expected)
        assert len(on_operators) == 1, kind
        handle.remove()


def test_what_is_no_group_norm_with_silu_runs_as_it_is(on_operators: list[Tensor]) -> None:
    x = normal(2, 32, 3, 3)
    film = (normal(2, 32, 1, 1, seed=1), normal(2, 32, 1, 1, seed=2))
    assert torch.equal(norm_act(x, nn.Identity(), film=film), functional.silu(torch.addcmul(film[1], x, 1 + film[0])))
    norm = filled(GroupNorm(32))
    assert torch.equal(norm_act(x, norm, nn.ReLU()), norm(x).relu())
    layers = Layers(nn.ReLU(), norm, nn.ReLU(), nn.SiLU(), norm)
    assert torch.equal(layers(x), norm(functional.silu(norm(x.relu()).relu())))
    assert on_operators == []


@pytest.mark.gpu
@pytest.mark.parametrize("order", FORMATS, ids=["plain", "channels last"])
@pytest.mark.parametrize("name", CASES)
def test_networks_on_the_kernels_are_those_of_the_reference(name: str, order: torch.memory_format) -> None:
    make, call, shape = CASES[name]
    network = filled(make()).to("cuda", memory_format=order)
    x = normal(*shape, seed=1).to("cuda", memory_format=order).requires_grad_()
    used = [x, *network.parameters()]
    with kernels.use("cuda"):
        own = with_gradients(call(network, x), used)
    with kernels.use("reference"):
        expected = with_gradients(call(network, x), used)
    close(own, expected, error=1e-3)  # convolutions may round to TF32
