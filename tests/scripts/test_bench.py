"""The bench: what it times computes the same thing, its memory and ratios are right, and its tables are honest."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steerdiff.models import UNet, UNetConfig, kernels
from steerdiff.models.attention import attend
from steerdiff.models.control import Control, Site, Taps
from steerdiff.scripts import benchmarks
from steerdiff.scripts.benchmarks import CASES, PLANNED, SIZES, Contest, Ratio, Setting, timing
from steerdiff.scripts.benchmarks.contest import filled, missing, normal
from steerdiff.scripts.benchmarks.edits import word_swap
from steerdiff.scripts.benchmarks.peers import StoreAllMaps, WrittenOut
from steerdiff.scripts.benchmarks.report import markdown, plot
from steerdiff.scripts.benchmarks.sizes import config, peer
from steerdiff.scripts.benchmarks.timing import measure, observed

from .conftest import Done

Run = Callable[..., Done]
# the package's functions of these names hide its modules
edits = importlib.import_module("steerdiff.scripts.benchmarks.edits")
floors = importlib.import_module("steerdiff.scripts.benchmarks.floors")
loops = importlib.import_module("steerdiff.scripts.benchmarks.loops")
networks = importlib.import_module("steerdiff.scripts.benchmarks.networks")
wholes = importlib.import_module("steerdiff.scripts.benchmarks.wholes")
CPU = torch.device("cpu")
SETTING = Setting(device=CPU, dtype=torch.float32, networks=("small",), batches=(1, 2), sides=(16,))
TINY = UNetConfig(
    in_channels=4, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_at=(1, 2), context_dim=16
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for the clock of the bench: it stands still but for what `busy` adds."""
    found = SimpleNamespace(now=0.0)
    found.perf_counter = lambda: found.now
    monkeypatch.setattr(timing, "time", found)
    return found


def busy(seconds: float) -> Callable[[], None]:
    def call() -> None:
        timing.time.now += seconds

    return call


def result(key: str = "loop, DDIM, batch 1", **facts: Any) -> dict[str, Any]:
    contest = Contest(
        key=key,
        entries={"ours": busy(0.001), "diffusers": busy(0.004)},
        ratios=(Ratio(of="ours", to="diffusers", time=0.5), Ratio(of="diffusers", to="ours", time=1.0)),
        facts=facts,
    )
    place = {"kind": "cpu", "hardware": "a CPU", "threads": 1, "precision": "float32", "versions": {"torch": "2"}}
    return {**measure(contest, rounds=3, seconds=0.001, device=CPU), "environment": place}


# timing


def test_entries_are_timed_and_compared_round_by_round() -> None:
    contest = Contest(
        key="busy",
        entries={"ours": busy(0.002), "other": busy(0.008)},
        ratios=(Ratio(of="other", to="ours", time=3.0), Ratio(of="ours", to="absent")),
        work=2,
        unit="image",
    )
    found = measure(contest, rounds=5, seconds=0.004, device=CPU)
    assert [(one["of"], one["to"]) for one in found["ratios"]] == [("other", "ours")]
    assert [found["ratios"][0][name] for name in ("low", "time", "high")] == pytest.approx([4, 4, 4])
    assert found["ratios"][0]["time_goal"] == 3
    assert found["entries"]["ours"]["seconds"] == pytest.approx(0.002)
    assert found["entries"]["ours"]["rate"] == pytest.approx(1000)


