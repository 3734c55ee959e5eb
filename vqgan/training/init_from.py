"""`--init-from`: from the weights of one model to step 0 of another, with the changes that can be carried over.

Carried over: more codes, another number of image channels, and every setting that neither has weights nor says what
they mean. Any other difference is refused, in one line.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqgan.config import Config, LossConfig
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.parts import check_part
from vqgan.pretrained import (
    CHECKPOINT_CONFIG,
    EMA_WEIGHTS,
    EXPORT_CONFIG,
    RAW_WEIGHTS,
    find_model,
    fit_weights,
    read_export_config,
    read_weights,
    without_wrappers,
)
from vqgan.quantizers import QUANTIZERS
from vqgan.store import read_json
from vqgan.training.run import model_arguments

CODEBOOK = "quantize.embedding.weight"
TOP_CODEBOOK, TOP_ENCODER = "quantize.levels.0.embedding.weight", "quant_conv.top_encoder"  # of a hierarchy
TOP = "model.top_mult"
CODEBOOK_SIZE = "model.quantizer.args.codebook_size"
ATTENTION = "model.attn_resolutions"
HEAD_START = 300  # steps within which a fresh discriminator has learned little


class Initial(NamedTuple):
    """Weights for step 0 of a run."""

    name: str
    """Where they come from, as the user wrote it."""
    tensors: dict[str, Tensor]
    """By name, on the CPU, with the shapes of the run's model; a codebook that grows has fewer rows."""
    grown_from: int | None
    """Rows of a codebook that grows; None: it does not."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""


def read_initial(path: Path, config: Config, *, frozen: Sequence[str]) -> Initial:
    """Weights that `--init-from` names, made to fit the model that `config` describes.

    Args:
        path: anything that `find_model` takes, or a .safetensors file; the config beside it is read where there is one.
        config: of the run, with durations in steps.
        frozen: parts of the model that are not trained (keys of `freeze.PARTS`).

    Raises:
        UserError: nothing readable there; or a difference that cannot be carried over, with both values.
    """
    name = str(path)
    args, tensors = _read(path.expanduser())
    tensors = without_wrappers(tensors, what=name)
    here = _settings(model_arguments(config), config.data.image_size)
    if args is None:
        there = _settings_of_shapes(tensors, config.data.image_size)
    else:
        there = _settings_of_config(args, config.data.image_size, name)
    _compare(here, there, name)
    grown_from = _growth(here, there, name, frozen)
    notes = [_adapt_channels(tensors, config.data.channels, frozen), *_trusted(here, there, name)]
    if grown_from is not None:
        notes.append(
            f"the codebook grows from {grown_from:,} to {here[CODEBOOK_SIZE]:,} codes: the first {grown_from:,} are "
            f"those of {name}, the others come from the encoder's outputs for the first batch"
        )
    notes.append(_about_the_discriminator(config.loss, int(config.train.max_steps)))
    return Initial(name, tensors, grown_from, tuple(filter(None, notes)))


def fill(model: VQGAN, initial: Initial) -> None:
    """Put the weights into the model of the run; codes that a codebook has grown by stay as they are.

    Raises:
        UserError: names or shapes differ after all, or a value is not finite; the model is as it was.
    """
    found = fitting(model, initial)
    if initial.grown_from is not None:
        codebook = model.state_dict()[CODEBOOK]
        found[CODEBOOK] = torch.cat([found[CODEBOOK].to(codebook), codebook[initial.grown_from :]])
    model.load_state_dict(found)


def fitting(model: VQGAN, initial: Initial) -> dict[str, Tensor]:
    """The weights, after a comparison of every name and shape with those of the model, which may be without numbers.

    Raises:
        UserError: names or shapes differ, or a value is not finite.
    """
    expected = model.state_dict()
    if initial.grown_from is not None:
        expected[CODEBOOK] = expected[CODEBOOK][: initial.grown_from]
    return fit_weights(expected, initial.tensors, what=f"--init-from {initial.name}")


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Constructor arguments as JSON has them, None where nothing tells them, and tensors by name."""
    if not (path.is_file() and path.suffix == ".safetensors"):
        files = find_model(path)
        return files.args, read_weights(files.weights)
    args = None
    if path.name == RAW_WEIGHTS and (path.parent / EXPORT_CONFIG).is_file():
        args = read_export_config(path.parent)["args"]
    elif path.name in (RAW_WEIGHTS, EMA_WEIGHTS) and (path.parent / CHECKPOINT_CONFIG).is_file():
        args = read_json(path.parent / CHECKPOINT_CONFIG)
    return args, read_weights(path)


