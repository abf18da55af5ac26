from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff.train.diffusion as diffusion
from steerdiff.errors import UserError
from steerdiff.io import load_image, read_settings
from steerdiff.models import read_header, read_safetensors, save_safetensors
from steerdiff.train.config import TrainConfig
from steerdiff.train.data import Dataset, ImageFolder, Labels
from steerdiff.train.diffusion import build_model, build_trainer, train_diffusion
from steerdiff.train.distributed import World
from steerdiff.train.loop import NonFiniteLossError
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom

from .runs import UNET, WORDS, curve, same, state_of, tiny_config


def train(config: TrainConfig, **options: Any) -> dict[str, Any]:
    result = train_diffusion(config, progress=False, **options)
    assert result.completed and result.step == config.steps
    return state_of(config)


class Hooked:
    """A data set that does something when the samples of a step are asked for."""

    def __init__(self, data: Dataset, config: TrainConfig, hook: Callable[[int, Tensor], None]) -> None:
        self.data, self.batch_size, self.hook = data, config.batch_size, hook

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        images, labels = self.data.batch(indices)
        self.hook(indices[0] // self.batch_size, images)
        return images, labels


def hook_data(monkeypatch: pytest.MonkeyPatch, hook: Callable[[int, Tensor], None]) -> None:
    build = diffusion.build_dataset
    monkeypatch.setattr(diffusion, "build_dataset", lambda config: Hooked(build(config), config, hook))


def test_training_learns(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=24, batch_size=8, log_every=8)
    train(config)
    losses = [float(row[1]) for row in curve(config)[1:]]
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_leaves_the_documented_files(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, sample_every=2, sample_prompts=("red thing", ""), sample_steps=2, tensorboard=True)
    train(config)
    run = Path(config.folder)
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "metrics.csv", "checkpoints", "samples", "weights.safetensors", "tensorboard"}
    assert TrainConfig.from_dict(json.loads((run / "config.json").read_text())).to_dict() == config.to_dict()
    assert read_settings(run / "samples" / "step-00000004.png")["prompts"] == ["red thing", ""]
    assert load_image(run / "samples" / "step-00000002.png").shape == (1, 3, 12, 22)
    assert [row[0] for row in curve(config)] == ["step", "1", "2", "3", "4"]


def test_exported_weights_are_the_average_and_load(tmp_path: Path) -> None:
    import steerdiff

    config = tiny_config(tmp_path)
    state = train(config)
    path = Path(config.folder) / "weights.safetensors"
    assert same(read_safetensors(path), state["ema"]) and not same(state["ema"], state["model"])
    header = read_header(path)
    assert header["kind"] == "text-to-image" and header["step"] == 4 and header["image_size"] == 8
    assert str(tmp_path) not in json.dumps(header)
    model = steerdiff.load(config.folder)
    assert model.schedule.T == 100 and model.parameterization == "v"
    assert model.sample("red thing", steps=2).shape == (1, 3, 8, 8)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    unet = {**UNET, "dropout": 0.3}  # draws from torch's own generator, which must be restored too
    whole = tiny_config(tmp_path, "whole", unet=unet, steps=7, log_every=2, checkpoint_every=3)
    parts = dataclasses.replace(whole, folder=str(tmp_path / "parts"))
    expected = train(whole)
    for steps in (3, 5):
        train(dataclasses.replace(parts, steps=steps), resume=True)
    actual = train(parts, resume=True)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    assert curve(parts) == curve(whole)