def test_quick_calls_are_repeated_and_slow_ones_are_not() -> None:
    calls = {"quick": 0, "slow": 0}

    def counted(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls[name] += 1
            timing.time.now += seconds

        return call

    contest = Contest(key="busy", entries={"quick": counted("quick", 0.001), "slow": counted("slow", 1.0)})
    measure(contest, rounds=2, seconds=0.01, device=CPU)
    assert calls == {"quick": 3 + 2 * 10, "slow": 3 + 2}


def test_the_peak_is_what_is_held_at_once_and_not_what_is_allocated_in_all() -> None:
    def held() -> list[torch.Tensor]:
        return [torch.ones(2**18) for _ in range(3)]

    def freed() -> None:
        for _ in range(3):
            torch.ones(2**18)

    there = torch.ones(2**20)  # what was there before counts for nothing
    assert 3 * 2**20 <= observed(held, CPU)[0] < 3.1 * 2**20
    assert 2**20 <= observed(freed, CPU)[0] < 1.1 * 2**20
    assert observed(lambda: there.add_(1), CPU)[0] < 2**12


def test_the_operators_that_take_the_time_are_named_with_their_shares() -> None:
    large, small = torch.ones(300, 300), torch.ones(2)
    shares = observed(lambda: (large @ large, large @ large, small.add_(1)), CPU)[1]
    name, most = next(iter(shares.items()))
    assert name == "mm" and most > 0.5 and sum(shares.values()) <= 1 + 1e-9
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    entry = {"operators": {"convolution": 0.614, "addmm": 0.2}, "seconds": 1, "spread": 0, "rate": 1, "peak_bytes": 0}
    page = markdown([{**result(), "entries": {"ours": entry}}], PLANNED)
    assert "| convolution 61%, addmm 20% |" in page


@pytest.mark.parametrize("grad", [False, True])
def test_a_contest_keeps_gradients_only_if_it_says_so(grad: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(torch.is_grad_enabled())
        busy(0.001)()

    contest = Contest(key="grad", entries={"ours": call}, grad=grad)
    measure(contest, rounds=1, seconds=0.0, device=CPU)
    assert set(seen) == {grad}


# what is timed


def test_attention_written_out_is_the_same_attention() -> None:
    q, k, v = (normal((2, 3, length, 8), SETTING) for length in (20, 7, 7))
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    site = Site("here", "cross", "down", 1)
    for seen in (None, mask):
        out = WrittenOut().attend(q, k, v, seen, site)
        assert torch.allclose(out, attend(q, k, v, seen, site, None), atol=1e-6)


def test_the_stored_maps_make_the_same_edit_and_the_same_word_maps_as_ours() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = filled(UNet(TINY), SETTING)
    x, t, context = normal((4, 4, 16, 16), SETTING), torch.full((4,), 300.0), normal((4, 7, 16), SETTING)
    edit = word_swap(7, 1024, SETTING)  # injects self-attention on the grid of 8 x 8, and not on 16 x 16
    words = torch.eye(7)[[2]].expand(2, 1, 7)
    taps, stored = Taps(weights=words, cells=(8, 8)), StoreAllMaps(edit=edit, prompts=2)
    with torch.no_grad():
        plain = net(x, t, context)
        ours = net(x, t, context, control=Control(edit=edit, taps=taps))
        theirs = net(x, t, context, control=stored)
    stored.between_steps()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours[1] - plain[1]).abs().max() > 1e-2  # the edit does something, to its own row alone
    assert torch.allclose(ours[[0, 2, 3]], plain[[0, 2, 3]], atol=1e-5)
    assert len(stored.stored) == len(net.sites) and not stored.step
    maps = stored.local_blend(words, 64)
    assert torch.allclose(maps[0], taps.averaged().flatten(2)[0], atol=1e-6)


def test_every_case_that_is_planned_exists_and_has_the_entries_of_its_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (networks, edits, wholes):
        monkeypatch.setattr(module, "config", lambda name: replace(TINY, context_dim=256))  # quick to build
    for module in (networks, wholes):
        monkeypatch.setattr(module, "missing", lambda library: "left out")
    found = {}
    for name in ("attention", "forward", "backward", "edits", "floors", "loop", "whole"):
        for contest in CASES[name](SETTING):
            found[contest.key] = contest
            named = {*contest.entries, *contest.facts.get("missing", {})}
            assert all({ratio.of, ratio.to} <= named for ratio in contest.ratios)
            assert contest.ratios == PLANNED[contest.key]
    assert set(found) == {key for key in PLANNED if "emoji" in key or "small" in key or "loop" in key}


@pytest.mark.parametrize("group", ["forward", "backward"])
def test_the_entries_of_a_network_compute_the_same(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "config", lambda name: replace(TINY, context_dim=256))
    monkeypatch.setattr(networks, "missing", lambda library: "left out")
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(networks, "_trained", lambda net, out: kept.append(out.detach()) or out.mean().backward())
    contest = next(iter(CASES[group](SETTING)))
    with torch.set_grad_enabled(contest.grad):
        outs = {name: call() for name, call in contest.entries.items()}
    outs = dict(zip(outs, kept, strict=True)) if contest.grad else outs
    assert outs["ours"].abs().max() > 0.1  # the last layer does not start at zero here
    for name, out in outs.items():
        assert torch.allclose(out.float(), outs["ours"], atol=0.1 if "bfloat16" in name else 1e-5), name


def test_an_operator_and_pytorch_s_compute_the_same_and_the_floors_are_as_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(floors, "_CHANNELS", 64)
    monkeypatch.setattr(floors, "_SIDE", 32)
    found = {contest.key: contest for contest in CASES["floors"](replace(SETTING, networks=("sd-1.5",)))}
    assert set(found) == set(floors.FLOORS)
    for key, contest in found.items():
        assert contest.ratios == PLANNED[key] and {ratio.to for ratio in contest.ratios} <= set(contest.entries)
        with torch.set_grad_enabled(contest.grad):
            outs = {name: call() for name, call in contest.entries.items()}
        ours, plain = outs["ours"], outs["PyTorch"]
        if "norm" in key:
            torch.testing.assert_close(ours, plain)
        else:  # row 1 is edited, the others are plain
            torch.testing.assert_close(ours[[0, 2, 3]], plain[[0, 2, 3]], atol=1e-5, rtol=1e-5)
            assert (ours[1] - plain[1]).abs().max() > 1e-2
    image = 4 * 64 * 32**2
    assert found["group norm, scale and shift, SiLU"].entries["a copy of as many bytes"]().numel() == image
    keys = 4 * 64 * 77
    assert found["edited cross-attention"].entries["a copy of as many bytes"]().numel() == image + keys
    product = found["injected self-attention"].entries["a product of as many numbers"]()
    assert 2 * product.shape[0] ** 3 == pytest.approx(2 * 2 * 4 * 256**2 * 64, rel=0.3)  # sides are multiples of 64


def test_a_whole_sample_is_the_same_compiled_and_its_network_sees_both_branches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wholes, "config", lambda name: replace(TINY, context_dim=256, out_channels=4))
    monkeypatch.setattr(wholes, "missing", lambda library: "left out")
    seen: list[int] = []

    def compiled(net: Callable[..., torch.Tensor], mode: str, fullgraph: bool) -> Callable[..., torch.Tensor]:
        assert fullgraph and mode == "default"
        return lambda x, t, **named: seen.append(len(x)) or net(x, t, **named)

    monkeypatch.setattr(torch, "compile", compiled)
    for reason in ("no compiler", None):
        monkeypatch.setattr(wholes, "uncompiled", lambda device, reason=reason: reason)
        contest = next(iter(CASES["whole"](SETTING)))
        assert contest.facts["missing"].get("ours, compiled") == reason
        assert contest.facts["missing"]["diffusers, compiled"] == (reason or "left out")
    with torch.inference_mode():
        plain, again = contest.entries["ours"](), contest.entries["ours, compiled"]()
    assert torch.equal(plain, again) and seen == [2] * wholes.STEPS and torch.isfinite(plain).all()


