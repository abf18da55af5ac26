"""ILVR, RePaint and SDEdit against the numbers of their official codes (tests/golden/README.md)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.methods import ILVR, LowPass, RePaint, SDEdit, ilvr, repaint, sdedit
from steerdiff.samplers import DDPM, Move, NoiseSchedule, Recorder, Step, integrate, renoise
from steerdiff.samplers import Path as MovePath
from steerdiff.samplers.constraints import KnownRegion

from ..helpers import eps_fn, golden_files, golden_unit, learned_fn, load_golden
from .helpers import GivenNoise, Watched, close

LINEAR = NoiseSchedule.linear(1000)
STEP, RUN = 2e-5, 1e-4  # tolerances of the golden README


def name(path: Path) -> str:
    return path.stem


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def formula_image(key: str, height: int, width: int) -> Tensor:
    """The images that the files of the resizer do not hold."""
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    waves = np.stack([np.sin(6 * x + 2 * y), np.cos(5 * y - x), np.sin(9 * x * y)])[None]
    return torch.from_numpy((0.6 * waves + 0.3 * golden_unit("input/" + key, (1, 3, height, width))).astype(np.float32))


RESIZERS = [path for path in golden_files("ilvr/*") if "kernel" in load_golden(path)[1]]


@pytest.mark.parametrize("path", RESIZERS, ids=name)
def test_ilvr_s_resizer_is_reproduced(path: Path) -> None:
    arrays, meta = load_golden(path)
    key = f"ilvr/{path.stem}"
    x, y = (
        tensor(arrays[f"in.{part}"]) if f"in.{part}" in arrays else formula_image(f"{key}/{part}", *meta["sizes"])
        for part in ("x", "ref")
    )
    stride = meta["stride"]
    for factor in meta["down_N"]:
        phi = LowPass.of(factor, x, meta["kernel"])
        close(phi.down(x), arrays[f"out.down_{factor}"], STEP)
        close(phi(x)[..., ::stride, ::stride], arrays[f"out.up_{factor}"], STEP)
        close((x - phi(x) + phi(y))[..., ::stride, ::stride], arrays[f"out.swap_{factor}"], STEP)


@pytest.mark.parametrize("path", golden_files("ilvr/loop_*"), ids=name)
def test_ilvr_s_run_is_reproduced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, meta = load_golden(path)
    noise = GivenNoise([arrays["in.xT"], *arrays["in.z"][:-1]], arrays["in.z_ref"])
    recorder = Recorder()
    monkeypatch.setattr(ilvr, "Noise", lambda *args, **kwargs: noise)
    monkeypatch.setattr(ilvr, "integrate", partial(integrate, callback=recorder))
    method = ILVR(
        downsample=meta["down_N"], range_t=meta["range_t"], steps=meta["respacing"], reference_level="official"
    )
    model = Model(network=learned_fn, schedule=LINEAR, learns_variance=True, image_size=arrays["in.ref"].shape[-1])
    result = method(model, tensor(arrays["in.ref"]))
    close(torch.stack(recorder.images), arrays["out.all"], RUN)
    close(result, arrays["out.all"][-1], RUN)
    assert noise.used_up()


def respaced(meta: dict[str, Any]) -> MovePath:
    return MovePath.respaced(LINEAR, meta["respacing"])


@pytest.mark.parametrize("path", golden_files("repaint/step_*"), ids=name)
def test_repaint_s_masked_step_and_undo_are_reproduced(path: Path) -> None:
    arrays, meta = load_golden(path)
    x, gt, keep = (tensor(arrays[f"in.{part}"]) for part in ("x", "gt", "mask"))
    model = Model(network=learned_fn, schedule=LINEAR, learns_variance=True, image_size=x.shape[-1])
    denoise, down = model.denoiser(), respaced(meta)
    known = KnownRegion(gt, keep=keep, before_network=True)
    for row, t in enumerate(meta["t"]):
        move = down[len(down) - 1 - t]
        arriving = Move(here=move.here, there=move.here, following="denoise")
        merged = known(Step(x), arriving, GivenNoise([], [arrays["in.z_gt"]]))
        for start, key in ((merged, "masked_step"), (x, "first_step")):
            step = DDPM().step(denoise, start, move, None, GivenNoise([arrays["in.z"]]))
            close(step.x, arrays[f"out.{key}"][row], STEP)
            if key == "masked_step":
                close(step.prediction.x0, arrays["out.pred_xstart"][row], STEP)


@pytest.mark.parametrize("path", golden_files("repaint/step_*"), ids=name)
def test_repaint_s_undo_is_reproduced(path: Path) -> None:
    arrays, meta = load_golden(path)
    down = respaced(meta)
    levels = down.levels[::-1]  # levels[1 + t] is respaced time t
    rows = [t for t in meta["t"] if t + 1 < len(down)]
    for row, t in enumerate(rows):
        up = Move(here=levels[1 + t], there=levels[2 + t], kind="renoise")
        close(renoise(tensor(arrays["in.x"]), up, GivenNoise([arrays["in.z_undo"]])), arrays["out.undo"][row], STEP)


@pytest.mark.parametrize("path", golden_files("repaint/loop_*"), ids=name)
def test_repaint_s_run_is_reproduced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, meta = load_golden(path)
    watched = Watched()
    method = RePaint(
        steps=meta["respacing"],
        jump_length=meta["jump_length"],
        jump_n_sample=meta["jump_n_sample"],
        merge="official",
        solver=watched,
    )
    gt, keep = tensor(arrays["in.gt"]), tensor(arrays["in.mask"])
    model = Model(network=learned_fn, schedule=LINEAR, learns_variance=True, image_size=gt.shape[-1])
    drawn, reference, z = [arrays["in.xT"]], [], iter(arrays["in.z"])
    for move in method.path(model):  # a reverse step draws its own noise, then the known region's; an undo draws one
        drawn.append(next(z))
        if move.kind == "denoise" and move.index:
            reference.append(next(z))
    assert next(z, None) is None
    noise = GivenNoise(drawn[:-1], reference)  # the last step's noise is drawn but not used in the official code
    monkeypatch.setattr(repaint, "Noise", lambda *args, **kwargs: noise)
    result = method(model, gt, 1 - keep[:, :1])
    close(torch.stack(watched.made), arrays["out.reverse"], RUN)
    close(result, arrays["out.reverse"][-1], RUN)
    assert noise.used_up()


@pytest.mark.parametrize("path", golden_files("ddpm/sdedit_step*"), ids=name)
def test_sdedit_s_step_is_reproduced(path: Path) -> None:
    arrays, meta = load_golden(path)
    variance = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}[meta["var_type"]]
    model = Model(network=eps_fn, schedule=LINEAR, image_size=arrays["in.x"].shape[-1])
    for row, t in enumerate(arrays["in.t"].tolist()):
        move = Move(here=LINEAR.level(t), there=LINEAR.level(t - 1))
        noise = GivenNoise([arrays["in.noise"]])
        step = DDPM(variance=variance).step(model.denoiser(clip="none"), tensor(arrays["in.x"]), move, None, noise)
        close(step.x, arrays["out"][row], STEP)


@pytest.mark.parametrize("path", golden_files("ddpm/sdedit_loop*"), ids=name)
def test_sdedit_s_masked_loop_is_reproduced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, meta = load_golden(path)
    levels, repeats = meta["total_noise_levels"], meta["sample_step"]

    def by_channel(array: np.ndarray) -> Tensor:  # the mask differs by channel and the formula acts on single pixels
        return tensor(array).reshape(-1, 1, *array.shape[-2:])

    draws = []
    for repeat in range(repeats):
        steps = arrays["in.z"][repeat * levels : (repeat + 1) * levels - 1]  # none is used at t = 0
        draws += [by_channel(array) for array in (arrays["in.e"][repeat], *steps)]
    noise = GivenNoise(draws)
    monkeypatch.setattr(sdedit, "Noise", lambda *args, **kwargs: noise)
    image, keep = by_channel(arrays["in.x0"]), by_channel(arrays["in.mask"])
    model = Model(network=eps_fn, schedule=LINEAR, image_size=image.shape[-1], channels=1)
    result = SDEdit(t0=levels / LINEAR.T, repeats=repeats, official=True)(model, image, 1 - keep)
    close(result, by_channel(arrays["out.x"]), RUN)
    close(torch.where(keep == 1, image, result), by_channel(arrays["out.x0"]), RUN)
    assert noise.used_up()


def test_golden_files_of_every_method_are_there() -> None:
    counts = {pattern: len(golden_files(pattern)) for pattern in ("ilvr/*", "repaint/*", "ddpm/sdedit_*")}
    assert len(RESIZERS) >= 3 and counts["ilvr/*"] >= 4 and counts["repaint/*"] >= 4 and counts["ddpm/sdedit_*"] >= 3
