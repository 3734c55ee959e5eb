"""Parts of the model that stay as they are during fine-tuning (`--freeze encoder,codebook`)."""

from collections.abc import Sequence

from vqgan.errors import UserError
from vqgan.model import VQGAN

PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder", "quant_conv"),
    "codebook": ("quantize",),
    "decoder": ("post_quant_conv", "decoder"),
}


def check_parts(parts: Sequence[str]) -> None:
    """Refuse names that are no keys of PARTS.

    Raises:
        UserError: naming the first of them.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"--freeze: unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}.")


def check_nothing_frozen(parts: Sequence[str]) -> None:
    """Refuse `--freeze` where a run starts from random numbers.

    Raises:
        UserError: parts are named.
    """
    if parts:
        raise UserError(
            f"--freeze {','.join(parts)} keeps weights as they are, and without --init-from they are random numbers. "
            f"Add --init-from PATH, or leave out --freeze."
        )


def freeze(model: VQGAN, parts: Sequence[str]) -> None:
    """Take `parts` (keys of PARTS) out of training; their tensors stay bit-identical, and dropout in them is off.

    Raises:
        UserError: an unknown part, or nothing left to train.
    """
    check_parts(parts)
    for part in parts:
        for name in PARTS[part]:
            model.get_submodule(name).requires_grad_(False).eval()
    model.quantize.frozen = "codebook" in parts
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {','.join(parts)} leaves nothing to train; drop one of them.")
