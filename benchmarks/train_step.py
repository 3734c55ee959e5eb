"""What our training step saves against the usual way of writing it: same modules, precision and threads, one process.

The usual step (as found in public VQGAN code) runs the autoencoder once per optimizer, evaluates LPIPS again for the
discriminator, walks LPIPS and the discriminator twice for the adaptive weight, keeps the discriminator's weights in
the generator's graph, searches codes through a dense N x K matrix of distances with a one-hot product, and leaves
memory layout, optimizers and the C library's handling of freed memory as they come. Each of these is a switch here, so
each saving is timed on its own; all variants take turns within every round, those that keep freed memory in a process
of their own. Our step also averages the weights, the usual one does not.

    python benchmarks/train_step.py                         # f16 architecture, width 64, 128 px, on the CPU
    python benchmarks/train_step.py --check                 # equal gradients in float64, on a small model
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from losses import ADVERSARIAL
from losses.perceptual import LPIPS
from vqgan.allocator import keep_freed_memory
from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.training.run import Run, build_run
from vqgan.training.trainer import Trainer


@dataclass(frozen=True)
class Habits:
    """Ways of the usual step; all off is a plain step with the same mathematics as ours."""

    second_forward: bool = True
    second_lpips: bool = True
    two_walks: bool = True
    live_discriminator: bool = True
    dense_search: bool = True


class UsualStep:
    """A training step in the field's way, on the networks of a run.

    Args:
        run: networks and optimizers.   perceptual: the network of its lpips term.
        habits: which of the usual ways it follows.
    """

    def __init__(self, run: Run, perceptual: LPIPS, habits: Habits) -> None:
        self.run, self.perceptual, self.habits = run, perceptual, habits

    def __call__(self, images: Tensor) -> None:
        self.backward(images)
        for optimizer in (self.run.optimizer_g, self.run.optimizer_d):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def backward(self, images: Tensor) -> None:
        """Fill the gradients of both players."""
        run, habits = self.run, self.habits
        discriminator, pair = run.discriminator, ADVERSARIAL[run.config.loss.adversarial]
        search = run.model.quantize.encode
        if habits.dense_search:
            run.model.quantize.encode = self._dense_search  # for this step only
        try:
            recon, code_loss = self._reconstruct(images)
            if not habits.live_discriminator:
                discriminator.requires_grad_(False)
            if habits.two_walks:
                self._walk_twice(images, recon, code_loss)
            else:
                self._walk_once(images, recon, code_loss)
            discriminator.requires_grad_(True)
            for parameter in discriminator.parameters():
                parameter.grad = None

            if habits.second_forward:
                recon, _ = self._reconstruct(images)
            if habits.second_lpips:
                self._rec_loss(images, recon)
            recon = recon.detach()
            pair.discriminator(discriminator(images), discriminator(recon)).backward()
        finally:
            run.model.quantize.encode = search  # as it was

    def _reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.run.model(images)
        return output.recon, output.quantized.loss

    def _rec_loss(self, images: Tensor, recon: Tensor) -> Tensor:
        loss, terms = torch.zeros((), dtype=recon.dtype), self.run.config.loss.terms
        if "l1" in terms:
            loss = loss + terms["l1"] * F.l1_loss(recon, images)
        if "lpips" in terms:
            loss = loss + terms["lpips"] * self.perceptual(images, recon)
        return loss

    def _gan_loss(self, recon: Tensor) -> Tensor:
        return ADVERSARIAL[self.run.config.loss.adversarial].generator(self.run.discriminator(recon))

    def _walk_twice(self, images: Tensor, recon: Tensor, code_loss: Tensor) -> None:
        """Through LPIPS and the discriminator once for the weight, and once more for the gradient."""
        last = self.run.model.last_layer
        rec_loss, gan_loss = self._rec_loss(images, recon), self._gan_loss(recon)
        (rec_w,) = torch.autograd.grad(rec_loss, last, retain_graph=True)
        (gan_w,) = torch.autograd.grad(gan_loss, last, retain_graph=True)
        (rec_loss + self._factor(rec_w, gan_w) * gan_loss + code_loss).backward()

    def _walk_once(self, images: Tensor, recon: Tensor, code_loss: Tensor) -> None:
        """Gradients at the reconstruction serve both the weight and the backward pass."""
        last, leaf = self.run.model.last_layer, recon.detach().requires_grad_()
        (rec_grad,) = torch.autograd.grad(self._rec_loss(images, leaf), leaf)
        (gan_grad,) = torch.autograd.grad(self._gan_loss(leaf), leaf)
        (rec_w,) = torch.autograd.grad(recon, last, rec_grad, retain_graph=True)
        (gan_w,) = torch.autograd.grad(recon, last, gan_grad, retain_graph=True)
        total = rec_grad + self._factor(rec_w, gan_w) * gan_grad
        torch.autograd.backward([recon, code_loss], [total, torch.ones_like(code_loss)])

    def _factor(self, rec_w: Tensor, gan_w: Tensor) -> Tensor:
        loss = self.run.config.loss
        return loss.disc_weight * (rec_w.norm() / (gan_w.norm() + 1e-4)).clamp(max=loss.max_weight).detach()

    def _dense_search(self, z: Tensor) -> Tensor:
        book = self.run.model.quantize.embedding.weight
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        distance = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * flat @ book.T
        indices = distance.argmin(dim=1)
        one_hot = torch.zeros_like(distance).scatter_(1, indices[:, None], 1)
        (one_hot @ book).view(*z.shape[:1], *z.shape[2:], -1)  # the usual lookup; ours follows in `decode`
        return indices.view(z.shape[0], *z.shape[2:])


def make_run(
    *, image_size: int, ch: int, ch_mult: list[int], codebook_size: int, net: str, dtype: torch.dtype
) -> tuple[Run, LPIPS]:
    """A run at the f16 architecture with the GAN on from the start."""
    config = Config(
        data=DataConfig(image_size=image_size),
        model=ModelConfig(
            ch=ch,
            ch_mult=ch_mult,
            attn_resolutions=[image_size // 2 ** (len(ch_mult) - 1)],
            z_channels=4 * ch,
            quantizer=PartConfig(
                name="vq",
                args={"codebook_size": codebook_size, "codebook_dim": 4 * ch, "reseed_every": 0, "init": "normal"},
            ),
        ),
        loss=LossConfig(gan_start=0, ramp_steps=1, max_weight=1e4),
        train=TrainConfig(max_steps=10_000, warmup_steps=0, clip_norm=None),
    )
    perceptual = LPIPS("vgg" if net == "vgg" else "squeeze", None).to(dtype)
    networks = {"lpips": perceptual}
    run = build_run(config, networks=networks, device=torch.device("cpu"), origin={"init_from": None}, frozen=())
    for module in (run.model, run.ema.model, run.discriminator, run.generator_loss):
        module.to(dtype)
    return run, perceptual


def check_gradients() -> float:
    """Largest difference of any gradient of either player, relative to the largest gradient, in float64."""
    run, perceptual = make_run(
        image_size=32, ch=32, ch_mult=[1, 2], codebook_size=64, net="squeeze", dtype=torch.float64
    )
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    ours: dict[str, Tensor] = {}
    players = {"model": run.model, "discriminator": run.discriminator}

    def keep(_: object, *__: object) -> None:
        for player, module in players.items():
            ours.update({f"{player}.{n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    run.optimizer_g.register_step_pre_hook(keep)
    before = {player: {n: p.detach().clone() for n, p in m.named_parameters()} for player, m in players.items()}
    Trainer(run, Accelerator(cpu=True)).train_step([images])
    with torch.no_grad():
        for player, module in players.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(before[player][name])
    UsualStep(run, perceptual, Habits()).backward(images)
    worst = largest = 0.0
    for player, module in players.items():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            worst = max(worst, float((parameter.grad - ours[f"{player}.{name}"]).abs().max()))
            largest = max(largest, float(parameter.grad.abs().max()))
    return worst / largest


class Bench:
    """All variants of the step, built twice: once in each memory layout.

    Args:
        keep_memory: whether this process keeps freed memory.   batch, codebook_size: of the step.
    """

    def __init__(self, *, keep_memory: bool, batch: int, codebook_size: int) -> None:
        if keep_memory:
            keep_freed_memory()
        usual_run, usual_perceptual = self._build(torch.contiguous_format, codebook_size)
        run, perceptual = self._build(torch.channels_last, codebook_size)
        trainer = Trainer(run, Accelerator(cpu=True))
        images = torch.rand(batch, 3, 128, 128) * 2 - 1
        packed = images.contiguous(memory_format=torch.channels_last)
        self.variants: dict[str, Callable[[], object]] = {
            "ours": lambda: trainer.train_step([packed]),
            "usual": lambda: UsualStep(usual_run, usual_perceptual, Habits())(images),
            "layout": lambda: UsualStep(run, perceptual, Habits())(packed),
        }
        for habit in Habits.__dataclass_fields__:
            step = UsualStep(usual_run, usual_perceptual, replace(Habits(), **{habit: False}))
            self.variants[habit] = lambda step=step: step(images)  # type: ignore[misc]  # mypy infers no default of a lambda

    @staticmethod
    def _build(layout: torch.memory_format, codebook_size: int) -> tuple[Run, LPIPS]:
        run, perceptual = make_run(
            image_size=128, ch=64, ch_mult=[1, 1, 2, 2, 4], codebook_size=codebook_size, net="vgg", dtype=torch.float32
        )
        for module in (run.model, run.discriminator, perceptual):
            module.to(memory_format=layout)
        for optimizer in (run.optimizer_g, run.optimizer_d):
            for group in optimizer.param_groups:
                group["fused"] = layout == torch.channels_last
        return run, perceptual

    def seconds(self, variant: str) -> float:
        """Time one step."""
        begin = time.perf_counter()
        self.variants[variant]()
        return time.perf_counter() - begin


def serve(pipe: Connection, keep_memory: bool, batch: int, codebook_size: int) -> None:
    """Time the variants that are asked for, in a process of its own."""
    bench = Bench(keep_memory=keep_memory, batch=batch, codebook_size=codebook_size)
    for variant in iter(pipe.recv, None):
        pipe.send(bench.seconds(variant))


SHOWN = {
    "ours": (True, "ours"),
    "usual": (False, ""),
    "second_forward": (False, "usual, but one autoencoder forward per step"),
    "second_lpips": (False, "usual, but no second LPIPS evaluation"),
    "two_walks": (False, "usual, but gradients at the reconstruction walked once"),
    "live_discriminator": (False, "usual, but discriminator frozen in the generator's pass"),
    "dense_search": (False, "usual, but chunked code search"),
    "layout": (False, "usual, but channels_last and fused optimizers"),
    "usual, memory kept": (True, "usual, but freed memory kept"),
    "ours, memory returned": (False, "ours, but freed memory returned to the system"),
}
"""Rows of the table: whether the process keeps freed memory, and what it is called."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare gradients in float64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--codebook-size", type=int, default=16384)
    options = parser.parse_args()
    print(f"largest gradient difference, float64: {check_gradients():.1e} of the largest gradient")
    if options.check:
        return

    context = torch.multiprocessing.get_context("spawn")
    servers: dict[bool, Connection] = {}
    for keep_memory in (False, True):
        servers[keep_memory], theirs = context.Pipe()
        context.Process(
            target=serve, args=(theirs, keep_memory, options.batch, options.codebook_size), daemon=True
        ).start()
    seconds: dict[str, list[float]] = {row: [] for row in SHOWN}
    for number in range(options.rounds + 1):  # the first round warms up
        for row, (keep_memory, _) in SHOWN.items():
            servers[keep_memory].send(row.partition(",")[0])
            taken = servers[keep_memory].recv()
            if number:
                seconds[row].append(taken)
    for server in servers.values():
        server.send(None)

    usual = statistics.median(seconds["usual"])
    print(
        f"f16, width 64, 128 px, batch {options.batch}, K={options.codebook_size:,}, {torch.get_num_threads()} threads,"
    )
    print(f"median of {options.rounds} rounds; a step of the usual kind = 1")
    for row, (_, text) in SHOWN.items():
        if text:
            print(f"  {text:56} {statistics.median(seconds[row]) / usual:6.3f}")
    ratios = [a / b for a, b in zip(seconds["usual"], seconds["ours"], strict=True)]
    print(
        f"usual / ours, round by round: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
