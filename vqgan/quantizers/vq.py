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
from vqgan.quantizers.reseed import check, replace_rows
from vqgan.quantizers.reseed_policies import POLICIES, Places, ReseedFrom, Scene, VectorQueue, halve
from vqgan.quantizers.search import nearest
from vqgan.quantizers.starts import kmeans, sample
from vqgan.quantizers.tokens import TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity

Gradient = Literal["straight_through", "rotation"]
Learning = Literal["gradient", "ema"]
Distance = Literal["euclidean", "cosine"]
Init = Literal["data", "kmeans", "normal", "uniform"]


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
        init: data: vectors of the first batch (the trainer calls `initialise`); kmeans: means of clusters of them, by
            direction if the distance is cosine; normal: standard deviation D^-1/2, so norms are near 1; uniform:
            within +-1/K, as in taming-transformers.
        kmeans_steps: rounds of k-means.
        reseed_every: updates between two re-seeds of dead entries; 0 switches re-seeding off.
        reseed_threshold: an entry is dead below this share of the uniform hit rate 1/K.
        reseed_max_share: most entries replaced at once, as a share of K.
        reseed_stop: share of the run after which no entry is replaced.
        reseed_from: where dead entries go, a key of POLICIES: batch: to vectors of this batch; queue: to vectors of the
            last batches; split: beside entries with many hits; nearest: to the nearest vectors of this batch.
        reseed_queue: vectors that the queue holds, of the last 32 updates; only `reseed_from: queue` has one.
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
            "kmeans_steps",
            "reseed_every",
            "reseed_threshold",
            "reseed_max_share",
            "reseed_stop",
            "reseed_from",
            "reseed_queue",
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
        kmeans_steps: int = 10,
        reseed_every: int = 10,
        reseed_threshold: float = 0.1,
        reseed_max_share: float = 0.25,
        reseed_stop: float = 0.9,
        reseed_from: ReseedFrom = "batch",
        reseed_queue: int = 4096,
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
        check(kmeans_steps >= 0, "kmeans_steps", kmeans_steps, "0 or more rounds")
        check(reseed_from in POLICIES, "reseed_from", reseed_from, f"one of {', '.join(POLICIES)}")
        check(reseed_queue >= 1, "reseed_queue", reseed_queue, "1 or more vectors")
        check(entropy_weight >= 0, "entropy_weight", entropy_weight, "0 or more")
        check(entropy_temperature > 0, "entropy_temperature", entropy_temperature, "a number above 0")
        self.commitment_weight = commitment_weight
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.estimator = ESTIMATORS[gradient]
        self.learning, self.distance, self.init = learning, distance, init
        self.ema_decay, self.kmeans_steps, self.reseed_from = ema_decay, kmeans_steps, reseed_from

        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        if init == "uniform":
            nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        else:
            nn.init.normal_(self.embedding.weight, std=codebook_dim**-0.5)
        if learning == "ema":
            self.embedding.weight.requires_grad_(False)
            count = torch.full((codebook_size,), 1 / codebook_size)  # per vector of the batch, so the counts sum to 1
            self.register_buffer("ema_count", count, persistent=False)
        self.queue = VectorQueue(reseed_queue, codebook_dim) if reseed_from == "queue" else None

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
        return self.init in ("data", "kmeans")

    @torch.no_grad()
    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Set the codebook to vectors of all processes, or to means of them; all call it, with z (B, D, h, w).

        Where there are fewer vectors than entries, they repeat with a little noise.
        """
        vectors, size, steps = self._vectors(z), self.codebook_size, self.kmeans_steps * (self.init == "kmeans")
        rows = kmeans(vectors, size, steps=steps, spherical=self.distance == "cosine", seed=seed)
        self.embedding.weight.copy_(rows)

    @torch.no_grad()
    def grow(self, z: Tensor, *, kept: int, seed: int, share: float = 1.0) -> None:
        """Set the entries behind the first `kept`, 1 to K - 1, to vectors drawn; the first stay, to the bit.

        Args:
            z: (B, D, h, w).   kept: entries that stay.   seed: of the run.
            share: where the new ones lie on the way from the nearest kept entry, 0, to the vector drawn, 1. They are
                nearer to the vectors around them than any kept entry, however small it is.
        """
        rows = sample(self._vectors(z), self.codebook_size - kept, seed=seed)
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
        if self.queue is not None and not self.frozen:
            self.queue.push(vectors, step=step, seed=seed)
        if self.health.is_due(step, max_steps) and not self.frozen:
            scene = Scene(vectors, indices.flatten(), self._codebook(), self.health, self.queue, step, seed)
            replaced["embedding.weight"] = self._reseed(POLICIES[self.reseed_from](scene))
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

    def _reseed(self, places: Places) -> Tensor:
        """Move dead entries to their places, and forget their past; which they were, (K,) bool."""
        rows, replaced = replace_rows(self.embedding.weight, self.health.dead, places.rows, places.valid)
        self.embedding.weight.copy_(rows)
        self.health.forget(replaced)
        if self.learning == "ema":
            self.ema_count.masked_fill_(replaced, 1 / self.codebook_size)
        if places.donors is not None:
            self.health.hit_rate.copy_(halve(self.health.hit_rate, places, replaced))
            if self.learning == "ema":
                self.ema_count.copy_(halve(self.ema_count, places, replaced))
        return replaced

    def _codebook(self) -> Tensor:
        codebook = self.embedding.weight.to(self._dtype)
        return F.normalize(codebook, dim=1) if self.distance == "cosine" else codebook

    def _prepare(self, z: Tensor) -> Tensor:
        z = super()._prepare(z)
        return F.normalize(z, dim=1) if self.distance == "cosine" else z
