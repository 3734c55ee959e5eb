"""Assignment of vectors to codes by scores, and gradients through soft assignments to all codes.

    scores = z W^T + b,   p = softmax((scores + noise) / temperature)

The (N, K) scores never exist at once: a few rows are made at a time, and made again in the backward pass. Everything is
one operator to torch.compile, out of reach of matmul precision settings, and never waits for the device.

Shapes: z (N, D); weight W, table (K, D); bias b (K,); indices (N,) int64; temperature (); seed () int64 on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.precision import full_precision
from vqgan.quantizers.search import BUDGET_BYTES, nearest

_BUFFERS = 3  # of (rows, K): two that are alive at once, and one for what torch allocates within
_CPU_ROWS = 256  # more would only leave the cache
_SMALLEST = -60.0  # log p; e^-60 is nothing beside 1 in float64 too, and a CPU takes ten times as long to underflow


def best_match(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Code with the highest score, (N,) int64; the answer for one vector does not depend on the others.

    With one more coordinate all codes lie on a sphere, where the largest product is the smallest distance; so this is
    `nearest`, with its guarantees. Scores that differ by less than some 1e-7 of the largest code may change places.
    """
    z, weight = z.detach(), weight.detach()
    if bias is not None:
        z, weight = F.pad(z, (0, 1), value=1.0), torch.cat([weight, bias.detach()[:, None]], dim=1)
    squares = weight.square().sum(1, keepdim=True)
    radius = squares.amax().sqrt()
    lifted = torch.cat([weight, (radius.square() - squares).clamp(min=0).sqrt()], dim=1)  # (K, D + 1)
    return nearest(F.pad(F.normalize(z, dim=1) * radius, (0, 1)), lifted)


def sample(z: Tensor, weight: Tensor, bias: Tensor, *, budget_bytes: int = BUDGET_BYTES) -> tuple[Tensor, Tensor]:
    """A code drawn with probability softmax(scores), by the Gumbel-max trick; the random numbers are the global ones.

    Returns:
        indices (N,), and the seed () of the noise, for `soft_rows`.
    """
    indices, seed = _sample(z.detach(), weight.detach(), bias.detach(), budget_bytes)
    return indices, seed


