"""Vector quantization with a learned codebook.

Shapes: z, z_q (B, D, h, w); indices (B, h, w) int64; vectors (N, D) with N = B*h*w; codebook (K, D); per entry (K,).
"""

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.base import QuantizerOutput, QuantizerUpdate
from vqgan.quantizers.collectives import process_count, sum_over_processes
from vqgan.quantizers.entropy import codebook_entropies
from vqgan.quantizers.estimators import ESTIMATORS
from vqgan.quantizers.reseed import check, draw_vectors, host_generator, replace_rows
from vqgan.quantizers.search import nearest
from vqgan.quantizers.tokens import TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity

Gradient = Literal["straight_through", "rotation"]
Learning = Literal["gradient", "ema"]
Distance = Literal["euclidean", "cosine"]
Init = Literal["data", "normal", "uniform"]


class VectorQuantizer(TokenQuantizer):
    """Nearest codebook entry (VQ-VAE, arXiv:1711.00937, eq. 1-3), with re-seeding of dead entries.

    The cosine distance is the Euclidean one between unit vectors: z and entries are divided by their norms before
    the search, the losses and decoding (ViT-VQGAN, arXiv:2110.04627, sec. 3.2). z_q then is a unit vector, and the
    gradient passes the estimator to z / |z|, and from there to z.

    Beta of eq. 3 weighs the commitment term, as in the paper; taming-transformers by default weighs the other one.

    Everything is float32 (float64 after `.double()`), under autocast too. The state dict holds the codebook alone.
    While `frozen` is set, `update` counts but leaves the codebook as it is.

    Args:
        codebook_size: K, the number of entries.
        codebook_dim: D, the channels of one entry.
        commitment_weight: beta, the pull of the encoder towards its entry.
        gradient: how the gradient of z_q reaches z; names are the keys of ESTIMATORS.
        learning: gradient: by the codebook loss; ema: running means of the vectors assigned (appendix A.1).
        distance: euclidean or cosine.
        ema_decay: gamma of the running means.
        init: data: vectors of the first batch (the trainer calls `initialise`); normal: standard deviation D^-1/2,
            so norms are near 1; uniform: within +-1/K, as in taming-transformers.
        reseed_every: updates between two re-seeds of dead entries; 0 switches re-seeding off.
        reseed_threshold: an entry is dead below this share of the uniform hit rate 1/K.
        reseed_max_share: most entries replaced at once, as a share of K.
        reseed_stop: share of the run after which no entry is replaced.
        usage_window: updates an entry counts as used after it was last chosen.
        entropy_weight: of mean H(p(entry | z)) - H(mean p(entry | z)), with p = softmax(-distance^2 / temperature),
            over the vectors of a micro-batch of one process (VQGAN+, arXiv:2409.16211); 0 leaves the term out.
        entropy_temperature: of p, in units of squared distance.

    Raises:
        UserError: an argument is out of range.
    """

    growable = True
    learning_args: ClassVar[frozenset[str]] = frozenset(
        {
            "commitment_weight",
            "gradient",
            "learning",
            "ema_decay",
            "init",
            "reseed_every",
            "reseed_threshold",
            "reseed_max_share",
            "reseed_stop",
            "usage_window",
            "entropy_weight",
            "entropy_temperature",
        }
    )
    ema_count: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        codebook_dim: int = 32,
        commitment_weight: float = 0.25,
        gradient: Gradient = "rotation",
        learning: Learning = "gradient",
        distance: Distance = "euclidean",
        ema_decay: float = 0.99,
        init: Init = "data",
        reseed_every: int = 10,
        reseed_threshold: float = 0.1,
        reseed_max_share: float = 0.25,
        reseed_stop: float = 0.9,
        usage_window: int = 1000,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__(
            codebook_size,
            codebook_dim,
            usage_window=usage_window,
            reseed_every=reseed_every,
            reseed_threshold=reseed_threshold,
            reseed_max_share=reseed_max_share,
            reseed_stop=reseed_stop,
        )
        check(commitment_weight >= 0, "commitment_weight", commitment_weight, "0 or more")
        check(gradient in get_args(Gradient), "gradient", gradient, f"one of {', '.join(get_args(Gradient))}")
        check(learning in get_args(Learning), "learning", learning, f"one of {', '.join(get_args(Learning))}")
        check(distance in get_args(Distance), "distance", distance, f"one of {', '.join(get_args(Distance))}")
        check(0 <= ema_decay < 1, "ema_decay", ema_decay, "a share in [0, 1)")
        check(init in get_args(Init), "init", init, f"one of {', '.join(get_args(Init))}")
        check(entropy_weight >= 0, "entropy_weight", entropy_weight, "0 or more")
        check(entropy_temperature > 0, "entropy_temperature", entropy_temperature, "a number above 0")
        self.commitment_weight = commitment_weight
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.estimator = ESTIMATORS[gradient]
        self.learning, self.distance, self.init = learning, distance, init
        self.ema_decay = ema_decay

        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        if init == "uniform":
            nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        else:
            nn.init.normal_(self.embedding.weight, std=codebook_dim**-0.5)
        if learning == "ema":
            self.embedding.weight.requires_grad_(False)
            count = torch.full((codebook_size,), 1 / codebook_size)  # per vector of the batch, so the counts sum to 1
            self.register_buffer("ema_count", count, persistent=False)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w); training and evaluation do the same, and no state changes."""
        with torch.autocast(z.device.type, enabled=False):  # distances in bf16 pick wrong neighbours
            indices = self.encode(z)  # (B, h, w)
            z_q = self.decode(indices)  # (B, D, h, w)
            z = self._prepare(z)
            codebook_loss = F.mse_loss(z_q, z.detach())
            commitment_loss = F.mse_loss(z, z_q.detach())
            loss = self.commitment_weight * commitment_loss
            if self.learning == "gradient":
                loss = loss + codebook_loss
            logs = {
                "codebook_loss": codebook_loss.detach(),
                "commitment_loss": commitment_loss.detach(),
                "perplexity": perplexity(count_hits(indices, self.codebook_size)),
            }
            if self.entropy_weight > 0:
                vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
                sample, batch = codebook_entropies(vectors, self._codebook(), temperature=self.entropy_temperature)
                loss = loss + self.entropy_weight * (sample - batch)
                logs |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
            return QuantizerOutput(self.estimator(z, z_q), indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            return nearest(self._vectors(z), self._codebook()).view(z.shape[0], *z.shape[2:])

    def decode(self, indices: Tensor) -> Tensor:
        """Entries (B, D, h, w) of indices (B, h, w)."""
        rows = self.embedding(indices).to(self._dtype)  # (B, h, w, D)
        if self.distance == "cosine":
            rows = F.normalize(rows, dim=-1)
        return rows.permute(0, 3, 1, 2).contiguous()

    def codes(self) -> Tensor:
        """The codebook as z is compared with it, (K, D)."""
        return self._codebook().detach()

    @property
    def needs_data_init(self) -> bool:
        """Whether a fresh run starts with `initialise`."""
        return self.init == "data"

    @torch.no_grad()
    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Set the codebook to vectors drawn from those of all processes; all call it, with z (B, D, h, w).

        Where there are fewer vectors than entries, they repeat with a little noise.
        """
        self.embedding.weight.copy_(self._draw(z, self.codebook_size, seed=seed))

    @torch.no_grad()
    def grow(self, z: Tensor, *, kept: int, seed: int, share: float = 1.0) -> None:
        """Set the entries behind the first `kept`, 1 to K - 1, as `initialise` sets all; the first stay, to the bit.

        Args:
            z: (B, D, h, w).   kept: entries that stay.   seed: of the run.
            share: where the new ones lie on the way from the nearest kept entry, 0, to the vector drawn, 1. They are
                nearer to the vectors around them than any kept entry, however small it is.
        """
        rows = self._draw(z, self.codebook_size - kept, seed=seed)
        old = self.embedding.weight[:kept].to(self._dtype)
        if self.distance == "cosine":
            old = F.normalize(old, dim=1)
        self.embedding.weight[kept:].copy_(torch.lerp(old[nearest(rows, old)], rows, share))

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Learn from one optimizer update, after the optimizer has stepped: counts, running means, re-seeding.

        Called by all processes, with as many vectors each. Never waits for the device. The caller owns the optimizer:
        it hands `replaced` to `reset_moments`, and copies these rows into an averaged model.

        Args:
            z: (B, D, h, w), what this process quantized in this update, micro-batches concatenated in order.
            indices: (B, h, w), what came out.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.

        Returns:
            replaced rows of `embedding.weight` where a re-seed was due, and the logs perplexity (of the batch over all
            processes), usage (share of entries chosen within the last `usage_window` updates), dead and reseeded
            (entries, so far).
        """
        vectors = self._vectors(z)
        total = process_count() * len(vectors)
        counted = F.pad(vectors, (1, 0), value=1.0) if self.learning == "ema" else torch.ones_like(vectors[:, :1])
        sums = counted.new_zeros(self.codebook_size, counted.shape[1]).index_add_(0, indices.flatten(), counted)
        sum_over_processes(sums)  # (K, 1) hits, and in the columns behind them the sums of vectors
        if self.learning == "ema" and not self.frozen:
            self._average(sums[:, 0] / total, sums[:, 1:] / total)
        logs = self.health.record(sums[:, 0], total, step=step)
        replaced = {}
        if self.health.is_due(step, max_steps) and not self.frozen:
            pool = draw_vectors(vectors, self.health.max_rows, seed=seed, purpose=f"reseed/{step}")
            replaced["embedding.weight"] = self._reseed(pool)
        return QuantizerUpdate(replaced, logs | {"reseeded": self.health.reseeded.clone()})

    def _average(self, share: Tensor, means: Tensor) -> None:
        """Move entries to the running means of their vectors (VQ-VAE, arXiv:1711.00937, eq. 6-8).

        The running sum m_i is kept as N_i e_i. So a row that a re-seed has written or a file has brought leaves no
        stale sum behind, a row without vectors stays as it is to the bit, and no entry needs the Laplace smoothing of
        the official code, which draws rare ones towards 0.

        Args:
            share: (K,), n_i per vector of the batch.   means: (K, D), sum of the vectors of i per vector of the batch.
        """
        self.ema_count.lerp_(share, 1 - self.ema_decay)
        pull = (1 - self.ema_decay) / self.ema_count.clamp(min=torch.finfo(share.dtype).tiny)
        self.embedding.weight += pull[:, None] * (means - share[:, None] * self.embedding.weight)

    def _reseed(self, pool: Tensor) -> Tensor:
        """Overwrite dead entries by vectors of the pool (M, D), and forget their past; which they were, (K,) bool."""
        rows, replaced = replace_rows(self.embedding.weight, self.health.dead, pool)
        self.embedding.weight.copy_(rows)
        self.health.forget(replaced)
        if self.learning == "ema":
            self.ema_count.masked_fill_(replaced, 1 / self.codebook_size)
        return replaced

    def _draw(self, z: Tensor, count: int, *, seed: int) -> Tensor:
        """`count` vectors (count, D) of all processes; where there are fewer, they repeat with a little noise."""
        rows = draw_vectors(self._vectors(z), count, seed=seed, purpose="init")
        missing = count - len(rows)
        noise = torch.randn(missing, self.codebook_dim, generator=host_generator(seed, "init noise")).to(rows)
        repeats = rows[torch.arange(missing, device=rows.device) % len(rows)] + 0.1 * rows.std(0, correction=0) * noise
        return torch.cat([rows, repeats])

    def _codebook(self) -> Tensor:
        codebook = self.embedding.weight.to(self._dtype)
        return F.normalize(codebook, dim=1) if self.distance == "cosine" else codebook

    def _prepare(self, z: Tensor) -> Tensor:
        z = super()._prepare(z)
        return F.normalize(z, dim=1) if self.distance == "cosine" else z
