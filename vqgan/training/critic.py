"""How the discriminator is asked by the generator, and how it is taught.

Shapes: images, recon (B, C, H, W) in [-1, 1]; logits are one tensor (B, ...) or a tuple of such maps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from losses.adversarial import Logits
from losses.augment import DiffAugment, Draw
from losses.discriminator import DiscriminatorLoss
from losses.penalties import Penalties, interpolate
from vqgan.config import LossConfig

Logs = dict[str, Tensor]
Autocast = Callable[[], AbstractContextManager[None]]


class Critic:
    """The discriminator with all that stands between it and a picture: augmentation, precision, penalties.

    Args:
        bare: the discriminator; it judges for the generator, where no gradients are shared.
        wrapped: the same as it is trained: sharing gradients between processes.
        objective: its loss.
        settings: section `loss` of the config.
        autocast: context that the discriminator's forward passes run in.
    """

    def __init__(
        self,
        bare: nn.Module,
        wrapped: nn.Module,
        objective: DiscriminatorLoss,
        settings: LossConfig,
        autocast: Autocast,
    ) -> None:
        self.bare, self.wrapped, self.objective, self.autocast = bare, wrapped, objective, autocast
        pull, change = settings.regularise, settings.disc_augment
        self.augment = DiffAugment(
            probability=change.probability, color=change.color, translation=change.translation, cutout=change.cutout
        )
        self.penalties = Penalties(
            r1=pull.r1, r2=pull.r2, gradient_penalty=pull.gradient_penalty, every=pull.penalty_every
        )
        self.joint = settings.joint_forward and not bare.mixes_images

    def draw(self, micro_batches: Sequence[Tensor], *, rank: int = 0, processes: int = 1) -> list[Draw]:
        """Augmentation of each micro-batch: one per pair, for both players, from the global generator.

        Drawn for the global batch, whose order is that of the processes, so that one process and several draw alike.

        Args:
            micro_batches: this process's share, (B, C, H, W) each; only shapes and device count.
            rank: number of this process.   processes: how many train together.
        """
        sizes = [len(images) for images in micro_batches]
        images = micro_batches[0]
        everyone = self.augment.draw(images[:1].expand(processes * sum(sizes), *images.shape[1:]))
        return [_rows(everyone, rank * sum(sizes) + sum(sizes[:i]), size) for i, size in enumerate(sizes)]

    @contextmanager
    def judging(self, draw: Draw) -> Iterator[Callable[[Tensor], Logits]]:
        """The discriminator as the generator sees it: its parameters out of every graph, its statistics put back.

        It stays in training mode: with BatchNorm, running statistics would make it another network than the one taught.
        """
        trained = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        statistics = [buffer.clone() for buffer in self.bare.buffers()]
        self.bare.requires_grad_(False)
        try:
            yield lambda pictures: self._logits(self.bare, self.augment.apply(pictures, draw))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            with torch.no_grad():
                for buffer, before in zip(self.bare.buffers(), statistics, strict=True):
                    buffer.copy_(before)

    def backward(self, images: Tensor, recon: Tensor, draw: Draw, *, step: int, scale: float) -> Logs:
        """Gradient of the discriminator's loss on one micro-batch, and its logs.

        Args:
            images: (B, C, H, W) in [-1, 1].   recon: (B, C, H, W), detached.
            draw: what `draw` gave for these images.
            step: number of the update; it decides whether penalties are due.
            scale: factor of the gradient.
        """
        shown = [self.augment.apply(images.to(recon.dtype), draw), self.augment.apply(recon, draw)]
        if not self.penalties.due(step):
            loss, logs = self.objective(*self._show(shown))
        else:
            # In float32: penalties square small numbers. Uncompiled: compiled code has no gradient of a gradient.
            with torch.autocast(images.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
                shown = [pictures.to(torch.promote_types(pictures.dtype, torch.float32)) for pictures in shown]
                if self.penalties.gradient_penalty > 0:
                    shown.append(interpolate(*shown))
                shown = [pictures.detach().requires_grad_() for pictures in shown]  # not the caller's own
                logits = self._show(shown, full=True)
                loss, logs = self.objective(*logits[:2])
                penalty, penalty_logs = self.penalties(shown, logits)
                loss, logs = loss + penalty, logs | penalty_logs
        (loss * scale).backward()
        return logs | {"loss/d": loss.detach()}

    def _show(self, shown: list[Tensor], *, full: bool = False) -> list[Logits]:
        """Logits of each batch of pictures: from one forward pass, or one each."""
        if not self.joint:
            return [self._logits(self.wrapped, pictures, full=full) for pictures in shown]
        together = self._logits(self.wrapped, torch.cat(shown), full=full)
        if isinstance(together, tuple):
            return list(zip(*(part.chunk(len(shown)) for part in together), strict=True))
        return list(together.chunk(len(shown)))

    def _logits(self, discriminator: nn.Module, pictures: Tensor, *, full: bool = False) -> Logits:
        if full:
            logits: Logits = discriminator(pictures)
            return logits
        with self.autocast():
            logits = discriminator(pictures)
        return logits


def _rows(draw: Draw, first: int, count: int) -> Draw:
    """The part of a draw that belongs to `count` pairs from number `first` on."""
    rows: Draw = tree_map_only(Tensor, lambda values: values[first : first + count], draw)
    return rows