@pytest.mark.skipif(missing("diffusers") is not None, reason="diffusers is not installed (the bench extra)")
def test_the_whole_samples_of_diffusers_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[int]] = {"ours": [], "theirs": []}

    def ours(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        asked["ours"].append(len(x))
        return x / 2

    def theirs(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        asked["theirs"].append(len(x))
        return (x / 2,)

    x, context = normal((1, 4, 8, 8), SETTING), normal((2, 7, 16), SETTING)
    one, other = wholes._ours(ours, x, context)(), wholes._theirs(theirs, x, context)()
    assert asked == {"ours": [2] * wholes.STEPS, "theirs": [2] * wholes.STEPS}
    assert 0.5 < other.std() / one.std() < 2  # other lists of times: near, not equal


def test_the_gradients_of_both_attentions_are_the_same() -> None:
    contests = [one for one in CASES["attention"](replace(SETTING, networks=("adm-64",))) if one.grad]
    assert [one.key for one in contests] == [f"attention, adm-64 self {n}x{n}, with gradients" for n in (32, 16)]
    ours, theirs = (call() for call in contests[1].entries.values())
    assert len(ours) == 3 and all(part.abs().max() > 0 for part in ours)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-3)


def test_the_loop_and_the_attention_run() -> None:
    for name in ("loop", "attention"):
        contest = next(iter(CASES[name](SETTING)))
        with torch.inference_mode():
            results = [call() for call in contest.entries.values()]
        if name == "attention":
            assert torch.allclose(results[0], results[1], atol=1e-5)


@pytest.mark.skipif(missing("diffusers") is not None, reason="diffusers is not installed (the bench extra)")
@pytest.mark.parametrize("name", ["small", "adm-64", "adm-256", "sd-1.5"])
def test_the_network_of_diffusers_has_as_many_parameters(name: str) -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in net.parameters()) for net in (UNet(config(name)), peer(name))]
    assert counts[0] == counts[1]


