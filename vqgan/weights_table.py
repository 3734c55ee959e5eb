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
    """First hex digits of its SHA-256: as many as its publisher tells, which may be none. Then what comes first is
    recorded beside the file, and held against it from then on."""
    licence: str
    purpose: str
    """What it is for, in a few words."""
    model: str = ""
    """Function in torchvision.models, where it holds one of those."""
    unused: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are left out: the trunks of LPIPS need no classifier."""
    also: tuple[str, ...] = ()
    """Other names under which the same bytes are published."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the file is accepted under, the usual one first."""
        return (self.name, *self.also)

    @property
    def hash_note(self) -> str:
        """What is known of its hash, for messages."""
        return f"SHA-256 {self.sha256}..." if self.sha256 else "SHA-256 not published"


_TORCHVISION = "BSD-3-Clause; trained on ImageNet, whose terms may apply"
_SERVER = "https://download.pytorch.org/models/"

WEIGHTS: dict[str, WeightFile] = {
    "vgg": WeightFile(
        name="vgg16-397923af.pth",
        url=_SERVER + "vgg16-397923af.pth",
        megabytes=553.4,
        sha256="397923af",
        licence=_TORCHVISION,
        purpose="LPIPS, net vgg; frozen_features, backbone vgg",
        model="vgg16",
        unused=("classifier.",),
    ),
    "alex": WeightFile(
        name="alexnet-owt-7be5be79.pth",
        url=_SERVER + "alexnet-owt-7be5be79.pth",
        megabytes=244.4,
        sha256="7be5be79",
        licence=_TORCHVISION,
        purpose="LPIPS, net alex",
        model="alexnet",
        unused=("classifier.",),
    ),
    "squeeze": WeightFile(
        name="squeezenet1_1-b8a52dc0.pth",
        url=_SERVER + "squeezenet1_1-b8a52dc0.pth",
        megabytes=5.0,
        sha256="b8a52dc0",
        licence=_TORCHVISION,
        purpose="LPIPS, net squeeze",
        model="squeezenet1_1",
        unused=("classifier.",),
    ),
    "resnet50": WeightFile(
        name="resnet50-0676ba61.pth",
        url=_SERVER + "resnet50-0676ba61.pth",
        megabytes=102.5,
        sha256="0676ba61",
        licence=_TORCHVISION,
        purpose="loss term resnet50_logits; frozen_features, backbone resnet50",
        model="resnet50",
    ),
    "convnext_s": WeightFile(
        name="convnext_small-0c510722.pth",
        url=_SERVER + "convnext_small-0c510722.pth",
        megabytes=201.0,
        sha256="0c510722",
        licence=_TORCHVISION,
        purpose="loss term convnext_s_logits; frozen_features, backbone convnext_s",
        model="convnext_small",
    ),
    "dino_s16": WeightFile(
        name="dino_deitsmall16_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        megabytes=86.7,
        sha256="",
        licence="Apache-2.0; trained on ImageNet, whose terms may apply",
        purpose="discriminator frozen_features, backbone dino_s16",
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
