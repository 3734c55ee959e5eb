"""The table of pretrained files by others: names, sizes, hashes, sources, licences.

Nothing but the table, so that a reader finds every file in one place and `--help` needs no torch.
"""

from typing import NamedTuple


class WeightFile(NamedTuple):
    """A published weight file."""

    name: str
    """File name; it carries the first eight hex digits of the file's SHA-256."""
    url: str
    """Where it is published."""
    megabytes: float
    """Size in 10^6 bytes, rounded; for messages and progress bars, not for checks."""
    sha256: str
    """First hex digits of its SHA-256: as many as its publisher tells."""
    licence: str
    purpose: str
    """What it is for, in a few words."""
    model: str = ""
    """Function in torchvision.models, for the trunks of LPIPS."""
    also: tuple[str, ...] = ()
    """Other names under which the same bytes are published."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the file is accepted under, the usual one first."""
        return (self.name, *self.also)


_TORCHVISION = "BSD-3-Clause; trained on ImageNet, whose terms may apply"
_SERVER = "https://download.pytorch.org/models/"

WEIGHTS: dict[str, WeightFile] = {
    "vgg": WeightFile(
        name="vgg16-397923af.pth",
        url=_SERVER + "vgg16-397923af.pth",
        megabytes=553.4,
        sha256="397923af",
        licence=_TORCHVISION,
        purpose="LPIPS, net vgg",
        model="vgg16",
    ),
    "alex": WeightFile(
        name="alexnet-owt-7be5be79.pth",
        url=_SERVER + "alexnet-owt-7be5be79.pth",
        megabytes=244.4,
        sha256="7be5be79",
        licence=_TORCHVISION,
        purpose="LPIPS, net alex",
        model="alexnet",
    ),
    "squeeze": WeightFile(
        name="squeezenet1_1-b8a52dc0.pth",
        url=_SERVER + "squeezenet1_1-b8a52dc0.pth",
        megabytes=5.0,
        sha256="b8a52dc0",
        licence=_TORCHVISION,
        purpose="LPIPS, net squeeze",
        model="squeezenet1_1",
    ),
    "inception": WeightFile(
        name="weights-inception-2015-12-05-6726825d.pth",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        megabytes=95.6,
        sha256="6726825d",
        licence="Apache-2.0; trained on ImageNet, whose terms may apply",
        purpose="FID and Inception Score",
        also=("pt_inception-2015-12-05-6726825d.pth",),  # as pytorch-fid publishes it
    ),
}
"""Every pretrained file this package can use, by the name that commands and functions take."""