def soft_rows(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    indices: Tensor,
    *,
    temperature: Tensor,
    seed: Tensor | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """Rows `table[indices]`, (N, D), whose gradient is that of (one_hot + p - sg(p)) @ table.

    Args:
        z, weight, bias: what p is made of.   table: what the rows are taken from; it may be `weight`.
        indices: the one-hot positions.
        temperature: of p.   seed: of the Gumbel noise, from `sample`; None: no noise.
        budget_bytes: memory for the scores of some rows; one row is made at a time however low it is.
    """
    rows: Tensor = _soft_rows(z, weight, bias, table, indices, temperature, seed, budget_bytes)
    return rows


def entropies(
    z: Tensor, weight: Tensor, bias: Tensor, *, temperature: Tensor, budget_bytes: int = BUDGET_BYTES
) -> tuple[Tensor, Tensor]:
    """Entropies of p without noise, in nats: their mean over the vectors, and that of the mean p; both ()."""
    each, mean, _ = _entropies(z, weight, bias, temperature, budget_bytes)
    return each, mean


# --- sampling


@torch.library.custom_op("vqgan::sample", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _sample(z: Tensor, weight: Tensor, bias: Tensor, budget_bytes: int) -> tuple[Tensor, Tensor]:
    seed = torch.randint(2**62, ())  # on the CPU, so nobody waits
    noise = _noise(seed, z)
    with _exact(z):
        parts = [_scores(z[part], weight, bias, noise=noise).argmax(1) for part in _parts(z, weight, budget_bytes)]
    return torch.cat(parts) if parts else z.new_empty(0, dtype=torch.int64), seed


@_sample.register_fake
def _(z: Tensor, weight: Tensor, bias: Tensor, budget_bytes: int) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=torch.int64), torch.empty((), dtype=torch.int64)


# --- rows


@torch.library.custom_op("vqgan::soft_rows", mutates_args=())
def _soft_rows(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    indices: Tensor,
    temperature: Tensor,
    seed: Tensor | None,
    budget_bytes: int,
) -> Tensor:
    return F.embedding(indices, table) + (z - z).sum(1, keepdim=True)  # 0, or not a number where z is not finite


@_soft_rows.register_fake
def _(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    indices: Tensor,
    temperature: Tensor,
    seed: Tensor | None,
    budget_bytes: int,
) -> Tensor:
    return table.new_empty(z.shape[0], table.shape[1])


@torch.library.custom_op("vqgan::soft_rows_backward", mutates_args=())
def _soft_rows_backward(
    grad: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    indices: Tensor,
    temperature: Tensor,
    seed: Tensor | None,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads, noise = _Gradients(z, weight, bias), _noise(seed, z)
    with _exact(z):
        for part in _parts(z, weight, budget_bytes):
            p = _shares(_scores(z[part], weight, bias, noise=noise).div_(temperature))[0]
            pull = grad[part] @ table.T  # (rows, K), d loss / d one_hot
            grads.add(part, _through_softmax_(p, pull).div_(temperature))
            del p, pull  # before the next ones are made
    return grads.z, grads.weight, grads.bias, torch.zeros_like(table).index_add_(0, indices, grad)


@_soft_rows_backward.register_fake
def _(
    grad: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    indices: Tensor,
    temperature: Tensor,
    seed: Tensor | None,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(table)


def _keep_soft_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.budget_bytes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_soft_rows(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = _soft_rows_backward(grad.contiguous(), *ctx.saved_tensors, ctx.budget_bytes)
    return *grads, None, None, None, None


_soft_rows.register_autograd(_differentiate_soft_rows, setup_context=_keep_soft_rows)


# --- entropies


@torch.library.custom_op("vqgan::entropies", mutates_args=())
def _entropies(
    z: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, budget_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    total, mean = z.new_zeros(()), torch.zeros_like(bias)  # (), (K,)
    with _exact(z):
        for part in _parts(z, weight, budget_bytes):
            p, log_p = _shares(_scores(z[part], weight, bias).div_(temperature))
            mean += p.sum(0)
            total -= p.mul_(log_p).sum()
            del p, log_p  # before the next ones are made
    mean /= z.shape[0]
    return total / z.shape[0], torch.special.entr(mean).sum(), mean


@_entropies.register_fake
def _(z: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, budget_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), z.new_empty(()), torch.empty_like(bias)


@torch.library.custom_op("vqgan::entropies_backward", mutates_args=())
def _entropies_backward(
    grad_each: Tensor,
    grad_mean: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    mean: Tensor,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _Gradients(z, weight, bias)
    log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    with _exact(z):
        for part in _parts(z, weight, budget_bytes):
            p, pull = _shares(_scores(z[part], weight, bias).div_(temperature))
            pull.mul_(-grad_each).sub_(grad_mean * log_mean)  # from log p to N d loss / d p, but for a constant
            grads.add(part, _through_softmax_(p, pull).div_(temperature * z.shape[0]))
            del p, pull  # before the next ones are made
    return grads.z, grads.weight, grads.bias


@_entropies_backward.register_fake
def _(
    grad_each: Tensor,
    grad_mean: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    mean: Tensor,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(weight), torch.empty_like(bias)


def _keep_entropies(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.budget_bytes = inputs
    ctx.save_for_backward(*tensors, output[2])


def _differentiate_entropies(ctx: Any, grad_each: Tensor, grad_mean: Tensor, _: Tensor) -> tuple[Any, ...]:
    grads = _entropies_backward(grad_each, grad_mean, *ctx.saved_tensors, ctx.budget_bytes)
    return *grads, None, None


_entropies.register_autograd(_differentiate_entropies, setup_context=_keep_entropies)


# --- some rows at a time


@contextmanager
def _exact(z: Tensor) -> Iterator[None]:
    """Products in the type of z, whatever the switches of the process say; a backward pass may run under autocast."""
    with torch.autocast(z.device.type, enabled=False), full_precision():
        yield


class _Gradients:
    """Gradients of z, weight and bias, summed up from those of the scores."""

    def __init__(self, z: Tensor, weight: Tensor, bias: Tensor) -> None:
        self._inputs = z, weight
        self.z, self.weight, self.bias = torch.empty_like(z), torch.zeros_like(weight), torch.zeros_like(bias)

    def add(self, part: slice, scores_grad: Tensor) -> None:
        """Rows `part`, with their gradients (rows, K)."""
        z, weight = self._inputs
        torch.mm(scores_grad, weight, out=self.z[part])
        self.weight.addmm_(scores_grad.T, z[part])
        self.bias += scores_grad.sum(0)


def _parts(z: Tensor, weight: Tensor, budget_bytes: int) -> Iterator[slice]:
    """Rows of z whose scores fit the budget; forward and backward meet the same ones, and so the same noise."""
    rows = max(1, budget_bytes // (_BUFFERS * len(weight) * z.element_size()))
    if z.device.type == "cpu":
        rows = min(rows, _CPU_ROWS)
    return (slice(start, start + rows) for start in range(0, len(z), rows))


def _scores(z: Tensor, weight: Tensor, bias: Tensor, *, noise: torch.Generator | None = None) -> Tensor:
    """(rows, K), with the next numbers of the noise."""
    scores = torch.addmm(bias, z, weight.T)
    if noise is not None:
        uniform = torch.empty_like(scores).uniform_(generator=noise)  # `exponential_` takes ten times as long on a CPU
        scores -= uniform.log_().neg_().log_()  # Gumbel(0, 1); -inf, never chosen, at 0
    return scores


def _noise(seed: Tensor | None, z: Tensor) -> torch.Generator | None:
    return None if seed is None else torch.Generator(z.device).manual_seed(int(seed))


def _shares(scores: Tensor) -> tuple[Tensor, Tensor]:
    """p and log p, (rows, K) both; the latter is written over the scores."""
    log_p = scores.sub_(scores.amax(1, keepdim=True)).clamp_(min=_SMALLEST)
    p = log_p.exp()
    total = p.sum(1, keepdim=True)
    return p.div_(total), log_p.sub_(total.log())


def _through_softmax_(p: Tensor, pull: Tensor) -> Tensor:
    """d loss / d log-odds (rows, K) from p and d loss / d p, written over the latter."""
    pull.mul_(p)
    return pull.addcmul_(p, pull.sum(1, keepdim=True), value=-1.0)
