"""Settings of one run: the dataclass tree behind every YAML file, and the only place where a run's defaults live.

A pluggable part is a `PartConfig` (`{name, args}`); the defaults of its `args` live in the signature of its class.
Durations (`int | str`) are steps (`20000`), epochs (`5ep`) or images (`2M`, `500k`); `vqgan.durations` turns them into
plain steps before they are checked or used.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from vqgan.errors import UserError
from vqgan.values import show

VALIDATION_METRICS = ("psnr", "ssim", "lpips", "rfid", "is", "usage")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartConfig:
    """A part chosen by name: `name` is a key of its registry, `args` are arguments of its class."""

    name: str
    """Key in the registry (QUANTIZERS, DISCRIMINATORS)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class; what is left out takes the default of its signature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    dir: str | None = None
    """Run folder; default: runs/<config name>."""
    seed: int = 0
    """Seed of everything random: initial weights, sample order, augmentation, re-seeding of codes."""

    def __post_init__(self) -> None:
        _check(self.dir != "", "run.dir", self.dir, "the path of a folder")
        _check(0 <= self.seed < 2**32, "run.seed", self.seed, "a whole number from 0 to 2^32 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random changes of a training image; each is a pure function of (seed, epoch, index)."""

    random_crop: bool = True
    """Crop at a random place instead of the centre."""
    min_scale: float = 1.0
    """Smallest share of the short side that a crop may cover, in (0, 1]; 1 keeps the short side whole."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rotate_degrees: float = 0.0
    """Largest rotation to either side, in degrees, on the device."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, in [0, 1), on the device."""

    def __post_init__(self) -> None:
        _check(0.0 < self.min_scale <= 1.0, "data.augment.min_scale", self.min_scale, "a share in (0, 1]")
        _check(0.0 <= self.flip <= 1.0, "data.augment.flip", self.flip, "a probability in [0, 1]")
        _check(0.0 <= self.rotate_degrees <= 180.0, "data.augment.rotate_degrees", self.rotate_degrees, "0 to 180")
        _check(0.0 <= self.color_jitter < 1.0, "data.augment.color_jitter", self.color_jitter, "a share in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images come from and how they become tensors."""

    train: str = "builtin:leaves"
    """Folder, list file (.txt), glob or brace pattern of .tar shards, torchvision:NAME or builtin:NAME."""
    val: str | None = None
    """Source of validation images, as `train`; default: a stable share of `train` (see `val_share`)."""
    val_share: float = 0.05
    """Share of `train` held out for validation when `val` is not given, by a hash of the relative path."""
    image_size: int = 256
    """Side of the square training crop, in pixels."""
    channels: int = 3
    """Channels of a training image: 1, 2, 3, 4 or 8."""
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    """RGB colour (0-255) that transparent pixels are composited on."""
    float_range: list[float] | None = None
    """[low, high] of floating-point sources (TIFF, .npy); needed only for these."""
    max_bad_share: float = 0.1
    """Share of unreadable files above which the run stops."""
    max_pixels: int = 89_478_485
    """Files with more pixels than this count as bad (decompression bombs)."""
    download: bool = False
    """Let torchvision:NAME download its files."""
    workers: int = 2
    """Loader processes per training process; 0 loads in the training process."""
    timeout_seconds: float = 300.0
    """How long to wait for a batch before a hung loader stops the run."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""

    def __post_init__(self) -> None:
        _check(self.image_size >= 1, "data.image_size", self.image_size, "a positive number of pixels")
        _check(self.channels in (1, 2, 3, 4, 8), "data.channels", self.channels, "1, 2, 3, 4 or 8")
        _check(0.0 < self.val_share < 1.0, "data.val_share", self.val_share, "a share in (0, 1)")
        _check(0.0 <= self.max_bad_share <= 1.0, "data.max_bad_share", self.max_bad_share, "a share in [0, 1]")
        _check(self.max_pixels >= 1, "data.max_pixels", self.max_pixels, "1 or more")
        _check(self.workers >= 0, "data.workers", self.workers, "0 or more")
        _check(self.timeout_seconds > 0, "data.timeout_seconds", self.timeout_seconds, "a positive number of seconds")
        colour = len(self.background) == 3 and all(0 <= value <= 255 for value in self.background)
        _check(colour, "data.background", list(self.background), "three numbers from 0 to 255")
        if self.float_range is not None:
            ordered = len(self.float_range) == 2 and self.float_range[0] < self.float_range[1]
            _check(ordered, "data.float_range", list(self.float_range), "[low, high] with low < high")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The autoencoder (VQGAN, arXiv:2012.09841, appendix A, table 7)."""

    variant: Literal["taming", "symmetric"] = "taming"
    """taming: attention, decoder one block deeper per level; symmetric: neither (VQGAN+, arXiv:2409.16211)."""
    ch: int = 128
    """Channels at full resolution."""
    ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    """Channel factor per level; n levels reduce the side 2^(n-1) times."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder."""
    attn_resolutions: list[int] = field(default_factory=lambda: [16])
    """Feature-map sides, at `data.image_size`, that get self-attention (taming only)."""
    z_channels: int = 256
    """Channels of the latent before quant_conv maps them to the code dimension."""
    dropout: float = 0.0
    """Dropout inside residual blocks."""
    top_mult: list[int] = field(default_factory=list)
    """Not empty: two grids of codes (VQ-VAE-2, arXiv:1906.00446), with a channel factor per level above the bottom's;
    n of them make the top grid's side 2^n times smaller than the bottom's."""
    quantizer: PartConfig = field(default_factory=lambda: PartConfig(name="vq"))
    """The bottleneck; names are the keys of vqgan.quantizers.QUANTIZERS."""

    def __post_init__(self) -> None:
        _check(self.ch >= 1, "model.ch", self.ch, "a positive number")
        levels = len(self.ch_mult) >= 1 and all(factor >= 1 for factor in self.ch_mult)
        _check(levels, "model.ch_mult", list(self.ch_mult), "at least one factor, each 1 or more")
        _check(min(self.top_mult, default=1) >= 1, "model.top_mult", list(self.top_mult), "factors of 1 or more")
        _check(self.num_res_blocks >= 1, "model.num_res_blocks", self.num_res_blocks, "1 or more")
        _check(self.z_channels >= 1, "model.z_channels", self.z_channels, "a positive number")
        _check(0.0 <= self.dropout < 1.0, "model.dropout", self.dropout, "a share in [0, 1)")
        factors = (1, *self.ch_mult, *self.top_mult)
        widths = sorted({width for width in (self.ch * factor for factor in factors) if width % 32})
        if widths:
            raise UserError(
                f"model.ch ({self.ch}) times model.ch_mult ({list(self.ch_mult)}) gives widths {widths} that GroupNorm "
                f"cannot split into 32 groups. Choose model.ch so that every width is a multiple of 32."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptualConfig:
    """The frozen networks behind the perceptual terms: lpips (arXiv:1801.03924), resnet50_logits, convnext_s_logits."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone of the lpips term."""
    weights: str = "imagenet"
    """Of lpips: imagenet (local cache, or one download), the path of a weight file, or random (a fixed trunk)."""
    logits_weights: dict[str, str] = field(default_factory=dict)
    """Of the logits terms, by term, as `weights`; what is not named takes imagenet."""
    random_if_missing: bool = False
    """Go on with random weights, with a loud warning, where the ImageNet weights cannot be had (the demo only)."""
    channels: Literal["auto", "repeat", "rgb", "groups", "off"] = "auto"
    """How images reach these networks, which see RGB. repeat: each channel alone, as grey; rgb: the first three;
    groups: three at a time, the last group filled up by repeating; off: no perceptual term. auto: repeat for 1, rgb
    for 3, groups for other numbers of channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegulariseConfig:
    """What keeps the discriminator in check; 0 switches each off."""

    lecam: float = 0.0
    """Weight of LeCam: pull logits towards running means of the other side's (arXiv:2104.03310)."""
    lecam_decay: float = 0.999
    """Decay of these means, per update of the discriminator."""
    r1: float = 0.0
    """Gamma of R1: squared gradient of the logits at images (arXiv:1801.04406, eq. 9)."""
    r2: float = 0.0
    """Gamma of R2: the same at reconstructions (arXiv:1801.04406, eq. 10)."""
    gradient_penalty: float = 0.0
    """Lambda of the penalty on gradient norms other than 1 between image and reconstruction (arXiv:1704.00028)."""
    penalty_every: int = 16
    """Updates between two with r1, r2, gradient_penalty and loss.input_gradient, which then weigh this much more
    (arXiv:1912.04958, B)."""
    label_noise: float = 0.0
    """Share of pairs whose image and reconstruction change places for the discriminator."""

    def __post_init__(self) -> None:
        for name in ("lecam", "r1", "r2", "gradient_penalty"):
            _check(getattr(self, name) >= 0, f"loss.regularise.{name}", getattr(self, name), "0 or more")
        _check(0 <= self.lecam_decay < 1, "loss.regularise.lecam_decay", self.lecam_decay, "a share in [0, 1)")
        _check(self.penalty_every >= 1, "loss.regularise.penalty_every", self.penalty_every, "1 or more updates")
        _check(0 <= self.label_noise < 0.5, "loss.regularise.label_noise", self.label_noise, "a share in [0, 0.5)")

    @property
    def has_penalty(self) -> bool:
        """Whether the discriminator's loss holds a gradient of its logits."""
        return max(self.r1, self.r2, self.gradient_penalty) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscAugmentConfig:
    """What is done alike to an image and its reconstruction before the discriminator sees them (arXiv:2006.10738)."""

    probability: float = 1.0
    """Share of pairs that each of the following changes."""
    color: float = 0.0
    """Strength of random brightness, saturation and contrast, in [0, 1]; DiffAugment has 1."""
    translation: float = 0.0
    """Largest shift, as a share of the side, zeros coming in; DiffAugment has 0.125."""
    cutout: float = 0.0
    """Side of a square of zeros, as a share of the side; DiffAugment has 0.5."""

    def __post_init__(self) -> None:
        for name in ("probability", "color", "translation", "cutout"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"loss.disc_augment.{name}", value, "a share in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Objectives of both players (VQGAN, arXiv:2012.09841, sec. 3.1)."""

    terms: dict[str, float] = field(default_factory=lambda: {"l1": 1.0, "lpips": 1.0})
    """Weight of each term on (images, recon); names are the keys of losses.TERMS."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """Networks of the perceptual terms; unused without these."""
    discriminator: PartConfig = field(default_factory=lambda: PartConfig(name="patchgan"))
    """The critic; names are the keys of vqgan.networks.DISCRIMINATORS."""
    adversarial: str = "hinge"
    """Pair of GAN objectives; names are the keys of losses.ADVERSARIAL."""
    disc_weight: float = 0.8
    """Factor of the generator's GAN loss, on top of the adaptive weight; 0 switches the GAN off."""
    adaptive: bool = True
    """Balance the GAN loss by gradient norms at the last layer (eq. 7); false: `disc_weight` alone."""
    max_weight: float = 1.0
    """Cap of the adaptive weight; docs/training.md says why so low (1e4 in the taming recipe)."""
    adaptive_numerator: Literal["all", "pixel"] = "all"
    """Terms in the numerator of eq. 7: all, or all but the perceptual ones."""
    adaptive_smoothing: float = 0.0
    """Decay of a running mean of the adaptive weight over its computations; 0: the newest value alone."""
    adaptive_every: int = 1
    """Steps between two computations of the adaptive weight."""
    regularise: RegulariseConfig = field(default_factory=RegulariseConfig)
    """Regularisers of the discriminator."""
    input_gradient: float = 0.0
    """Weight of the norm of the pixel terms' gradient at the image, against over-fitting, in one step of
    `regularise.penalty_every`; 0: without it."""
    disc_augment: DiscAugmentConfig = field(default_factory=DiscAugmentConfig)
    """Differentiable augmentation of what the discriminator sees, in both players' steps."""
    joint_forward: bool = True
    """Show the discriminator images and reconstructions in one batch; false: in two. Gradients are the same; a
    discriminator whose images see each other always gets two."""
    disc_start: int | str = 0
    """First step that trains the discriminator."""
    gan_start: int | str = 30_000
    """First step whose generator update feels the discriminator."""
    ramp_steps: int | str = 1_000
    """Duration over which the generator's GAN loss grows linearly from 0 after `gan_start`."""
    watch_steps: int | str = 1_000
    """How long validation may be half as bad again as at `gan_start` before a warning names the likely cause; at most
    half of the steps from `gan_start` to the end."""

    def __post_init__(self) -> None:
        smoothing = self.adaptive_smoothing
        _check(0 <= smoothing < 1, "loss.adaptive_smoothing", smoothing, "a share in [0, 1)")
        _check(self.adaptive_every >= 1, "loss.adaptive_every", self.adaptive_every, "1 or more steps")
        _check(self.disc_weight >= 0, "loss.disc_weight", self.disc_weight, "0 or more")
        _check(self.input_gradient >= 0, "loss.input_gradient", self.input_gradient, "0 or more")
        _check(self.max_weight > 0, "loss.max_weight", self.max_weight, "a positive number")
        _check(bool(self.terms), "loss.terms", dict(self.terms), "at least one term, such as {l1: 1.0}")
        for name, weight in self.terms.items():
            _check(weight >= 0, f"loss.terms.{name}", weight, "0 or more")
        _check(any(self.terms.values()), "loss.terms", dict(self.terms), "at least one weight above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, how fast, how often."""

    max_steps: int | str = 500_000
    """Length of the run, in optimizer steps of the generator."""
    batch_size: int = 32
    """Images per optimizer update, over all processes and accumulation together."""
    accumulate: int = 1
    """Micro-batches per update; each holds batch_size / (processes * accumulate) images."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks' convolutions; quantizer and losses are always float32."""
    compile: bool = False
    """Compile both networks with torch.compile."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or one of these."""
    lr: float = 1e-4
    """Peak learning rate of the generator; never scaled by anything."""
    disc_lr: float | None = None
    """Peak learning rate of the discriminator; default: lr."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """Adam's betas, both players (0.9, 0.99: arXiv:2412.02632)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of both players (AdamW)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_steps: int | str = 1_000
    """Duration of the linear warm-up."""
    min_lr_share: float = 0.1
    """Where the cosine ends, as a share of lr."""
    clip_norm: float | None = 1.0
    """Largest gradient norm of either player; null: no clipping."""
    ema_decay: float = 0.999
    """Decay of the averaged model; with warm-up (1 + step) / (10 + step). 0 switches averaging off."""
    validate_every: int | str = 2_000
    """Interval of validation; it also runs at step 0 and at the end."""
    val_images: int = 2_000
    """Most validation images looked at each time; a fixed, evenly spread choice."""
    validate_metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "lpips", "usage"])
    """What validation reports, of VALIDATION_METRICS; rfid and is need Inception weights and take their time."""
    checkpoint_every: int | str = 2_000
    """Interval of checkpoints; one is also written at the end and on a signal."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every: int | str | None = None
    """Also keep every checkpoint whose step is a multiple of this."""
    log_every: int | str = 50
    """Interval of scalar logging."""
    image_every: int | str = 2_000
    """Interval of the image panel; it is dense at first (1, 2, 4, 8, ... steps)."""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "train.batch_size", self.batch_size, "1 or more")
        _check(self.accumulate >= 1, "train.accumulate", self.accumulate, "1 or more")
        _check(self.lr > 0, "train.lr", self.lr, "a positive number")
        _check(self.disc_lr is None or self.disc_lr > 0, "train.disc_lr", self.disc_lr, "a positive number")
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check(betas, "train.betas", list(self.betas), "two numbers in [0, 1)")
        _check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.min_lr_share <= 1, "train.min_lr_share", self.min_lr_share, "a share in [0, 1]")
        _check(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "a positive number")
        _check(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "a share in [0, 1)")
        strangers = [name for name in self.validate_metrics if name not in VALIDATION_METRICS]
        choice = f"some of {', '.join(VALIDATION_METRICS)}"
        _check(not strangers, "train.validate_metrics", strangers, choice)
        _check(self.val_images >= 1, "train.val_images", self.val_images, "1 or more")
        _check(self.keep_last >= 1, "train.keep_last", self.keep_last, "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything one run is made from."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _check(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{key} is {show(value)}; expected {expected}.")
