"""Published weights become models that sample and edit as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load_classifier, load_model
from steerdiff.guidance.noisy_classifier import NoisyClassifier
from steerdiff.methods import ILVR, DDIMInversion, RePaint, SDEdit
from steerdiff.samplers import DDIM, Noise

from .. import published_files as files
from .toys import half_mask, pictures

SIZE = 32
#: How a tiny model of each kind is written, and what must be said of it.
KINDS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "adm": (files.tiny_adm, files.write_adm),
    "ddpm": (files.tiny_ddpm, files.write_ddpm),
    "sd1": (lambda: files.tiny_sd(1), files.write_single_file),
    "sd2": (lambda: files.tiny_sd(2, predicts_v=True), files.write_single_file),
    "ldm-vq": (lambda: files.tiny_ldm("vq"), files.write_single_file),
    "ldm-class": (lambda: files.tiny_ldm("vq", "class"), files.write_single_file),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("weights")
    loaded = {}
    for name, (described, write) in KINDS.items():
        write(folder / f"{name}.ckpt", described())
        loaded[name] = load_model(folder / f"{name}.ckpt", described())
    return loaded


def label_of(model: Model) -> dict[str, Any]:
    return {} if model.num_classes is None else {"y": 2}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_samples_images_of_its_size(models: dict[str, Model], name: str) -> None:
    model = models[name]
    prompt = "a cat" if model.text is not None else None
    drawn = model.sample(prompt, n=2, steps=2, solver="ddim", spacing="leading", **label_of(model))
    assert drawn.shape == (2, 3, SIZE, SIZE) and bool(drawn.isfinite().all())
    assert not torch.equal(drawn[0], drawn[1])
    assert not model.network.training  # type: ignore[union-attr]


def edits() -> dict[str, Callable[[Model, Tensor], Tensor]]:
    return {
        "sdedit": lambda model, image: SDEdit(steps=4, repeats=1)(model, image, half_mask(SIZE)),
        "ilvr": lambda model, image: ILVR(steps=4, downsample=4, range_t=1)(model, image),
        "repaint": lambda model, image: RePaint(steps=4, jump_length=1, jump_n_sample=2)(model, image, half_mask(SIZE)),
        "invert": lambda model, image: DDIMInversion(steps=4)(model, image),
    }


#: Each kind has one of these beside SDEdit, and each method a kind of pixels and one of latents.
ALSO = {"adm": ("ilvr",), "ddpm": ("repaint", "invert"), "sd1": ("ilvr",), "sd2": ("invert",), "ldm-vq": ("repaint",)}


@pytest.mark.parametrize(("name", "edit"), [(name, edit) for name in ALSO for edit in ("sdedit", *ALSO[name])])
def test_every_method_runs_on_pixels_and_latents_and_every_kind_is_edited(
    models: dict[str, Model], name: str, edit: str
) -> None:
    image = pictures(2, SIZE) * 0.8
    edited = edits()[edit](models[name], image)
    assert edited.shape == image.shape and bool(edited.isfinite().all())
    one = edits()[edit](models[name], image[:1])
    largest = max(1.0, float(edited.abs().max()))  # an untrained network's inversion is not bounded
    torch.testing.assert_close(edited[:1], one, rtol=0, atol=2e-3 * largest)  # sums of another batch


@pytest.mark.parametrize("name", ["sd1", "ldm-vq"])
def test_what_is_kept_is_exact_in_the_latent(models: dict[str, Model], name: str) -> None:
    model = models[name]
    kept: list[Tensor] = []

    class Watching:
        """The model, which remembers the latent it decodes."""

        def __getattr__(self, attribute: str) -> Any:
            return getattr(model, attribute)

        def decode(self, x: Tensor) -> Tensor:
            kept.append(x)
            return model.decode(x)

    image = pictures(1, SIZE) * 0.8
    RePaint(steps=3, jump_length=1, jump_n_sample=2)(Watching(), image, half_mask(SIZE))  # type: ignore[arg-type]
    latent = model.encode(image)
    right = latent.shape[-1] // 2
    assert torch.equal(kept[0][..., right:], latent[..., right:])
    assert not torch.equal(kept[0][..., :right], latent[..., :right])


def test_a_folder_gives_the_model_of_the_single_file(tmp_path: Path) -> None:
    model = files.tiny_sd(1)
    files.write_single_file(tmp_path / "one.safetensors", model)
    files.write_folder(tmp_path / "folder", model)
    one, folder = load_model(tmp_path / "one.safetensors", model), load_model(tmp_path / "folder")
    image = pictures(1, SIZE)
    assert torch.equal(one.encode(image), folder.encode(image))
    settings = {"steps": 2, "spacing": "leading", "solver": "ddim"}
    assert torch.equal(one.sample("a cat", **settings), folder.sample("a cat", **settings))
    assert folder.parameterization == "eps" and len(folder.files) == 3 and len(folder.weights_hash or "") == 64


def test_weights_come_in_the_type_asked_for_and_a_first_stage_never_in_half(tmp_path: Path) -> None:
    model = files.tiny_sd(1)
    files.write_single_file(tmp_path / "half.safetensors", model, dtype=torch.float16)
    kinds = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        loaded = load_model(tmp_path / "half.safetensors", model, dtype=dtype)
        stage = loaded.autoencoder
        assert stage is not None
        kinds[dtype] = (loaded.dtype, stage.dtype)
    assert kinds[None] == (torch.float32, torch.float32)
    assert kinds[torch.bfloat16] == (torch.bfloat16, torch.bfloat16)
    assert kinds[torch.float16] == (torch.float16, torch.float32)


def test_averaged_weights_are_read_when_asked_for(tmp_path: Path) -> None:
    model = files.tiny_ldm("vq")
    files.write_single_file(tmp_path / "both.ckpt", model, pickle=True, ema=True)
    plain, averaged = (load_model(tmp_path / "both.ckpt", model, ema=ema) for ema in (None, True))
    own, other = (next(m.network.parameters()) for m in (plain, averaged))  # type: ignore[union-attr]
    assert not torch.equal(own, other)
    files.write_single_file(tmp_path / "one.ckpt", model, pickle=True)
    with pytest.raises(UserError, match="holds no averaged weights beside its own; leave ema out"):
        steerdiff.load(tmp_path / "one.ckpt", model, ema=True)


def test_a_classifier_guides_any_model_towards_a_label(tmp_path: Path, models: dict[str, Model]) -> None:
    files.write_adm(tmp_path / "classifier.pt", files.tiny_classifier())
    classifier = load_classifier(tmp_path / "classifier.pt", files.tiny_classifier())
    assert isinstance(classifier, NoisyClassifier)
    assert (classifier.num_classes, classifier.image_size) == (1000, SIZE)
    adm = models["adm"]
    settings: dict[str, Any] = {"n": 2, "steps": 3, "y": 7, "classifier": classifier}
    plain = adm.sample(n=2, steps=3)
    assert torch.equal(adm.sample(**settings, classifier_scale=0.0), plain)
    pulled = adm.sample(**settings, classifier_scale=50.0)
    assert not torch.equal(pulled, plain)
    one = adm.sample(**{**settings, "n": 1}, classifier_scale=50.0, seed=1)
    torch.testing.assert_close(pulled[1:], one, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="the classifier sees images of 32 x 32 pixels; sd1 draws latents"):
        models["sd1"].sample(steps=3, y=7, classifier=classifier)
    with pytest.raises(UserError, match="a classifier pulls towards a class; give y"):
        adm.sample(steps=3, classifier=classifier)


def test_an_upsampler_is_a_second_stage_with_labels_and_a_classifier(tmp_path: Path) -> None:
    described = files.tiny_upsampler()
    files.write_adm(tmp_path / "up.pt", described)
    upsampler = load_model(tmp_path / "up.pt", described)
    files.write_adm(tmp_path / "classifier.pt", files.tiny_classifier())
    classifier = load_classifier(tmp_path / "classifier.pt", files.tiny_classifier())
    extra = upsampler.low_res_input(pictures(2, 16))
    plain = upsampler.sample(y=3, steps=2, extra=extra, seed=[1, 2])
    assert plain.shape == (2, 3, SIZE, SIZE)
    assert not torch.equal(plain, upsampler.sample(y=4, steps=2, extra=extra, seed=[1, 2]))
    pulled = upsampler.sample(y=3, steps=2, extra=extra, seed=[1, 2], classifier=classifier, classifier_scale=30.0)
    assert not torch.equal(plain, pulled)


def test_an_inpainting_model_sees_the_masked_image(tmp_path: Path) -> None:
    described = files.tiny_sd(1, inputs="inpainting")
    files.write_single_file(tmp_path / "inpainting.safetensors", described)
    model = load_model(tmp_path / "inpainting.safetensors", described)
    image = pictures(1, SIZE)
    results = []
    for picture in (image, image.flip(-2)):
        extra = model.inpainting_input(picture, half_mask(SIZE))
        results.append(model.sample("a cat", steps=2, solver="ddim", spacing="leading", extra=extra))
    assert not torch.equal(*results)


def test_published_defaults_are_those_of_the_family_or_the_preset(models: dict[str, Model]) -> None:
    assert (models["adm"].sampling.solver, models["adm"].sampling.steps, models["adm"].sampling.clip) == (
        "ddpm",
        250,
        "clip",
    )
    assert (models["ddpm"].sampling.steps, models["ddpm"].sampling.clip) == (1000, "none")
    sd = models["sd1"].sampling
    assert (sd.solver, sd.steps, sd.spacing, sd.guidance, sd.clip) == ("ddim", 50, "compvis", 7.5, "none")


def test_one_posterior_noise_gives_one_latent(models: dict[str, Model]) -> None:
    model, image = models["sd1"], pictures(2, SIZE)
    noise = lambda seed, n: Noise(seed, [n, 4, 16, 16])  # noqa: E731
    both = model.encode(image, noise([3, 4], 2))
    torch.testing.assert_close(both[1:], model.encode(image[1:], noise(4, 1)), rtol=0, atol=1e-6)
    assert not torch.equal(both, model.encode(image))


def test_tiles_change_the_way_and_hardly_the_picture(models: dict[str, Model]) -> None:
    model = models["ldm-vq"]
    wide = model.resized(SIZE, 2 * SIZE)
    whole = wide.encode(pictures(1, 2 * SIZE)[:, :, :SIZE])
    tiled = wide.tiled(128)
    assert torch.equal(tiled.encode(pictures(1, 2 * SIZE)[:, :, :SIZE]), whole)  # one tile covers it
    with pytest.raises(UserError, match="has no first stage to work in tiles"):
        models["adm"].tiled(128)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_file_that_does_not_fit_names_its_keys(tmp_path: Path, change: str) -> None:
    from safetensors.torch import load_file, save_file

    model = files.tiny_sd(1)
    files.write_single_file(tmp_path / "sd.safetensors", model)
    tensors = load_file(tmp_path / "sd.safetensors")
    key = "model.diffusion_model.out.2.bias"
    changed = {
        "missing": {},
        "extra": {**tensors, key + "es": torch.zeros(1)},
        "shape": {**tensors, key: torch.zeros(5)},
    }
    save_file(changed[change] or {k: v for k, v in tensors.items() if k != key}, tmp_path / "odd.safetensors")
    messages = {
        "missing": "1 missing: out.2.bias",
        "extra": "1 left over: out.2.biases",
        "shape": r"out.2.bias is \[5\], expected \[4\]",
    }
    with pytest.raises(UserError, match=messages[change]):
        steerdiff.load(tmp_path / "odd.safetensors", model)


def test_a_file_that_leaves_something_open_asks_for_it(tmp_path: Path) -> None:
    files.write_adm(tmp_path / "adm.pt", files.tiny_adm())
    with pytest.raises(UserError, match="heads"):
        steerdiff.load(tmp_path / "adm.pt")
    with pytest.raises(UserError, match="there is no preset 'adm-265'"):
        steerdiff.load(tmp_path / "adm.pt", "adm-265")
    with pytest.raises(UserError, match="is no noisy classifier"):
        load_classifier(tmp_path / "adm.pt", files.tiny_adm())


def test_a_converted_file_keeps_what_its_preset_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerdiff.models.published import PRESETS, Preset
    from steerdiff.models.published.convert import convert

    described = files.tiny_ldm("vq")
    sampling = {"solver": "ddim", "eta": 1.0, "steps": 4, "guidance": 2.5, "ema": True}
    preset = Preset(model=described, files=("tiny.ckpt",), description="", source="", sampling=sampling)
    monkeypatch.setitem(PRESETS, "tiny-ldm", preset)
    files.write_single_file(tmp_path / "tiny.ckpt", described, pickle=True, ema=True)
    direct = load_model(tmp_path / "tiny.ckpt", "tiny-ldm")
    assert (direct.sampling.solver, direct.sampling.steps, direct.sampling.guidance) == (DDIM(eta=1.0), 4, 2.5)
    averaged = load_model(tmp_path / "tiny.ckpt", described, ema=True)
    settings = {"steps": 2, "spacing": "leading", "solver": "ddim"}
    assert torch.equal(direct.sample(**settings), averaged.sample(**settings))  # as its authors sample
    with pytest.warns(UserWarning, match="the averaged ones are kept"):
        convert(tmp_path / "tiny.ckpt", tmp_path / "own.safetensors", config="tiny-ldm")
    own = load_model(tmp_path / "own.safetensors")
    assert own.sampling == direct.sampling and own.name == "tiny-ldm"
    assert torch.equal(own.sample(), direct.sample())


def test_a_clip_is_loaded_with_the_class_of_open_clip(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from steerdiff.models.published import ClipConfig, PublishedModel
    from steerdiff.models.published.assembly import blank

    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    described = PublishedModel(family="clip", clip=ClipConfig(embed_dim=16, vision_cfg=vision, text_cfg=text))
    shapes = {name: tensor.shape for name, tensor in blank(described, "clip").state_dict().items()}
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "clip.safetensors")
    clip = steerdiff.load(tmp_path / "clip.safetensors", described)
    assert clip.network.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 16) and not clip.network.training
    with pytest.raises(UserError, match="is a CLIP; give the weights of a diffusion model"):
        load_model(tmp_path / "clip.safetensors", described)


def test_a_preset_that_is_not_known_here_leaves_the_defaults_of_the_family(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    from steerdiff.models.checkpoint import read_header
    from steerdiff.models.published.convert import convert

    files.write_adm(tmp_path / "adm.pt", files.tiny_adm())
    convert(tmp_path / "adm.pt", tmp_path / "own.safetensors", config=files.tiny_adm())
    for preset in ("of-a-later-version", ["adm-64"], {"adm-64": 1}):
        header = json.dumps({**read_header(tmp_path / "own.safetensors"), "preset": preset})
        save_file(load_file(tmp_path / "own.safetensors"), tmp_path / "odd.safetensors", metadata={"steerdiff": header})
        model = load_model(tmp_path / "odd.safetensors")
        assert (model.name, model.sampling.steps) == ("odd", 250)


def test_the_record_of_a_folder_holds_the_files_that_are_read(tmp_path: Path) -> None:
    files.write_folder(tmp_path / "sd", files.tiny_sd(1))
    (tmp_path / "sd" / "safety_checker").mkdir()
    (tmp_path / "sd" / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    names = [str(path.relative_to(tmp_path / "sd").parent) for path in load_model(tmp_path / "sd").files]
    assert names == ["unet", "vae", "text_encoder"]
