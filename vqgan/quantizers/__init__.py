"""The bottlenecks a config can name. A new one is a file in this folder and a line in this dict."""

from typing import Any

from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.bsq import BinarySphericalQuantizer
from vqgan.quantizers.fsq import FiniteScalarQuantizer
from vqgan.quantizers.grouped import GroupedQuantizer
from vqgan.quantizers.gumbel import GumbelQuantizer
from vqgan.quantizers.ibq import IndexBackpropagationQuantizer
from vqgan.quantizers.identity import IdentityQuantizer
from vqgan.quantizers.kl import GaussianQuantizer
from vqgan.quantizers.lfq import LookupFreeQuantizer
from vqgan.quantizers.mixed import MixedQuantizer
from vqgan.quantizers.multiscale import MultiscaleQuantizer
from vqgan.quantizers.nested import KNOWN
from vqgan.quantizers.residual import ResidualQuantizer
from vqgan.quantizers.simvq import SimVectorQuantizer
from vqgan.quantizers.transform import TransformQuantizer
from vqgan.quantizers.vq import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer[Any, Any]]] = {
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "simvq": SimVectorQuantizer,
    "ibq": IndexBackpropagationQuantizer,
    "gumbel": GumbelQuantizer,
    "residual": ResidualQuantizer,
    "grouped": GroupedQuantizer,
    "mixed": MixedQuantizer,
    "multiscale": MultiscaleQuantizer,
    "transform": TransformQuantizer,
    "kl": GaussianQuantizer,
    "identity": IdentityQuantizer,
}
KNOWN.update(QUANTIZERS)
