"""One update of both players.

    images -> model -> generator loss -> one backward -> discriminator loss -> backward -> verdict -> updates

Shapes: images, recon (B, C, H, W) in [-1, 1]; z (B, D, h, w); indices (B, h, w). B is one process's micro-batch.

Both gradients are taken before either player moves: the discriminator's loss needs only the old reconstruction. So
one verdict over all processes, and one wait for the device, decide whether the step changes anything at all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from losses.augment import Draw
from losses.generator import GeneratorGradient
from losses.input_gradient import input_gradient, twice_differentiable
from vqgan.errors import UserError
from vqgan.model import VQGANOutput, evaluating
from vqgan.quantizers.grids import concatenate, detach, parts_of
from vqgan.quantizers.reseed import reset_moments
from vqgan.training.critic import Critic
from vqgan.training.processes import agree_on_worst, all_agree, wrap
from vqgan.training.run import Run
from vqgan.training.schedules import gan_factor, learning_rate
from vqgan.training.terms import used_terms

Item = TypeVar("Item")
Logs = dict[str, Tensor]
CODE_TERMS = {"commitment_loss": "commit", "codebook_loss": "codebook"}
"""Shorter names of what a quantizer logs."""
RARE = frozenset(
    {f"loss/{name}" for name in ("r1", "r2", "gradient_penalty", "input_gradient")}
    | {f"adaptive_weight/{name}" for name in ("raw", "rec_norm", "gan_norm", "gan_share")}
)
"""Logs that not every step computes; in between, their newest values stand."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """Outcome of one step; logs are detached scalars on the device, local to this process."""

    status: Literal["done", "skipped", "overflow"]
    logs: Logs
    signal: int


class Trainer:
    """Trains the networks of a run.

    Args:
        run: the state to train; its bare networks stay the owners of all weights.
        accelerator: device and processes.
    """

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        if run.config.train.compile:  # before wrapping, and in place: key names stay as they are
            run.model.compile()
            run.discriminator.compile()
        self.model = wrap(run.model, accelerator)
        self.discriminator = wrap(run.discriminator, accelerator)
        self.critic = Critic(
            run.discriminator, self.discriminator, run.discriminator_loss, run.config.loss, self._autocast
        )
        self.seed = run.config.run.seed
        outside = [buffer for name, buffer in run.model.named_buffers() if not name.startswith("quantize.")]
        self.statistics = [*outside, *run.discriminator.buffers()]
        """What a forward pass may change, such as BatchNorm's running means; a quantizer changes in `update` alone."""

    def train_step(self, micro_batches: Sequence[Tensor], *, signal: int = 0) -> StepResult:
        """Update the generator and the discriminator on one global batch.

        Args:
            micro_batches: this process's share, (B, C, H, W) each in [-1, 1].
            signal: number of a signal this process has received, or 0; the largest over all processes is returned.

        Returns:
            The outcome: "skipped" if a loss or gradient was not finite on any process (nothing but the step counter
            changed), "overflow" if a float16 loss scale was too large (nothing changed; show the same batch again).
        """
        run = self.run
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self._seed(0)  # no generator state survives a step
        draws = self.critic.draw(micro_batches, rank=rank, processes=processes)
        self._seed(1 + rank)  # dropout and label noise differ between processes
        train_disc = self._set_learning_rates()
        statistics = [buffer.clone() for buffer in self.statistics]

        # Generator: reconstruct, and fool the discriminator.
        outputs, gradients, logs_g = [], [], []
        for (images, draw), last in _with_last(list(zip(micro_batches, draws, strict=True))):
            with self._sync_if(last, self.model):
                output, gradient, logs = self._generator_backward(images, draw, len(micro_batches))
            outputs.append(output)
            gradients.append(gradient)
            logs_g.append(logs)

        # Discriminator: tell the images from their reconstructions.
        logs_d = []
        if train_disc:
            scale = run.scaler_d.scale / len(micro_batches)
            for (images, output, draw), last in _with_last(list(zip(micro_batches, outputs, draws, strict=True))):
                with self._sync_if(last, self.discriminator):
                    logs_d.append(self.critic.backward(images, output.recon, draw, step=run.step, scale=scale))

        # Nobody moves unless everything is finite everywhere.
        logs = _mean(logs_g) | _mean(logs_d)
        logs["grad_norm/g"] = self._unscaled_norm(run.optimizer_g, run.scaler_g.unscale)
        if train_disc:
            logs["grad_norm/d"] = self._unscaled_norm(run.optimizer_d, run.scaler_d.unscale)
        status, signal = self._verdict(logs, signal, train_disc)
        if status == "done":
            run.optimizer_g.step()
            if train_disc:
                run.optimizer_d.step()
                run.discriminator.update()
                run.discriminator_loss.update(logs["disc/logits_real"], logs["disc/logits_fake"])
            logs |= self._update_codebook(outputs)
            run.ema.update(run.model, run.step + 1)
            run.generator_loss.update(*gradients)
            run.rare = {name: value for name, value in (run.rare | logs).items() if name in RARE}
            logs = run.rare | logs
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)
        run.optimizer_g.zero_grad(set_to_none=True)
        run.optimizer_d.zero_grad(set_to_none=True)
        if status != "overflow":
            run.step += 1
        return StepResult(status, logs, signal)

    @torch.no_grad()
    def initialise_codebook(self, micro_batches: Sequence[Tensor]) -> None:
        """Place the codes on encoder outputs of the first global batch (all processes, all micro-batches).

        Raises:
            UserError: on all processes, if an output is not finite on any of them; the codes are as they were.
        """
        quantizer = self.run.model.quantize
        for _ in range(quantizer.depth if quantizer.needs_data_init else 0):
            with self._autocast(), evaluating(self.run.model):  # without dropout, as the codes will be used
                z = concatenate([self.run.model.encode_z(images) for images in micro_batches])
            if not all_agree(all(bool(torch.isfinite(level).all()) for level in parts_of(z))):
                raise UserError(
                    "The encoder's output for the first batch holds NaN or infinity, and the codebook would start from "
                    "it. Look at the images with `vqgan check-data`, and try train.precision=fp32."
                )
            quantizer.initialise(z, seed=self.seed)
            self.run.ema.model.load_state_dict(self.run.model.state_dict())

    @torch.no_grad()
    def initialise_discriminator(self, micro_batches: Sequence[Tensor]) -> None:
        """Place what starts from data in the discriminator on the first global batch.

        Raises:
            UserError: on all processes, if a statistic is not finite.
        """
        if self.run.config.loss.disc_weight > 0 and self.run.discriminator.needs_data_init:
            self.run.discriminator.initialise(torch.cat(list(micro_batches)))

    def _generator_backward(
        self, images: Tensor, draw: Draw, accumulate: int
    ) -> tuple[VQGANOutput, GeneratorGradient, Logs]:
        run, steepness = self.run, self._input_gradient_weight()
        seen = images.detach().requires_grad_() if steepness > 0 else images
        with self._autocast(), twice_differentiable() if steepness > 0 else nullcontext():
            output: VQGANOutput = self.model(seen)
        factor = self._gan_factor()
        with self.critic.judging(draw) as judge:
            gradient: GeneratorGradient = run.generator_loss(
                images,
                output.recon,
                features=output.features,
                last_layer=run.model.last_layer,
                discriminator=judge if factor > 0 else None,
                gan_factor=factor,
                refresh=self._weight_is_due(),
            )
        scale = run.scaler_g.scale / accumulate
        roots = [(output.recon, (gradient.recon_grad * scale).to(output.recon.dtype))]
        roots += [(output.quantized.loss, torch.full_like(output.quantized.loss, scale))]
        logs = dict(gradient.logs)
        if steepness > 0:
            penalty = input_gradient(seen, output.recon, used_terms(run.config.loss))
            roots += [(penalty, torch.full_like(penalty, scale * steepness))]
            logs |= {"loss/input_gradient": penalty.detach()}
            logs["loss/total"] = logs["loss/total"] + steepness * penalty.detach()
        roots = [(root, grad) for root, grad in roots if root.requires_grad]
        torch.autograd.backward([root for root, _ in roots], [grad for _, grad in roots])

        quantized = output.quantized
        logs["loss/total"] = logs["loss/total"] + quantized.loss.detach()
        parts = {name: value for name, value in quantized.logs.items() if name != "perplexity"}  # `update` gives it
        logs |= {f"loss/{CODE_TERMS.get(name, name)}": value for name, value in parts.items()}
        detached = quantized._replace(z_q=detach(quantized.z_q), loss=quantized.loss.detach())
        return output._replace(recon=output.recon.detach(), quantized=detached), gradient, logs

    def _unscaled_norm(self, optimizer: torch.optim.Optimizer, unscale: Callable[[Sequence[Tensor]], None]) -> Tensor:
        """Norm of a player's gradient before clipping; DDP has already averaged it over the processes."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        unscale(parameters)
        limit = self.run.config.train.clip_norm
        return nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)

    def _verdict(self, logs: Logs, signal: int, train_disc: bool) -> tuple[Literal["done", "skipped", "overflow"], int]:
        """Agree over all processes on what this step may change. The only wait for the device."""
        run = self.run
        losses = [logs["loss/total"]] + ([logs["loss/d"]] if train_disc else [])
        norms = [logs["grad_norm/g"]] + ([logs["grad_norm/d"]] if train_disc else [])
        bad = ~torch.isfinite(torch.stack([value.float() for value in losses + norms]))
        flags = agree_on_worst(torch.cat([bad.float(), bad.new_full((1,), signal, dtype=torch.float32)]))
        bad_losses, bad_norms, signal = flags[: len(losses)], flags[len(losses) : -1], int(flags[-1])
        scalers = [run.scaler_g, run.scaler_d][: len(norms)]
        overflowed = [bool(flag) and scaler.can_shrink() for flag, scaler in zip(bad_norms, scalers, strict=True)]
        if any(overflowed) and not any(bad_losses):
            for scaler, overflow in zip(scalers, overflowed, strict=True):
                if overflow:
                    scaler.update(overflow=True)
            return "overflow", signal
        if any(bad_losses) or any(bad_norms):
            run.skipped += 1
            run.skipped_in_a_row += 1
            return "skipped", signal
        for scaler in scalers:
            scaler.update(overflow=False)
        run.skipped_in_a_row = 0
        return "done", signal

    @torch.no_grad()
    def _update_codebook(self, outputs: Sequence[VQGANOutput]) -> Logs:
        """Usage, EMA and re-seeding of the codebook, identical on all processes."""
        run, quantizer = self.run, self.run.model.quantize
        z = concatenate([output.z for output in outputs])
        indices = concatenate([output.quantized.indices for output in outputs])
        update = quantizer.update(z, indices, step=run.step, seed=self.seed, max_steps=int(run.config.train.max_steps))
        for name, rows in update.replaced.items():
            parameter = quantizer.get_parameter(name)
            reset_moments(run.optimizer_g, parameter, rows)
            run.ema.copy_rows(f"quantize.{name}", parameter, rows)
        return {f"codebook/{name}": value for name, value in update.logs.items()}

    def _seed(self, purpose: int) -> None:
        torch.manual_seed((self.seed * 1_000_003 + self.run.step + purpose * 2_000_003_000_009) % 2**63)

    def _set_learning_rates(self) -> bool:
        """Set both rates for this step; returns whether the discriminator learns in it."""
        run, train, loss = self.run, self.run.config.train, self.run.config.loss
        peaks = ((run.optimizer_g, train.lr), (run.optimizer_d, train.disc_lr or train.lr))
        for optimizer, peak in peaks:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    run.step,
                    peak=peak,
                    max_steps=int(train.max_steps),
                    warmup_steps=int(train.warmup_steps),
                    schedule=train.schedule,
                    min_share=train.min_lr_share,
                )
        return loss.disc_weight > 0 and run.step >= int(loss.disc_start)

    def _gan_factor(self) -> float:
        loss = self.run.config.loss
        if loss.disc_weight == 0:
            return 0.0
        return gan_factor(self.run.step, gan_start=int(loss.gan_start), ramp_steps=int(loss.ramp_steps))

    def _input_gradient_weight(self) -> float:
        """Weight of the penalty in this step: lazy, as those of the discriminator."""
        loss, every = self.run.config.loss, self.run.config.loss.regularise.penalty_every
        return loss.input_gradient * every if self.run.step % every == 0 else 0.0

    def _weight_is_due(self) -> bool:
        """Whether the adaptive weight is computed anew: every so many steps, and after a skipped one."""
        loss = self.run.config.loss
        return (self.run.step - int(loss.gan_start)) % loss.adaptive_every == 0 or self.run.skipped_in_a_row > 0

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = DTYPES[self.run.config.train.precision]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=dtype)

    def _sync_if(self, last: bool, module: nn.Module) -> AbstractContextManager[None]:
        """Share gradients once per update: with the last micro-batch."""
        no_sync: Callable[[], AbstractContextManager[None]] | None = getattr(module, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()


def _with_last(items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
    for position, item in enumerate(items):
        yield item, position == len(items) - 1


def _mean(logs: Sequence[Logs]) -> Logs:
    """Mean over micro-batches, so that a logged loss belongs to the whole batch."""
    return {name: torch.stack([entry[name] for entry in logs]).mean() for name in logs[0]} if logs else {}
