"""The first stage of latent diffusion: images to latents and back, by a normal posterior (KL) or a codebook (VQ)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerdiff.errors import require

from .autoencoder_layers import Codebook, Decoder, Encoder
from .config import AutoencoderConfig
from .tiling import Tiling

__all__ = ["Autoencoder", "Posterior"]

OVERLAP = 64  #: pixels that tiles share, where not given; a multiple of every published factor


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an encoder says of an image: a normal distribution over latents, or one latent (VQ).

    Source: Kingma & Welling 2014; the clamp is CompVis' ``DiagonalGaussianDistribution``'s.
    """

    mean: Tensor  #: [B, embed_dim, h, w]
    log_variance: Tensor | None  #: [B, embed_dim, h, w] in [-30, 20]; None where there is one latent only

    @property
    def std(self) -> Tensor:
        """Standard deviation [B, embed_dim, h, w], zero where there is one latent only."""
        return torch.zeros_like(self.mean) if self.log_variance is None else (0.5 * self.log_variance).exp()

    @property
    def mode(self) -> Tensor:
        """The likeliest latent, which is the mean."""
        return self.mean

    def sample(self, eps: Tensor) -> Tensor:
        """Return the latent that standard normal noise ``eps`` [B, embed_dim, h, w] picks.

        Raises:
            UserError: The shape of ``eps`` does not fit.
        """
        require(
            eps.shape == self.mean.shape,
            f"eps is {list(eps.shape)}; the latents are {list(self.mean.shape)}: give noise of that shape",
        )
        return self.mean if self.log_variance is None else self.mean + self.std * eps


class Autoencoder(nn.Module):
    """Encoder and decoder with CompVis' names: ``encoder``, ``decoder``, ``quant_conv``, ``post_quant_conv``.

    Latents of `encode` and `decode` are as the networks have them; `latents` and `images` speak the diffusion model's
    scale. Every direction can run in tiles, for images that do not fit in memory at once: ``tile`` and ``overlap`` are
    pixels of the image, multiples of ``config.factor``. **A tiled result is not the plain one**: group norms take
    their statistics over a tile instead of the image and attention does not look beyond it, so that tones may
    drift a little between tiles; larger tiles drift less. One tile that covers the image is the plain result exactly.

    Source: Rombach et al. 2022, section 3.1 and appendix G; CompVis' ``AutoencoderKL`` and ``VQModelInterface``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        parts = 2 if config.kind == "kl" else 1
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.codebook_size is not None:
            self.quantize = Codebook(config.codebook_size, config.embed_dim)
        self.quant_conv = nn.Conv2d(parts * config.z_channels, parts * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the networks run in."""
        return self.quant_conv.weight.dtype

    def moments(self, image: Tensor, *, tile: int | None = None, overlap: int = OVERLAP) -> Tensor:
        """Return what the encoder says, in the dtype of ``image``.

        Args:
            image: [B, in_channels, H, W] in [-1, 1]; H and W divisible by ``config.factor``.
            tile: Pixels of a tile per axis; None runs the whole image at once.
            overlap: Pixels that neighbouring tiles share and over which they are blended.

        Returns:
            KL: means and log variances before clamping, [B, 2 * embed_dim, H / factor, W / factor]. VQ: the latent
            before it is quantised, [B, embed_dim, H / factor, W / factor].

        Raises:
            UserError: A shape does not fit, or the tiling is impossible.
        """
        config = self.config
        require(
            image.ndim == 4 and image.shape[1] == config.in_channels,
            f"image is {list(image.shape)}; this autoencoder takes [B, {config.in_channels}, H, W]",
        )
        require(
            all(side > 0 and side % config.factor == 0 for side in image.shape[2:]),
            f"image is {image.shape[2]} x {image.shape[3]} pixels; both must be divisible by {config.factor}",
        )
        if tile is None:
            return self._moments(image)
        tiling = Tiling.of_pixels(tile, overlap, config.factor)
        return tiling.run(self._moments, image, into=config.factor, out=1, channels=self.quant_conv.out_channels)

    def encode(self, image: Tensor, *, tile: int | None = None, overlap: int = OVERLAP) -> Posterior:
        """Return the posterior over latents, without scale factor; arguments and errors are those of `moments`.

        With a codebook it is the unquantised latent, as latent diffusion has it: `decode` quantises.
        """
        moments = self.moments(image, tile=tile, overlap=overlap)
        if self.config.kind == "vq":
            return Posterior(moments, None)
        mean, log_variance = moments.chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(-30, 20))

    def decode(self, z: Tensor, *, tile: int | None = None, overlap: int = OVERLAP) -> Tensor:
        """Return images [B, in_channels, factor * h, factor * w], about [-1, 1] and not clipped, in the dtype of ``z``.

        Args:
            z: Latents [B, embed_dim, h, w] without scale factor; with a codebook the nearest vectors are decoded.
            tile: Pixels of a tile of the image per axis; None decodes all at once.
            overlap: Pixels that neighbouring tiles share and over which they are blended.

        Raises:
            UserError: A shape does not fit, or the tiling is impossible.
        """
        config = self.config
        require(
            z.ndim == 4 and z.shape[1] == config.embed_dim,
            f"z is {list(z.shape)}; this autoencoder decodes [B, {config.embed_dim}, h, w]",
        )
        if tile is None:
            return self._decoded(z)
        tiling = Tiling.of_pixels(tile, overlap, config.factor)
        return tiling.run(self._decoded, z, into=1, out=config.factor, channels=config.in_channels)

    def latents(
        self, image: Tensor, eps: Tensor | None = None, *, tile: int | None = None, overlap: int = OVERLAP
    ) -> Tensor:
        """Return latents at the diffusion model's scale, [B, embed_dim, H / factor, W / factor].

        Args:
            image: [B, in_channels, H, W] in [-1, 1].
            eps: Noise that picks from the posterior, of the latents' shape; None takes the mean.
            tile: As for `moments`.
            overlap: As for `moments`.
        """
        posterior = self.encode(image, tile=tile, overlap=overlap)
        return self.config.scale_factor * (posterior.mean if eps is None else posterior.sample(eps))

    def images(self, latents: Tensor, *, tile: int | None = None, overlap: int = OVERLAP) -> Tensor:
        """Return the images of ``latents`` at the diffusion model's scale; else as `decode`."""
        return self.decode(latents / self.config.scale_factor, tile=tile, overlap=overlap)

    def _moments(self, image: Tensor) -> Tensor:
        moments: Tensor = self.quant_conv(self.encoder(image.to(self.dtype)))
        return moments.to(image.dtype)

    def _decoded(self, z: Tensor) -> Tensor:
        h = z.to(self.dtype)
        if self.config.kind == "vq":
            h = self.quantize(h)
        image: Tensor = self.decoder(self.post_quant_conv(h))
        return image.to(z.dtype)
