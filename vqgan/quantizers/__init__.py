"""The bottlenecks a config can name. A new one is a file in this folder and a line in this dict."""

from vqgan.quantizers.vq import VectorQuantizer

QUANTIZERS = {
    "vq": VectorQuantizer,
}