def test_accumulated_parts_give_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 4):
        config = tiny_config(tmp_path, f"{parts}", accumulate=parts)
        trainer = build_trainer(config, torch.device("cpu"), World())
        trainer.backward(Batch(*trainer.dataset.batch(range(4)), SampleRandom(0, range(4))))
        gradients.append([p.grad for p in trainer.parameters])
    for whole, summed in zip(*gradients, strict=True):
        assert whole is not None and summed is not None
        assert (whole - summed).abs().max() <= 1e-5 * whole.abs().max() + 1e-8  # the order of the float32 sums


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = tiny_config(tmp_path, steps=6, checkpoint_every=100)
    expected = train(dataclasses.replace(config, folder=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        hook_data(patch, lambda step, images: signal.raise_signal(number) if step == 2 else None)
        before = signal.getsignal(number)
        result = train_diffusion(config, progress=False)
        assert signal.getsignal(number) is before
    assert not result.completed and result.step == 3 and state_of(config)["step"] == 3
    assert same(train(config, resume=True)["model"], expected["model"])


def test_a_second_interrupt_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(step: int, images: Tensor) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    hook_data(monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt):
        train_diffusion(tiny_config(tmp_path), progress=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: int, images: Tensor) -> None:
        images *= float("nan") if step == 3 else 1.0

    config = tiny_config(tmp_path, steps=6, checkpoint_every=2)
    with monkeypatch.context() as patch:
        hook_data(patch, spoil)
        with pytest.raises(NonFiniteLossError, match="loss is nan at step 3; the checkpoints in .* resume with"):
            train_diffusion(config, progress=False)
    state = state_of(config)
    assert state["step"] == 2 and all(weight.isfinite().all() for weight in state["model"].values())
    train(config, resume=True)


def test_a_started_run_is_not_overwritten(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    train(config)
    with pytest.raises(UserError, match="already holds a training run; resume it"):
        train_diffusion(config)
    with pytest.raises(UserError, match="was started with other seed, parameterization"):
        train_diffusion(dataclasses.replace(config, parameterization="eps", seed=1), resume=True)


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    state, rows = train(config), curve(config)
    assert same(train(config, resume=True)["model"], state["model"]) and curve(config) == rows


def test_a_run_starts_from_the_average_of_another(tmp_path: Path) -> None:
    first = tiny_config(tmp_path)
    average = train(first)["ema"]
    second = dataclasses.replace(first, folder=str(tmp_path / "second"), init_from=first.folder, steps=1, seed=9)
    slow = dataclasses.replace(second, learning_rate=1e-30)
    for name, weight in train(slow)["model"].items():
        torch.testing.assert_close(weight, average[name])
    gone = dataclasses.replace(slow, init_from=str(tmp_path / "gone"), steps=2)  # not needed to go on
    train(gone, resume=True)
    other = dataclasses.replace(second, folder=str(tmp_path / "third"), text={"words": WORDS, "width": 32, "length": 5})
    with pytest.raises(UserError, match="does not fit this architecture"):
        train_diffusion(other)


def test_a_frozen_text_encoder_keeps_its_weights(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, freezes_text=True)
    start = build_model(config).state_dict()
    moved = {name for name, weight in train(config)["model"].items() if not torch.equal(weight, start[name])}
    assert moved and all(name.startswith("unet.") for name in moved)
    train(dataclasses.replace(config, steps=5), resume=True)


def test_layers_that_the_other_run_lacks_start_at_zero(tmp_path: Path) -> None:
    first = tiny_config(tmp_path)
    average = train(first)["ema"]
    unet = {**first.unet, "positioned_queries": True}
    second = dataclasses.replace(first, folder=str(tmp_path / "second"), init_from=first.folder, unet=unet, steps=1)
    weights = train(dataclasses.replace(second, learning_rate=1e-30))["model"]
    added = {name: weight for name, weight in weights.items() if name not in average}
    assert added and all("to_q_position" in name for name in added)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, average.get(name, torch.zeros_like(weight)))


CLASSES = {**UNET, "num_classes": 3, "scale_shift_norm": True}  # groups of one channel would forget what is added


def class_config(folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """Return a run that is told the three classes of the images, without text."""
    values = {"text": None, "unet": CLASSES, "optimizer": "adamw", "warmup_steps": 0}
    config = tiny_config(folder, name, **{**values, **changes})
    return dataclasses.replace(config, data_options={**config.data_options, "labels": "class"})


def test_adm_recipe_trains_classes_with_a_learned_variance(tmp_path: Path) -> None:
    config = class_config(
        tmp_path,
        unet={**CLASSES, "channel_mult": (1, 2), "attention_at": (2,)},
        parameterization="eps",
        learns_variance=True,
        min_snr=None,
        schedule={"name": "linear", "T": 1000},
        times="uniform",
        sample_every=4,
        sample_prompts=("0", "2"),
        sample_steps=2,
    )
    train(config)
    assert curve(config)[0] == ("step", "loss", "mse", "vlb", "grad_norm", "learning_rate")
    header = read_header(Path(config.folder) / "weights.safetensors")
    assert header["kind"] == "unet" and header["unet"]["out_channels"] == 6 and header["learns_variance"]
    assert (Path(config.folder) / "samples" / "step-00000004.png").is_file()


WITH_NULL = {**CLASSES, "num_classes": 4}


@pytest.mark.parametrize(("chance", "learned"), [(0.0, {0, 1, 2}), (0.5, {0, 1, 2, 3}), (1.0, {3})])
def test_labels_are_dropped_to_the_class_that_guidance_starts_from(
    tmp_path: Path, chance: float, learned: set[int]
) -> None:
    import steerdiff

    rates = {"learning_rate": 0.05, "ema_decay": 0.0}  # so that six steps make the classes differ
    config = class_config(tmp_path, unet=WITH_NULL, class_dropout=chance, steps=6, **rates)
    start, name = build_model(config).state_dict(), "label_emb.weight"
    rows = (train(config)["model"][name] != start[name]).any(1)
    assert set(rows.nonzero().flatten().tolist()) == learned
    model = steerdiff.load(config.folder)
    if not chance:
        assert (model.num_classes, model.null_class) == (4, None)
        return
    assert (model.num_classes, model.null_class) == (3, 3)

    def by_hand(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        uncond = model.network(x, t, y=torch.full_like(y, 3))
        guided: Tensor = uncond + 3 * (model.network(x, t, y=y) - uncond)
        return guided

    drawing = {"y": [0, 2], "steps": 2, "seed": 4, "clip": "none"}
    expected = dataclasses.replace(model, network=by_hand, null_class=None).sample(guidance=1.0, **drawing)
    guided = model.sample(guidance=3.0, **drawing)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided, model.sample(guidance=1.0, **drawing), atol=1e-3)
    with pytest.raises(UserError, match=r"labels must be in \[0, 3\)"):
        model.sample(y=3)


def test_a_run_that_drops_classes_resumes_exactly(tmp_path: Path) -> None:
    whole = class_config(tmp_path, "whole", unet=WITH_NULL, class_dropout=0.5, steps=7, checkpoint_every=3)
    parts = dataclasses.replace(whole, folder=str(tmp_path / "parts"))
    expected = train(whole)
    train(dataclasses.replace(parts, steps=4), resume=True)
    actual = train(parts, resume=True)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    with pytest.raises(UserError, match="was started with other class_dropout"):
        train_diffusion(dataclasses.replace(parts, class_dropout=0.0), resume=True)


def test_grids_of_classes_are_guided_where_there_is_a_null_class(tmp_path: Path) -> None:
    drawing = {"sample_every": 3, "sample_prompts": ("0", "2"), "sample_steps": 2, "steps": 3, "ema_decay": 0.0}
    pictures = set()
    for scale in (1.0, 9.0):
        config = class_config(
            tmp_path, f"{scale}", unet=WITH_NULL, class_dropout=0.5, sample_guidance=scale, learning_rate=0.1, **drawing
        )
        train(config)
        pictures.add((Path(config.folder) / "samples" / "step-00000003.png").read_bytes())
    assert len(pictures) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_dropout": 0.1}, r"is 3, but the data have 3 classes and class_dropout of 0.1 .* set num_classes to 4"),
        ({"unet": {**CLASSES, "num_classes": 2}}, "is 2, but the data have 3 classes; set it to 3"),
    ],
)
def test_a_table_without_room_for_a_class_is_an_error_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = class_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        train_diffusion(config, progress=False)
    assert not Path(config.folder).exists()


def test_a_null_class_that_is_not_the_last_is_refused(tmp_path: Path) -> None:
    import steerdiff

    config = class_config(tmp_path, unet=WITH_NULL, class_dropout=0.5, steps=1)
    train(config)
    path = Path(config.folder) / "weights.safetensors"
    save_safetensors(path, read_safetensors(path), {**read_header(path), "null_class": 1})
    with pytest.raises(UserError, match="has the null class 1; it must be the network's last, 3"):
        steerdiff.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_options": {"pathh": "x"}}, r"data_options \['pathh'\] do not fit folder"),
        ({"unet": {"width": 3}}, "unet has unknown settings width"),
        ({"text": None}, None),
        ({"sample_every": 1}, "sample_prompts is empty"),
        ({"sample_every": 1, "sample_prompts": ("reed",)}, "nearest: red"),
        ({"schedule": {"name": "cosin"}}, "schedule name is 'cosin'"),
        ({"data_options": {"labels": "none"}}, "the data has no captions"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    config = tiny_config(tmp_path)
    if changes.get("data_options", {}).get("labels"):
        changes = {"data_options": {**config.data_options, **changes["data_options"]}}
    config = dataclasses.replace(config, **changes)
    if message is None:
        train(config)
    else:
        with pytest.raises(UserError, match=message):
            train_diffusion(config, progress=False)


def test_emoji_scenes_bring_their_own_words(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data="emoji-scenes", data_options={"pairs": 0.0}, image_size=32, text={"width": 16})
    unet = {**config.unet, "unshuffle": 4}
    train(dataclasses.replace(config, unet=unet, steps=1, batch_size=2))


def test_the_bar_shows_throughput_and_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_diffusion(tiny_config(tmp_path, log_every=4))
    assert "images/s, waits for data" in capsys.readouterr().err


def test_the_folder_data_set_is_the_one_asked_for(tmp_path: Path) -> None:
    data = diffusion.build_dataset(tiny_config(tmp_path, seed=3))
    assert isinstance(data, ImageFolder) and data.seed == 3 and data.image_size == 8


def test_initial_weights_depend_on_the_seed_only(tmp_path: Path) -> None:
    models = [build_model(tiny_config(tmp_path, seed=seed)).state_dict() for seed in (0, 0, 1)]
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_optimiser_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    train(config)
    path = max((Path(config.folder) / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    group = state["optimizers"][0]["param_groups"][0]
    group["keys"] = group["keys"][::-1]
    torch.save(state, path)
    with pytest.raises(UserError, match="optimiser state belongs to other weights"):
        train_diffusion(config, resume=True)


def test_a_resumed_run_takes_the_rates_of_now(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    before = train(config)["model"]
    frozen = dataclasses.replace(config, steps=6, learning_rate=1e-30, muon_learning_rate=1e-30)
    for name, weight in train(frozen, resume=True)["model"].items():
        torch.testing.assert_close(weight, before[name])


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = dataclasses.replace(tiny_config(tmp_path), folder=str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="cannot be written"):
        train_diffusion(config, progress=False)
