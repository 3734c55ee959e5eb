"""The discriminator's objective. `logits_real`, `logits_fake`: raw scores of any shape, higher means more real."""

import torch
from torch import Tensor, nn

from losses import ADVERSARIAL, choose


class DiscriminatorLoss(nn.Module):
    """Loss of the discriminator on scored images and reconstructions; the caller detaches the reconstructions.

    Args:
        adversarial: key of `losses.ADVERSARIAL`.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, adversarial: str = "hinge") -> None:
        super().__init__()
        self.adversarial = choose(ADVERSARIAL, adversarial, "adversarial pair")

    def forward(self, logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, a scalar in float32 (float64 for such logits) whatever autocast says, and logs.

        Logs: loss/gan_d, and under disc/: logits_real and logits_fake (means), acc_real (share of real logits
        above 0) and acc_fake (share of fake logits below 0).
        """
        dtype = torch.promote_types(logits_real.dtype, torch.float32)
        logits_real, logits_fake = logits_real.to(dtype), logits_fake.to(dtype)
        with torch.autocast(logits_real.device.type, enabled=False):
            loss = self.adversarial.discriminator(logits_real, logits_fake)
        logs = {
            "loss/gan_d": loss.detach(),
            "disc/logits_real": logits_real.detach().mean(),
            "disc/logits_fake": logits_fake.detach().mean(),
            "disc/acc_real": (logits_real > 0).to(dtype).mean(),
            "disc/acc_fake": (logits_fake < 0).to(dtype).mean(),
        }
        return loss, logs
