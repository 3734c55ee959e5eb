"""Train, watch and use VQGAN image tokenizers; importing this is light, torch loads when `VQGAN` is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgan.latents import LatentDataset
    from vqgan.model import VQGAN
    from vqgan.tokens import TokenDataset

__all__ = ["VQGAN", "LatentDataset", "TokenDataset", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "VQGAN":
        from vqgan.model import VQGAN

        return VQGAN
    if name == "TokenDataset":
        from vqgan.tokens import TokenDataset

        return TokenDataset
    if name == "LatentDataset":
        from vqgan.latents import LatentDataset

        return LatentDataset
    raise AttributeError(f"module 'vqgan' has no attribute {name!r}")