def _settings_of_config(args: Any, image_size: int, name: str) -> dict[str, Any]:
    """`_settings` of constructor arguments from a file, with the defaults of what it leaves out."""
    try:
        if not isinstance(args, dict):
            raise UserError(f"expected a JSON object, found {type(args).__name__}.")
        return _settings(check_part("model", "VQGAN", args, {"VQGAN": VQGAN}), image_size)
    except ValueError as error:
        raise UserError(f"--init-from {name}: its config describes no model of this version: {error}") from error


def _settings(args: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """What weights are made for, under the names of the config.

    Args:
        args: constructor arguments of a model.
        image_size: of the run: sides that have attention are counted at this size, so that two models compare.
    """
    part = {"args": {}, **(args["quantizer"] or {"name": "vq"})}
    quantizer = {"model.quantizer.name": part["name"]}
    if part["name"] in QUANTIZERS:
        meaning = QUANTIZERS[part["name"]].meaning(check_part("quantizer", part["name"], part["args"], QUANTIZERS))
        quantizer |= {f"model.quantizer.args.{key}": value for key, value in meaning.items()}
    has_attention = [
        args["variant"] == "taming" and args["image_size"] / 2**level in args["attn_resolutions"]
        for level in range(len(args["ch_mult"]) + len(args["top_mult"]))
    ]
    return {
        "data.channels": args["channels"],
        "model.variant": args["variant"],
        "model.ch": args["ch"],
        "model.ch_mult": list(args["ch_mult"]),
        TOP: list(args["top_mult"]),
        "model.num_res_blocks": args["num_res_blocks"],
        ATTENTION: _sides(has_attention, image_size),
        "model.z_channels": args["z_channels"],
        **quantizer,
    }


def _settings_of_shapes(tensors: Mapping[str, Tensor], image_size: int) -> dict[str, Any]:
    """The same as far as the shapes of a weight file tell; what is missing there is missing here."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    widths = _widths(shapes, "encoder.down")
    conv_in, conv_out = shapes.get("encoder.conv_in.weight"), shapes.get("encoder.conv_out.weight")
    found: dict[str, Any] = {}
    if conv_in and conv_out and widths:
        blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
        top = _widths(shapes, f"{TOP_ENCODER}.down")[1:]  # its level 0 has the bottom's side
        levels = [f"encoder.down.{level}" for level in range(len(widths))]
        levels += [f"{TOP_ENCODER}.down.{level}" for level in range(1, len(top) + 1)]
        attended = [any(name.startswith(f"{level}.attn.") for name in shapes) for level in levels]
        found = {
            "data.channels": conv_in[1],
            "model.variant": "taming" if "encoder.mid.attn_1.q.weight" in shapes else "symmetric",
            "model.ch": conv_in[0],
            "model.ch_mult": [width // conv_in[0] for width in widths],
            TOP: [width // conv_in[0] for width in top],
            "model.num_res_blocks": len(blocks),
            ATTENTION: _sides(attended, image_size),
            "model.z_channels": conv_out[0],
        }
    codebook = shapes.get(CODEBOOK) or shapes.get(TOP_CODEBOOK)
    if codebook:
        found |= {CODEBOOK_SIZE: codebook[0], "model.quantizer.args.codebook_dim": codebook[1]}
    return found


def _widths(shapes: Mapping[str, tuple[int, ...]], levels: str) -> list[int]:
    """Channels of each level of an encoder."""
    widths: list[int] = []
    while (block := f"{levels}.{len(widths)}.block.0.conv2.weight") in shapes:
        widths.append(shapes[block][0])
    return widths


def _sides(attended: Sequence[bool], image_size: int) -> list[int]:
    return [image_size // 2**level for level, has_attention in enumerate(attended) if has_attention]


def _compare(here: Mapping[str, Any], there: Mapping[str, Any], name: str) -> None:
    """Refuse what cannot be carried over.

    Raises:
        UserError: one line with each setting, both values and what to write instead.
    """
    quantizer = QUANTIZERS.get(here["model.quantizer.name"])
    grows = quantizer is not None and quantizer.growable and not here[TOP]
    carried = {"data.channels"} | ({CODEBOOK_SIZE} if grows else set())
    common = [key for key in here if key in there and key not in carried]
    differing = [key for key in common if here[key] != there[key]]
    if "model.quantizer.name" in differing:
        differing = [key for key in differing if not key.startswith("model.quantizer.args.")]
    if differing:
        listed = "; ".join(f"{key} is {_plain(here[key])} here, {_plain(there[key])} there" for key in differing)
        wanted = " ".join(f"{key}={_plain(there[key])}" for key in differing)
        raise UserError(
            f"--init-from {name}: {listed}. These weights mean nothing in another architecture: set {wanted}, or train "
            f"without --init-from."
        )


def _growth(here: Mapping[str, Any], there: Mapping[str, Any], name: str, frozen: Sequence[str]) -> int | None:
    """Codes that the weights bring, where the run has more; None where it has as many.

    Raises:
        UserError: it has fewer, or the codebook is frozen.
    """
    ours, theirs = here.get(CODEBOOK_SIZE), there.get(CODEBOOK_SIZE)
    if ours is None or theirs is None or ours == theirs:
        return None
    differ = f"--init-from {name}: {CODEBOOK_SIZE} is {ours} here, {theirs} there"
    if ours < theirs:
        raise UserError(
            f"{differ}; codes can be added, not taken away. Set {CODEBOOK_SIZE}={theirs} or more, or train without "
            f"--init-from."
        )
    if "codebook" in frozen:
        raise UserError(
            f"{differ}, and the codes to be added could not be learned under --freeze codebook. Leave codebook out of "
            f"--freeze, or set {CODEBOOK_SIZE}={theirs}."
        )
    return int(theirs)


def _adapt_channels(tensors: dict[str, Tensor], channels: int, frozen: Sequence[str]) -> str | None:
    """Make the first and the last convolution fit images of `channels` channels, in place; says how, if they did not.

    Grey counts as three equal channels, so grey images of an RGB model keep their reconstructions; new channels weigh 0
    in the encoder, so the old ones keep theirs.
    """
    conv_in, conv_out = tensors.get("encoder.conv_in.weight"), tensors.get("decoder.conv_out.weight")
    before = None if conv_in is None or conv_in.ndim != 4 else conv_in.shape[1]
    if conv_in is None or conv_out is None or before is None or len(conv_out) != before or before == channels:
        return None  # if names or shapes are strange, the check of all tensors says so
    tensors["encoder.conv_in.weight"] = _input_channels(conv_in, channels)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        if name in tensors:
            tensors[name] = _output_channels(tensors[name], channels)
    ways = {
        (3, 1): "grey is taken as three equal channels, and the reconstruction is their mean",
        (1, 3): "the encoder sees the mean of the three, and each is reconstructed as the one was",
    }
    general = (
        f"the first {before} stay as they are; the encoder does not see the others at first, and the decoder "
        f"reconstructs them as the mean of those"
        if channels > before
        else f"the first {channels} are kept"
    )
    unseen = channels > before > 1 and "encoder" in frozen
    return (
        f"channels go from {before} to {channels}: {ways.get((before, channels), general)}"
        f"{'; a frozen encoder never sees them' if unseen else ''}"
    )


def _input_channels(weight: Tensor, channels: int) -> Tensor:
    """(O, N, k, k) to (O, channels, k, k)."""
    before = weight.shape[1]
    if (before, channels) == (3, 1):
        return weight.float().sum(1, keepdim=True)
    if (before, channels) == (1, 3):
        return weight.float().expand(-1, 3, -1, -1) / 3
    new = weight.new_zeros(len(weight), max(channels - before, 0), *weight.shape[2:])
    return torch.cat([weight[:, :channels], new], dim=1)


def _output_channels(values: Tensor, channels: int) -> Tensor:
    """(N, ...) to (channels, ...), for a weight or a bias."""
    mean = values.float().mean(0, keepdim=True).to(values)
    if (len(values), channels) == (3, 1):
        return mean
    new = mean.expand(max(channels - len(values), 0), *values.shape[1:])
    return torch.cat([values[:channels], new])


def _trusted(here: Mapping[str, Any], there: Mapping[str, Any], name: str) -> list[str]:
    """A note on settings of the run that shapes do not show."""
    silent = [f"{key}={_plain(value)}" for key, value in here.items() if key not in there]
    return [f"{name} comes without a config: {' '.join(silent)} is taken on trust"] if silent else []


def _about_the_discriminator(loss: LossConfig, max_steps: int) -> str | None:
    disc_start, gan_start = int(loss.disc_start), int(loss.gan_start)
    if loss.disc_weight == 0 or gan_start >= max_steps or gan_start - disc_start >= HEAD_START:
        return None
    return (
        f"the discriminator is fresh, and with loss.disc_start={disc_start} and loss.gan_start={gan_start} it steers "
        f"trained weights after {gan_start - disc_start} steps of learning; give it a head start, such as "
        f"loss.disc_start=0 loss.gan_start=500"
    )


def _plain(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