@pytest.mark.skipif(missing("diffusers") is not None, reason="diffusers is not installed (the bench extra)")
def test_the_loops_of_diffusers_do_the_same_work() -> None:
    contest = next(iter(CASES["loop"](SETTING)))
    ours, theirs = contest.entries["ours"](), contest.entries["diffusers"]()
    assert ours.shape == theirs.shape and torch.isfinite(theirs).all()
    assert 0.1 < (theirs.std() / ours.std()) < 10  # other lists of times: near, not equal


# tables


def test_the_tables_leave_what_was_not_measured_empty_and_mark_missed_goals() -> None:
    page = markdown(
        [result()],
        {
            "loop, DDIM, batch 1": PLANNED["loop, DDIM, batch 1"],
            "forward, adm-64": (Ratio(of="ours", to="diffusers", time=1.0),),
        },
    )
    measured, empty, gpu = page.split("\n## ")[1:]
    row = next(line for line in measured.splitlines() if line.startswith("| loop, DDIM, batch 1 | ours | diffusers |"))
    assert "| 0.25 [0.25, 0.25] | ≤ 0.5 |" in row
    assert "a CPU, 1 CPU threads" in measured and "forward" not in measured
    assert empty.startswith("CPU: not measured") and "| forward, adm-64 | ours | diffusers |  | ≤ 1 |  |  |" in empty
    assert "| loop, DDIM, batch 1 | ours | k-diffusion |  | ≤ 0.5 |  |  |" in empty
    assert "| loop, DDIM, batch 1 | ours | diffusers |" not in empty
    assert gpu.startswith("GPU: not measured") and "| loop, DDIM, batch 1 | ours | diffusers |  | ≤ 0.5 |  |  |" in gpu
    slow = {**result(), "ratios": [{**result()["ratios"][0], "time": 0.75}]}
    assert "**0.75**" in markdown([slow], PLANNED)


def test_each_machine_has_its_own_tables() -> None:
    planned = {"one": (Ratio(of="ours", to="diffusers"),), "two": (Ratio(of="ours", to="diffusers"),)}
    other = result("two")
    other["environment"] = {**other["environment"], "hardware": "another CPU"}
    page = markdown([result("one"), other], planned)
    first, second = page.split("\n## CPU ")[1:]
    assert "a CPU" in first and "| one |" in first and "| two |" not in first
    assert "another CPU" in second and "| two |" in second and "CPU: not measured" not in page


