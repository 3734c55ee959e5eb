"""VQGAN: encoder, quantizer and decoder in one module.

Shapes: images and recon (B, C, H, W) in [-1, 1]; z and z_q (B, D, h, w) with h = H / stride; indices (B, h, w) int64.
Of a hierarchy z, z_q and indices are tuples with an entry for each level, the top first, whose h is H / stride.
"""

import copy
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from vqgan.bottleneck import make_bottleneck
from vqgan.errors import UserError
from vqgan.hub import upload
from vqgan.model_card import README, model_card
from vqgan.networks.autoencoder import Decoder, Encoder, Variant
from vqgan.networks.padding import pad_to_stride
from vqgan.parts import check_part
from vqgan.pretrained import (
    EXPORT_CONFIG,
    RAW_WEIGHTS,
    Unset,
    Weights,
    find_model,
    fit_weights,
    hash_weights,
    load_weights,
    read_weights,
    write_export,
)
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.grids import Indices, Latents, cast, check_vectors, detach, to_int64
from vqgan.quantizers.levels import LevelQuantizer

__all__ = ["VQGAN", "VQGANOutput", "evaluating", "load_weights", "pad_to_stride", "read_weights"]

logger = logging.getLogger(__name__)


class VQGANOutput(NamedTuple):
    recon: Tensor  # (B, C, H, W), linear: not clamped to [-1, 1]
    quantized: QuantizerOutput
    z: Latents  # (B, in_channels, h, w), encoder vectors before quantization, detached
    features: Tensor  # (B, ch, H, W), what the last layer saw, detached


class Origin(NamedTuple):
    metadata: dict[str, Any]  # of the folder that the weights came from
    weights_hash: str  # of the weights that it speaks of


