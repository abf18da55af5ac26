"""What ``steerdiff sample`` uses besides the model: pictures, a classifier, an upsampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require

from .outputs import Inputs

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model
    from steerdiff.guidance.noisy_classifier import NoisyClassifier

    from .sample import Sample

__all__ = ["Parts"]

#: The second stage draws noise of its own: its seeds are those of the first, so far on.
_SECOND_STAGE = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The loaded parts, and what to write down of them."""

    inputs: Inputs  #: pictures that went in
    extra: Tensor | None = None  #: what the network sees beside the noisy state
    classifier: NoisyClassifier | None = None  #: pulls towards the label
    upsampler: Model | None = None  #: second stage
    hashes: Mapping[str, str | None]  #: SHA-256 of the files of each further model

    @staticmethod
    def of(options: Sample, model: Model, inputs: Inputs | None = None) -> Parts:
        """Load what the options name; ``inputs`` takes the place of the pictures' files.

        Raises:
            UserError: A picture is missing or superfluous, or a file of weights is not what it should be.
        """
        from steerdiff.guidance.loading import load_classifier, load_model

        inputs = _pictures(options, model) if inputs is None else inputs
        hashes: dict[str, str | None] = {}
        classifier = upsampler = None
        if options.classifier is not None:
            require(options.label is not None, "a classifier pulls towards a label; give --label")
            classifier = load_classifier(options.classifier, options.classifier_config, device=model.device)
            hashes["classifier"] = classifier.weights_hash
        if options.upsampler is not None:
            upsampler = load_model(options.upsampler, options.upsampler_config, device=model.device, dtype=model.dtype)
            require(
                upsampler.extra.kind == "low_res" and model.size == (upsampler.extra.low_res_size,) * 2,
                f"{options.upsampler} enlarges images of {upsampler.extra.low_res_size} pixels; the model draws "
                f"{model.size[0]} x {model.size[1]}: give an upsampler of that size",
            )
            hashes["upsampler"] = upsampler.weights_hash
        return Parts(
            inputs=inputs, extra=_extra(model, inputs), classifier=classifier, upsampler=upsampler, hashes=hashes
        )

    def record(self) -> dict[str, Any]:
        """Return what the settings of an image say of the parts."""
        stored: dict[str, Any] = {"inputs": self.inputs.to_dict()} if self.inputs.images else {}
        return {**stored, **({"parts": dict(self.hashes)} if self.hashes else {})}

    def compare(self, settings: Mapping[str, Any]) -> None:
        """Raise ``UserError`` where a part has changed since the settings were written."""
        then = settings.get("parts", {})
        changed = [name for name, now in self.hashes.items() if then.get(name) != now]
        require(not changed, f"the weights of the {' and the '.join(changed)} have changed since; give the old ones")

    def enlarged(self, images: Tensor, options: Sample, seeds: Sequence[int], progress: str | None) -> Tensor:
        """Return the images, enlarged where there is an upsampler; it sees them in 256 steps of grey, as saved."""
        if self.upsampler is None:
            return images
        from steerdiff.io import to_uint8

        small = to_uint8(images).to(images) / 127.5 - 1
        label = options.label if self.upsampler.num_classes is not None else None
        return self.upsampler.sample(
            n=1,
            steps=options.upsampler_steps,
            y=label,
            extra=self.upsampler.low_res_input(small),
            seed=[seed + _SECOND_STAGE for seed in seeds],
            batch=len(seeds),
            progress=progress,
        )


def _pictures(options: Sample, model: Model) -> Inputs:
    from steerdiff.io import load_image, load_mask

    kind = model.extra.kind
    wanted = {"inpainting": ("image", "mask"), "low_res": ("image",)}.get(kind, ())
    for name in ("image", "mask"):
        given = getattr(options, name) is not None
        require(given or name not in wanted, f"{model.name} needs --{name}")
        require(
            not given or name in wanted,
            f"{model.name} takes no --{name} when it samples; `steerdiff edit` changes pictures with any model",
        )
    require(kind != "depth", f"{model.name} needs depth; sample it from Python, with extra=model.depth_input(depth)")
    size = model.size if kind == "inpainting" else model.extra.low_res_size
    images = {
        name: load_mask(getattr(options, name), size) if name == "mask" else load_image(getattr(options, name), size)
        for name in wanted
    }
    return Inputs(images=images, paths={name: str(getattr(options, name)) for name in wanted})


def _extra(model: Model, inputs: Inputs) -> Tensor | None:
    if model.extra.kind == "inpainting":
        return model.inpainting_input(inputs.images["image"], inputs.images["mask"])
    return model.low_res_input(inputs.images["image"]) if model.extra.kind == "low_res" else None