def test_bfloat16_is_left_out_with_its_reason_where_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "config", lambda name: replace(TINY, context_dim=256))
    monkeypatch.setattr(networks, "missing", lambda library: "left out")
    for reason, timed in ((None, True), ("too slow", False)):
        monkeypatch.setattr(networks, "no_bfloat16", lambda device, reason=reason: reason)
        contest = next(iter(CASES["forward"](SETTING)))
        assert ("ours, bfloat16" in contest.entries) is timed
        assert contest.facts["missing"].get("ours, bfloat16") == reason
        assert contest.facts["missing"]["diffusers, bfloat16"] == (reason or "left out")


def test_a_peer_that_is_missing_is_named_with_its_cure() -> None:
    page = markdown([result(missing={"k-diffusion": "k-diffusion is not installed"})], PLANNED)
    assert "| k-diffusion | | not measured: k-diffusion is not installed | | | | |" in page
    assert "pip install 'steerdiff[bench]'" in (missing("no_such_library") or "")


def test_the_scaling_curves_are_drawn_only_if_there_are_any() -> None:
    assert plot([result()]) is None
    curves = [{**result(f"scaling, batch {at}"), "curve": "batch", "at": at} for at in (1, 2)]
    for curve in curves:
        for entry in curve["entries"].values():
            entry["peak_bytes"] = 2**20
    drawn = plot(curves)
    assert drawn is not None and drawn.startswith(b"\x89PNG")


# the command


def quick(key: str) -> Callable[[Setting], Iterator[Contest]]:
    def make(setting: Setting) -> Iterator[Contest]:
        yield Contest(key=key, entries={"ours": busy(0.001)})

    return make


def test_the_command_writes_results_and_tables_and_keeps_those_of_before(
    steerdiff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmarks.CASES, "loop", quick("one"))
    monkeypatch.setitem(benchmarks.CASES, "edits", quick("two"))
    out, page = tmp_path / "b.json", tmp_path / "b.md"
    shared = ("--rounds", 1, "--seconds", 0, "--device", "cpu", "--out", out)
    done = steerdiff("bench", "--only", "loop", *shared, "--markdown", page)
    assert done.code == 0, done.err
    first = json.loads(out.read_text())["results"]
    assert [one["key"] for one in first] == ["one"]
    assert first[0]["environment"]["versions"]["torch"] and first[0]["environment"]["hardware"]
    assert "| one | ours |" in page.read_text()
    steerdiff("bench", "--only", "edits", *shared, "--keep")
    assert [one["key"] for one in json.loads(out.read_text())["results"]] == ["one", "two"]
    steerdiff("bench", "--only", "edits", *shared)
    assert [one["key"] for one in json.loads(out.read_text())["results"]] == ["two"]


def test_flags_of_the_device_are_heeded_and_there_are_none_of_a_model(steerdiff: Run, tmp_path: Path) -> None:
    shared = ("bench", "--only", "loop", "--device", "cpu", "--out", tmp_path / "b.json")
    with kernels.use("auto"):  # what the command chooses ends with the block
        demanded = steerdiff(*shared, "--kernels", "cuda")
    assert demanded.code == 2 and "kernels is cuda, and the tensors are on cpu" in demanded.err
    none = steerdiff(*shared, "--threads", 0)
    assert none.code == 2 and "threads is 0" in none.err
    assert steerdiff(*shared, "--weights", "emoji64").code == 2
    assert not (tmp_path / "b.json").exists()


def test_wrong_names_are_refused_before_anything_runs(steerdiff: Run, tmp_path: Path) -> None:
    wrong = steerdiff("bench", "--only", "lop", "--out", tmp_path / "b.json")
    assert wrong.code == 2 and "did you mean loop" in wrong.err
    wrong = steerdiff("bench", "--networks", "adm-65", "--out", tmp_path / "b.json")
    assert wrong.code == 2 and "adm-64" in wrong.err
    assert not (tmp_path / "b.json").exists() and set(SIZES) == {"small", "adm-64", "adm-256", "sd-1.5"}
