"""The discriminator's objective.

Shapes: `logits_real`, `logits_fake` (B, ...), or tuples of such maps: raw scores, higher means more real.
"""

import torch
from torch import Tensor, nn

from losses import ADVERSARIAL, choose
from losses.adversarial import Logits, full_precision, mean_over_maps
from losses.lecam import LeCam


class DiscriminatorLoss(nn.Module):
    """Loss of the discriminator on scored images and reconstructions; the caller detaches the reconstructions.

    `forward` changes no state; `update` moves LeCam's anchors.

    Args:
        adversarial: key of `losses.ADVERSARIAL`.
        lecam: weight of LeCam (see `losses.lecam`); 0: without it.
        lecam_decay: decay of its anchors, per update.
        label_noise: probability of each pair that its image and reconstruction change places in the adversarial loss,
            a brake on a discriminator that wins too early.

    Raises:
        ValueError: unknown name, negative `lecam`, `lecam_decay` outside [0, 1), `label_noise` outside [0, 1]; when
            called with label noise: real and fake logits of unequal shapes.
    """

    def __init__(
        self,
        adversarial: str = "hinge",
        *,
        lecam: float = 0.0,
        lecam_decay: float = 0.999,
        label_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.adversarial = choose(ADVERSARIAL, adversarial, "adversarial pair")
        if lecam < 0:
            raise ValueError(f"lecam is a weight of 0 or more; got {lecam}.")
        if not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise is a probability in [0, 1]; got {label_noise}.")
        self.lecam_weight, self.label_noise = lecam, label_noise
        self.lecam = LeCam(lecam_decay) if lecam > 0 else None

    def forward(self, logits_real: Logits, logits_fake: Logits) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, a scalar in float32 (float64 for such logits) whatever autocast says, and logs.

        Logs: loss/gan_d (the adversarial loss alone), and under disc/: logits_real and logits_fake (means), acc_real
        (share of real logits above 0) and acc_fake (share of fake logits below 0); of several maps, means over maps.
        With LeCam also loss/lecam (unweighted), disc/anchor_real and disc/anchor_fake. Label noise touches none of
        them: all logs, and LeCam, look at the logits in their own places.

        Label noise draws from the global generator of the CPU.
        """
        real, fake = full_precision(logits_real), full_precision(logits_fake)
        with torch.autocast(real[0].device.type, enabled=False):
            loss = clean = self.adversarial.discriminator(real, fake)
            if self.label_noise > 0:
                loss = self.adversarial.discriminator(*swap_pairs(real, fake, self.label_noise))
        logs = {
            "loss/gan_d": clean.detach(),
            "disc/logits_real": mean_over_maps(r.detach().mean() for r in real),
            "disc/logits_fake": mean_over_maps(f.detach().mean() for f in fake),
            "disc/acc_real": mean_over_maps((r > 0).to(r.dtype).mean() for r in real),
            "disc/acc_fake": mean_over_maps((f < 0).to(f.dtype).mean() for f in fake),
        }
        if self.lecam is not None:
            regulariser = self.lecam(real, fake)
            loss = loss + self.lecam_weight * regulariser
            logs |= {
                "loss/lecam": regulariser.detach(),
                "disc/anchor_real": self.lecam.anchor_real.clone(),
                "disc/anchor_fake": self.lecam.anchor_fake.clone(),
            }
        return loss, logs

    def update(self, logits_real_mean: Tensor, logits_fake_mean: Tensor) -> None:
        """Move LeCam's anchors, once per done step; without LeCam nothing happens and no collective is entered.

        Args:
            logits_real_mean: (), the log disc/logits_real, averaged over the step's micro-batches.
            logits_fake_mean: (), the log disc/logits_fake.
        """
        if self.lecam is not None:
            self.lecam.update(logits_real_mean, logits_fake_mean)


def swap_pairs(
    logits_real: tuple[Tensor, ...], logits_fake: tuple[Tensor, ...], probability: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Let the real and fake logits of each pair change places with a probability, in all maps alike.

    Args:
        logits_real: maps, (B, ...) each.   logits_fake: of the same shapes.
        probability: of each of the B pairs, in [0, 1]; drawn from the global generator of the CPU.

    Raises:
        ValueError: unequal shapes.
    """
    shapes = [[tuple(part.shape) for part in logits] for logits in (logits_real, logits_fake)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Label noise needs real and fake logits of equal shapes; got {shapes[0]} and {shapes[1]}.")
    # Drawn on the CPU: the same flips on every device, and no wait for it.
    flips = torch.rand(len(logits_real[0])).lt(probability).to(logits_real[0].device, non_blocking=True)
    real, fake = [], []
    for r, f in zip(logits_real, logits_fake, strict=True):
        flipped = flips.view(-1, *[1] * (r.ndim - 1))  # (B,) -> (B, 1, ...)
        real.append(torch.where(flipped, f, r))
        fake.append(torch.where(flipped, r, f))
    return tuple(real), tuple(fake)