class VQGAN(nn.Module):
    """Convolutional autoencoder with a bottleneck, discrete (VQGAN, arXiv:2012.09841) or continuous.

    The attributes encoder, quant_conv, quantize, post_quant_conv and decoder, and the weight names below them, are
    those of taming-transformers.

    Args:
        channels: C, of the image.
        image_size: side of the training images; it decides which levels `attn_resolutions` means.
        variant: "taming", or "symmetric": no attention, a decoder as deep as the encoder (VQGAN+, arXiv:2409.16211).
        ch: channels at full resolution.
        ch_mult: factor on `ch` per level; n levels make a stride of 2^(n-1).
        num_res_blocks: residual blocks per level of the encoder.
        attn_resolutions: feature-map sides, at `image_size`, that get self-attention (taming only).
        z_channels: channels of the latent, which quant_conv maps to the code dimension.
        dropout: inside residual blocks.
        top_mult: makes it a hierarchy of two grids of codes (VQ-VAE-2, arXiv:1906.00446): factor on `ch` per level
            between the bottom grid, which ch_mult leads to, and the top one; each doubles the stride.
        quantizer: {"name": a key of QUANTIZERS, "args": arguments of its class}.

    Raises:
        UserError: an argument out of range, or one that the quantizer does not have.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 256,
        variant: Variant = "taming",
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        z_channels: int = 256,
        dropout: float = 0.0,
        top_mult: Sequence[int] = (),
        quantizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        levels = [*ch_mult, *top_mult]
        self.stride = 2 ** (len(levels) - 1)
        if image_size < 1 or image_size % self.stride:
            where = "ch_mult and top_mult" if top_mult else "ch_mult"
            raise UserError(
                f"image_size is {image_size}; {len(levels)} levels in {where} need a multiple of {self.stride}."
            )
        shape: dict[str, Any] = {
            "channels": channels,
            "image_size": image_size,
            "variant": variant,
            "ch": ch,
            "ch_mult": list(ch_mult),
            "num_res_blocks": num_res_blocks,
            "attn_resolutions": list(attn_resolutions),
            "z_channels": z_channels,
            "dropout": dropout,
        }
        self.encoder = Encoder(**shape)
        self.decoder = Decoder(**shape)
        name, args = _quantizer_part(**(quantizer or {"name": "vq"}))
        self.quantize, self.quant_conv, self.post_quant_conv = make_bottleneck(name, args, top_mult, shape)
        above = {"top_mult": list(top_mult)} if top_mult else {}  # so that models without it keep their hash
        self._config = shape | above | {"quantizer": {"name": name, "args": args}}
        self._origin: Origin | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON takes them: `VQGAN(**model.config)` is the same architecture."""
        return copy.deepcopy(self._config)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the folder it was loaded from says about the weights: step, raw or averaged, validation; {} if new."""
        return copy.deepcopy(self._origin.metadata) if self._origin else {}

    @property
    def codebook_size(self) -> int:
        """K: indices lie in [0, K); 0 without codes."""
        return self.quantize.codebook_size

    def bits_per_image(self, height: int, width: int) -> float:
        """Bits of a height x width image, sides rounded up; for one grid of indices h * w * log2(K)."""
        return self.quantize.bits(math.ceil(height / self.stride), math.ceil(width / self.stride))

    def weights_hash(self) -> str:
        """SHA-256, in hex, of weights and architecture; see `vqgan.pretrained.hash_weights`.

        It is the same for the run, the checkpoint and the export that hold the same weights, on any device, and another
        one if any weight or constructor argument differs: token files name their model by it. How its codes were
        learned (`learning_args` of the quantizer, and of those within it) does not count: it does not show in what
        becomes of an image.
        """
        part = self._config["quantizer"]
        args = QUANTIZERS[part["name"]].meaning(part["args"])
        return hash_weights(self._config | {"quantizer": part | {"args": args}}, self.state_dict())

    @property
    def last_layer(self) -> Tensor:
        """(C, ch, 3, 3), weight of the decoder's output convolution; the adaptive weight is measured there."""
        return self.decoder.conv_out.weight

    def forward(self, images: Tensor) -> VQGANOutput:
        """Reconstruct a training batch: (B, C, H, W) in [-1, 1], both sides multiples of the stride.

        Raises:
            UserError: any other shape.
        """
        self._check_images(images)
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"images are {height}x{width}; training needs sides that are multiples of {self.stride}. "
                f"Change data.image_size, or call reconstruct(), which pads."
            )
        z, above = self._latents(images)
        quantized = self.quantize(z, *above)
        recon, features = self.decoder(self._decoder_input(quantized.z_q))
        return VQGANOutput(recon, quantized, detach(z), features.detach())

    def encode_z(self, images: Tensor) -> Latents:
        """Encoder vectors (B, D, ceil(H / stride), ceil(W / stride)) before quantization, of images of any size.

        A quantizer may take more channels than it gives: see `Quantizer.in_channels`.
        """
        self._check_images(images)
        z, _ = self._latents(pad_to_stride(images, self.stride))
        return z

    def encode(self, images: Tensor) -> QuantizerOutput:
        """Quantize images of any size, (B, C, H, W) in [-1, 1]; indices (B, ceil(H / stride), ceil(W / stride)).

        Without codes `indices` is the empty tuple, and `z_q` is the latent: of `kl` the mean, in evaluation mode.
        """
        self._check_images(images)
        z, above = self._latents(pad_to_stride(images, self.stride))
        return self.quantize(z, *above)

    def decode(self, z_q: Latents) -> Tensor:
        """Reconstructions (B, C, h * stride, w * stride) of quantized vectors (B, D, h, w); linear, not clamped.

        Raises:
            UserError: indices, or other shapes than `encode` gives.
        """
        scales = self.quantize.scales if isinstance(self.quantize, LevelQuantizer) else (1,)
        check_vectors(z_q, self.quantize.codebook_dim, scales)
        return self.decoder(self._decoder_input(z_q)).recon

    def decode_indices(self, indices: Indices) -> Tensor:
        """Reconstructions (B, C, h * stride, w * stride) of indices (B, h, w) in [0, K); linear, not clamped.

        Raises:
            UserError: other shapes than `encode` gives, no integers, a value outside [0, K), or a model without codes.
        """
        self.quantize.check_indices(indices)
        return self.decode(self.quantize.decode(to_int64(indices)))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the model makes of images of any size: (B, C, H, W) in [-1, 1] to the same shape and range.

        Runs in evaluation mode and without gradients, whatever mode the model is in.
        """
        with evaluating(self):
            recon = self.decode(self.encode(images).z_q)
        height, width = images.shape[-2:]
        return recon[..., :height, :width].clamp(-1, 1)

    def save_pretrained(
        self, folder: str | Path, *, metadata: Mapping[str, Any] | None = None, license: str | None = None
    ) -> None:
        """Write an export: `config.json`, `model.safetensors` and `README.md`, a model card; complete or not at all.

        A `README.md` that is not ours, or was edited, is left as it is.

        Args:
            folder: new, empty, or an earlier export, which is replaced.
            metadata: anything JSON takes, kept in `config.json`; `{"weights": "raw"}` marks weights without averaging.
                None: what the model was loaded with, if its weights are still the same.
            license: for the card: an identifier such as "mit". None leaves a line to fill in.

        Raises:
            UserError: the folder holds something else, or the license is no identifier.
        """
        self._export(Path(folder), Path(folder).resolve().name, metadata, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        license: str | None = None,
    ) -> str:
        """Upload an export to the Hugging Face Hub; returns its URL. Needs huggingface_hub.

        Args:
            repo_id: `owner/name`; created where it is missing.
            private: whether others may not see it, if it is created; None: as the owner's settings say.
            token: with the right to write; None: the one of `hf auth login` or HF_TOKEN.
            metadata, license: see `save_pretrained`.

        Raises:
            UserError: no such right, no network, or not an id.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "export"
            self._export(folder, repo_id, metadata, license)
            return upload(folder, repo_id, [EXPORT_CONFIG, RAW_WEIGHTS, README], private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        weights: Weights = "ema",
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> Self:
        """Load a model in evaluation mode from an export, a checkpoint folder, a run folder or the Hugging Face Hub.

        Config and weights are checked against each other before the model is allocated. Needs torch and safetensors;
        for a hub id, huggingface_hub.

        Args:
            path: a folder, or `owner/name` on the hub; see `vqgan.pretrained.find_model`.
            weights: "ema", the averaged ones where there are any, or "raw".
            device: where the model goes.
            revision: branch, tag or commit on the hub.

        Raises:
            UserError: no model there, or one whose config or weights do not fit.
        """
        files = find_model(path, weights=weights, revision=revision)
        try:
            check_part("model", "VQGAN", files.args, {"VQGAN": VQGAN})
            with torch.device("meta"), Unset():
                skeleton = cls(**files.args)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{files.weights.parent}: its config describes no model that can be built: {error}"
            ) from error
        tensors = fit_weights(skeleton.state_dict(), read_weights(files.weights), what=str(files.weights))
        model = cls(**files.args)
        model.load_state_dict(tensors)
        model._origin = Origin(files.metadata, model.weights_hash())
        return model.to(device).eval()

    def _export(self, folder: Path, name: str, metadata: Mapping[str, Any] | None, license: str | None) -> None:
        known = self._known_metadata() if metadata is None else metadata
        size = self._config["image_size"]

        def card(sha256: str) -> str:
            return model_card(
                name=name,
                args=self._config,
                stride=self.stride,
                quantizer=self.quantize,
                parameters=sum(parameter.numel() for parameter in self.parameters()),
                bits=self.bits_per_image(size, size),
                metadata=known,
                sha256=sha256,
                license=license,
            )

        write_export(folder, self._config, known, self.state_dict(), card=card)

    def _known_metadata(self) -> dict[str, Any]:
        """Metadata that is true of the weights as they are now."""
        if self._origin is None or not self._origin.metadata:
            return {}
        if self._origin.weights_hash != self.weights_hash():
            logger.warning("the weights have changed since they were loaded: their old metadata is left out.")
            return {}
        return self.metadata

    def _latents(self, images: Tensor) -> tuple[Latents, tuple[QuantizerOutput, ...]]:
        """z, (B, D, h, w), and of a hierarchy what came of the top, which the z of the bottom takes part in."""
        features = self.encoder(images)
        if isinstance(self.quantize, LevelQuantizer):
            return self.quantize.conditioned(partial(self.quant_conv, features))
        return self.quant_conv(features), ()

    def _decoder_input(self, z_q: Latents) -> Tensor:
        """z_q is float32 whatever the model is: here `.half()` and `.bfloat16()` meet it."""
        mapped: Tensor = self.post_quant_conv(cast(z_q, self.last_layer.dtype))
        return mapped

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise UserError(
                f"images are {tuple(images.shape)} {images.dtype}; this model takes (B, {self.channels}, H, W) of "
                f"floating-point values in [-1, 1]."
            )


def _quantizer_part(name: str, args: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and complete arguments: defaults are written out, so that a saved model does not change when they do."""
    complete = check_part("quantizer", name, args or {}, QUANTIZERS)
    return name, QUANTIZERS[name].completed(complete)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
