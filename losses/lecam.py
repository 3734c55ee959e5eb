"""LeCam, a regulariser of the discriminator for few images (arXiv:2104.03310).

Shapes: `logits_real`, `logits_fake` (B, ...), or tuples of such maps: raw scores, higher means more real.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.adaptive import mean_over_processes
from losses.adversarial import Logits, full_precision, mean_over_maps


class LeCam(nn.Module):
    """Keeps the two sides' logits from drifting apart, by pulling each towards a running mean of the other's.

        R = mean max(0, r - anchor_fake)^2 + mean max(0, anchor_real - f)^2    (arXiv:2104.03310, eq. 5)

    The paper writes both squares without the maximum. Its official code has it, and so have VQGAN+ and MaskBit
    (arXiv:2409.16211), who use weight 0.001 and decay 0.999; it is followed here: logits that have already passed the
    other side's anchor are left alone. Logits in several maps share the anchors, and R is the mean over maps.

    The anchors are means over all processes and start at the first values they are given, so they need no correction
    for a start at 0; until then R is 0. `forward` changes nothing, `update` moves the anchors: the loss of a step sees
    the anchors of the steps before it, where the official code has moved them already.

    Args:
        decay: of the running means, per update, in [0, 1).

    Raises:
        ValueError: `decay` outside [0, 1).
    """

    anchor_real: Tensor
    anchor_fake: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of LeCam's anchors is a share in [0, 1); got {decay}.")
        self.decay = decay
        self.register_buffer("anchor_real", torch.zeros(()), persistent=False)
        self.register_buffer("anchor_fake", torch.zeros(()), persistent=False)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool), persistent=False)

    def forward(self, logits_real: Logits, logits_fake: Logits) -> Tensor:
        """R, an unweighted scalar in float32 (float64 for such logits), whatever autocast says."""
        real, fake = full_precision(logits_real), full_precision(logits_fake)
        with torch.autocast(real[0].device.type, enabled=False):
            loss = mean_over_maps(
                F.relu(r - self.anchor_fake).square().mean() + F.relu(self.anchor_real - f).square().mean()
                for r, f in zip(real, fake, strict=True)
            )
            return loss * self.started

    @torch.no_grad()
    def update(self, logits_real_mean: Tensor, logits_fake_mean: Tensor) -> None:
        """Move the anchors towards the mean over all processes; one collective that every process must enter.

        Args:
            logits_real_mean: (), mean logit of this process's images in a step.
            logits_fake_mean: (), mean logit of its reconstructions.
        """
        real, fake = mean_over_processes(logits_real_mean.to(self.anchor_real), logits_fake_mean.to(self.anchor_fake))
        for anchor, mean in ((self.anchor_real, real), (self.anchor_fake, fake)):
            anchor.copy_(torch.where(self.started, anchor.lerp(mean, 1 - self.decay), mean))
        self.started.fill_(True)
