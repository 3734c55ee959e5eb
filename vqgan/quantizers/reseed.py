"""Dead entries of a codebook: which they are, and how they are replaced; reseed_policies.py says by what.

Everything is equal on all processes, and nothing waits for the device.
Shapes: hits, dead, replaced (K,); vectors (N, D) of this process; pool (M, D).
"""

import hashlib

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.collectives import gather_rows, process_count
from vqgan.quantizers.usage import perplexity

NEVER = -(2**40)  # last_hit_step of an entry that was never chosen


class CodeHealth(nn.Module):
    """How often each entry is chosen, and when the dead ones are due for a re-seed. It holds counts, no codebook.

    Args:
        codebook_size: K, the number of entries.
        every: updates between two re-seeds; 0 switches re-seeding off.
        threshold: an entry is dead below this share of the uniform hit rate 1/K.
        max_share: most entries replaced at once, as a share of K (at least one entry).
        stop: share of the run after which no entry is replaced.
        usage_window: updates an entry counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    hit_rate: Tensor
    last_hit_step: Tensor
    reseeded: Tensor

    def __init__(
        self, codebook_size: int, *, every: int, threshold: float, max_share: float, stop: float, usage_window: int
    ) -> None:
        super().__init__()
        check(every >= 0, "reseed_every", every, "a number of updates, or 0 for no re-seeding")
        check(0 <= threshold < 1, "reseed_threshold", threshold, "a share in [0, 1)")
        check(0 < max_share <= 1, "reseed_max_share", max_share, "a share in (0, 1]")
        check(0 <= stop <= 1, "reseed_stop", stop, "a share in [0, 1]")
        check(usage_window >= 1, "usage_window", usage_window, "1 or more")
        self.every, self.stop, self.usage_window = every, stop, usage_window
        self.max_rows = max(1, int(max_share * codebook_size))
        self.uniform_rate = 1 / codebook_size
        self.dead_rate = threshold * self.uniform_rate
        self.register_buffer("hit_rate", torch.full((codebook_size,), self.uniform_rate), persistent=False)
        self.register_buffer("last_hit_step", torch.full((codebook_size,), NEVER), persistent=False)
        self.register_buffer("reseeded", torch.zeros((), dtype=torch.int64), persistent=False)

    def record(self, hits: Tensor, total: int, *, step: int) -> dict[str, Tensor]:
        """Count one update.

        Args:
            hits: (K,), how often each entry was chosen.   total: their sum, over all processes both.
            step: number of the update, from 0.

        Returns:
            perplexity of this batch, usage (share of entries chosen within the window) and dead (entries).
        """
        # The memory of the running rate, in updates: short at first, while the encoder moves fast; longer later, so
        # that entries for rare images outlive batches without them; and always enough to expect ten hits of an
        # average entry, or chance would call entries dead.
        memory = max(min(max(step / 20, 10), 100), 10 / (self.uniform_rate * total))
        self.hit_rate.lerp_(hits / total, 1 / memory)
        self.last_hit_step.masked_fill_(hits > 0, step)
        usage = (self.last_hit_step > step - self.usage_window).float().mean()
        return {"perplexity": perplexity(hits), "usage": usage, "dead": self.dead.sum()}

    @property
    def dead(self) -> Tensor:
        """(K,) bool."""
        return self.hit_rate < self.dead_rate

    def is_due(self, step: int, max_steps: int) -> bool:
        """Whether dead entries are replaced after update `step` of a run of `max_steps` updates."""
        return self.every > 0 and (step + 1) % self.every == 0 and step < self.stop * max_steps

    def forget(self, replaced: Tensor) -> None:
        """Start the counts of replaced entries, (K,) bool, anew: alive until shown otherwise, but not yet used."""
        self.hit_rate.masked_fill_(replaced, self.uniform_rate)
        self.last_hit_step.masked_fill_(replaced, NEVER)
        self.reseeded += replaced.sum()


def draw_vectors(vectors: Tensor, count: int, *, seed: int, purpose: str) -> Tensor:
    """Vectors drawn uniformly, at distinct positions, from those of all processes.

    Args:
        vectors: (N, D) of this process; N is the same on all.
        count: how many are wanted; no more come than there are.
        seed: of the run.   purpose: what the draw is for, such as "reseed/100"; another one is another draw.

    Returns:
        (min(count, processes * N), D), the same on all processes, and for one process with all the vectors.
    """
    positions = torch.randperm(process_count() * len(vectors), generator=host_generator(seed, purpose))
    return gather_rows(vectors, positions[:count])


def host_generator(seed: int, purpose: str) -> torch.Generator:
    """Random numbers as a pure function of (seed, purpose), on the CPU."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def replace_rows(rows: Tensor, wanted: Tensor, pool: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Give the first M wanted rows the M vectors of the pool, in order.

    Args:
        rows: (K, D).   wanted: (K,) bool, at any number of places.   pool: (M, D).
        valid: (M,) bool; a row whose turn meets a vector that is not valid stays as it is. Default: all are.

    Returns:
        The rows with replacements (K, D), and which were replaced (K,) bool.
    """
    turn = wanted.cumsum(0) - 1  # the n-th wanted row takes vector n; indexing by a mask would wait for its count
    place = turn.clamp(0, len(pool) - 1)
    replaced = wanted & (turn < len(pool))
    if valid is not None:
        replaced &= valid[place]
    return torch.where(replaced[:, None], pool[place], rows), replaced


def reset_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, replaced: Tensor) -> None:
    """Zero what the optimizer remembers of replaced rows, such as Adam's two moments.

    Args:
        optimizer: the one that trains `parameter`; nothing happens if it does not, or has not stepped yet.
        parameter: (K, D).   replaced: (K,) bool.
    """
    if parameter not in optimizer.state:
        return
    for value in optimizer.state[parameter].values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(replaced[:, None], 0.0)


def check(ok: bool, key: str, value: object, expected: str) -> None:
    """Refuse an argument of a quantizer.

    Raises:
        UserError: not `ok`.
    """
    if not ok:
        raise UserError(f"{key} of the quantizer is {value!r}; expected {expected}.")
