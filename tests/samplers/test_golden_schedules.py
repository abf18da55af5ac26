"""Schedules, respacings, sigma spacings and time travel of the official codes."""

from __future__ import annotations

import re
from pathlib import Path as File

import numpy as np
import pytest

from steerdiff.samplers import (
    Path,
    exponential_sigmas,
    karras_sigmas,
    polyexponential_sigmas,
    posterior_tables,
    respaced_times,
    vp_sigmas,
)

from ..helpers import golden_files, load_golden
from .replay import golden_schedule

EXACT = 1e-10  # float64 schedules, from the golden README


@pytest.mark.parametrize("file", golden_files("diffusion/schedule_*"), ids=lambda file: file.stem)
def test_schedule_tables_equal_the_official_ones(file: File) -> None:
    arrays, meta = load_golden(file)
    schedule = golden_schedule(meta["schedule"], meta["T"])
    tables = posterior_tables(schedule)
    np.testing.assert_allclose(schedule.betas, arrays["betas"], rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bars, arrays["alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(tables.variance, arrays["posterior_variance"], rtol=EXACT)
    np.testing.assert_allclose(tables.log_variance_clipped, arrays["posterior_log_variance_clipped"], rtol=EXACT)
    np.testing.assert_allclose(tables.coef_x0, arrays["posterior_mean_coef1"], rtol=EXACT)
    np.testing.assert_allclose(tables.coef_x, arrays["posterior_mean_coef2"], rtol=EXACT)


@pytest.mark.parametrize("file", golden_files("diffusion/schedule_*"), ids=lambda file: file.stem)
def test_moves_of_the_full_path_carry_the_official_posterior(file: File) -> None:
    arrays, meta = load_golden(file)
    path = Path.respaced(golden_schedule(meta["schedule"], meta["T"]), meta["T"])
    moves = list(reversed(path))
    np.testing.assert_allclose([move.beta for move in moves], arrays["betas"], rtol=EXACT)
    np.testing.assert_allclose([move.posterior_variance for move in moves], arrays["posterior_variance"], rtol=EXACT)
    logs = [move.posterior_log_variance_clipped for move in moves]
    np.testing.assert_allclose(logs, arrays["posterior_log_variance_clipped"], rtol=EXACT)


def respacings() -> list[tuple[File, str]]:
    return [(file, key) for file in golden_files("diffusion/respacing*") for key in load_golden(file)[1]["cases"]]


@pytest.mark.parametrize(("file", "key"), respacings(), ids=lambda value: str(getattr(value, "stem", value)))
def test_respacing_keeps_the_official_times_and_betas(file: File, key: str) -> None:
    arrays, meta = load_golden(file)
    case = meta["cases"][key]
    schedule = golden_schedule(case["schedule"], case["T"])
    times = respaced_times(schedule.T, case["respacing"])
    assert times == arrays[f"timesteps_{key}"].tolist()
    process = schedule.respaced(times)
    np.testing.assert_allclose(process.betas, arrays[f"betas_{key}"], rtol=EXACT)
    np.testing.assert_allclose(process.alpha_bars, arrays[f"alphas_cumprod_{key}"], rtol=EXACT)
    path = Path.respaced(schedule, case["respacing"])
    assert [move.here.t for move in reversed(path)] == times
    np.testing.assert_allclose([move.beta for move in reversed(path)], process.betas, rtol=EXACT)


def time_travels() -> list[tuple[File, str]]:
    return [(file, key) for file in golden_files("repaint/schedules*") for key in load_golden(file)[1]["cases"]]


@pytest.mark.parametrize(("file", "key"), time_travels(), ids=lambda value: str(getattr(value, "stem", value)))
def test_jumps_visit_the_official_times(file: File, key: str) -> None:
    arrays, meta = load_golden(file)
    case = meta["cases"][key]
    numbers = [i for i in (2, 3) if f"jump{i}_length" in case]
    path = Path.respaced(golden_schedule("linear", 1000), case["t_T"])
    travelled = path.with_jumps(
        case["jump_length"],
        case["jump_n_sample"],
        case.get("start_resampling"),
        n_sample=case["n_sample"],
        nested=[(case[f"jump{i}_length"], case[f"jump{i}_n_sample"]) for i in numbers],
    )
    index = {level: len(path) - 1 - i for i, level in enumerate(path.levels)}
    assert [index[level] for level in travelled.levels] == arrays[f"times_{key}"].tolist()
    assert all((move.kind == "denoise") == (index[move.there] < index[move.here]) for move in travelled)


def published_sigmas(name: str, arguments: str) -> np.ndarray:
    """Read "n=7, 0.1..10, rho 5" and call the function that the name begins with."""
    steps = int(re.findall(r"n=(\d+)", arguments)[0])
    if name.startswith("vp"):
        return vp_sigmas(steps)
    low, high = (float(number) for number in re.findall(r"([\d.]*\d)\.\.([\d.]+)", arguments)[0])
    rho = [float(number) for number in re.findall(r"rho ([\d.]+)", arguments)]
    makers = {"karras": karras_sigmas, "exponential": exponential_sigmas, "polyexponential": polyexponential_sigmas}
    return makers[name.split("_")[0]](steps, low, high, *rho)


@pytest.mark.parametrize("file", golden_files("kdiffusion/sigmas*"), ids=lambda file: file.stem)
def test_sigma_spacings_equal_the_published_ones(file: File) -> None:
    arrays, meta = load_golden(file)
    for name, expected in arrays.items():  # theirs are float32, and end with 0
        rtol = 3e-4 if name.startswith("vp") else 2e-6  # exp(..) - 1 in float32: 6e-8 of a sigma**2 of 1.1e-4
        ours = published_sigmas(name, meta["args"][name])
        np.testing.assert_allclose(np.append(ours, 0.0), expected, rtol=rtol)
