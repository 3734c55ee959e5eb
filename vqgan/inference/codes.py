"""What a set of images does with a codebook: how often each code is used, and how firmly indices are chosen.

Shapes: images (B, C, H, W) in [-1, 1]; indices (B, h, w) int64.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqgan.inference.scores import Entry, add_in_rank_order
from vqgan.inference.team import Team
from vqgan.metrics.codebook import mean_perplexity
from vqgan.model import VQGAN
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.grids import Indices, pack

OCTAVES = range(-3, 4)  # borders of the histogram: 1/8 to 8 times an even share
MOST_IMAGES = 512
MOST_ON_CPU = 64  # few of them compute bfloat16 faster than float32


class CodeCounts:
    """Hits of each code over the whole set.

    Args:
        quantizer: of the model; several books are counted one after another.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.hits = torch.zeros(sum(quantizer.codebook_sizes), dtype=torch.int64)

    def update(self, indices: Indices) -> None:
        """Add the indices of some images."""
        self.hits += self.quantizer.count(indices).long().cpu()

    def merge(self, team: Team) -> None:
        """Add up the counts of all processes; entered by all."""
        add_in_rank_order(team, self.hits)

    def entry(self) -> Entry:
        """Usage and perplexity, and how many codes get which multiple of an even share."""
        used, total = int((self.hits > 0).sum()), int(self.hits.sum())
        sizes = self.quantizer.codebook_sizes
        return {
            "value": used / len(self.hits),
            "used": used,
            "unused": len(self.hits) - used,
            "codebook_size": len(self.hits),
            "indices": total,
            "perplexity": round(mean_perplexity(self.hits.double(), sizes).item(), 6) if total else None,
            "histogram": histogram(self.hits, sizes) if total else [],
        }


def histogram(hits: Tensor, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Codes by hits, as multiples of the even share of their book (its hits / its K), in octaves; unused ones left out.

    Each bin holds `from` <= multiple < `below`; None is no bound.

    Args:
        hits: (sum of sizes,), one book after another.   sizes: K of each book.
    """
    books = [book.double() for book in hits.split(list(sizes))]
    multiples = torch.cat([book[book > 0] * len(book) / book.sum() for book in books])
    borders = [2.0**octave for octave in OCTAVES]
    places = torch.bucketize(multiples, torch.tensor(borders, dtype=torch.float64), right=True)
    counts = torch.bincount(places, minlength=len(borders) + 1).tolist()
    bounds = zip([None, *borders], [*borders, None], counts, strict=True)
    return [{"from": low, "below": high, "codes": count} for low, high, count in bounds]


class PrecisionCheck:
    """Share of the indices that become others when the encoder computes in bfloat16, over the first images.

    Args:
        device: which computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.most = MOST_ON_CPU if device.type == "cpu" else MOST_IMAGES
        self.counts = torch.zeros(3, dtype=torch.int64)  # images, indices, differing ones

    @torch.no_grad()
    def update(self, network: VQGAN, images: Tensor, indices: Tensor, positions: list[int], places: list[int]) -> None:
        """Encode a group again and compare.

        Args:
            network: in evaluation mode.   images: the group.   indices: of the group, packed, from float32.
            positions, places: of its images, in the set and in the group.
        """
        among_first = [place for place, position in zip(places, positions, strict=True) if position < self.most]
        if not among_first:
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            z = network.encode_z(images)
        found = pack(network.quantize.encode(z))[among_first]
        differing = int((found != indices[among_first]).sum())
        self.counts += torch.tensor([len(among_first), found.numel(), differing])

    def merge(self, team: Team) -> None:
        """Add up the counts of all processes; entered by all."""
        add_in_rank_order(team, self.counts)

    def entry(self) -> Entry:
        """How many differ, of how many."""
        images, compared, differing = self.counts.tolist()
        share = differing / compared if compared else None
        return {"value": share, "images": images, "indices": compared, "differing": differing}


def bits(network: VQGAN, size: int) -> dict[str, Any]:
    """What a size x size image takes: its indices, or its latent where there are none."""
    side = math.ceil(size / network.stride)
    latent = {} if network.quantize.discrete else {"latent": [network.quantize.codebook_dim, side, side]}
    return {
        **latent,
        "bits_per_image": network.bits_per_image(size, size),
        "bits_per_pixel": network.bits_per_image(size, size) / size**2,
        "tokens_per_image": sum(math.prod(grid) for grid in network.quantize.grids(side, side)),
    }
