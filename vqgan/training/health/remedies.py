"""What to change in a sick run: settings with suggested values, the likeliest to help first."""

import math
from typing import NamedTuple

from vqgan.config import Config

MOST_CHANGES = 3
LONG_RAMP = 1_000


class Change(NamedTuple):
    """One setting to turn."""

    setting: str
    """Dotted key."""
    now: str
    to: str
    """Suggested value, as `key=value` takes it."""
    why: str


def for_nan(config: Config) -> tuple[Change, ...]:
    """Smaller steps, then more exact ones, then the GAN."""
    train, loss = config.train, config.loss
    changes = [Change("train.lr", _text(train.lr), _round(train.lr / 10), "large steps are the usual cause")]
    if train.precision != "fp32":
        changes.append(Change("train.precision", train.precision, "fp32", "shows whether rounding is the cause"))
    if train.clip_norm is None or train.clip_norm > 1:
        changes.append(Change("train.clip_norm", _text(train.clip_norm), "1.0", "bounds what one bad batch can do"))
    if loss.disc_weight > 0:
        changes.append(Change("loss.disc_weight", _text(loss.disc_weight), "0", "shows whether the GAN is the cause"))
    return tuple(changes[:MOST_CHANGES])


def for_collapse(config: Config) -> tuple[Change, ...]:
    """Bring dead codes back, start them on the data, and search where distances mean something."""
    quantizer = config.model.quantizer
    if quantizer.name != "vq":
        return (Change("train.lr", _text(config.train.lr), _round(config.train.lr / 3), "lets the codes keep up"),)
    args, key = quantizer.args, "model.quantizer.args"
    changes = []
    if args.get("reseed_every") == 0:
        changes.append(Change(f"{key}.reseed_every", "0", "10", "puts dead codes where encoder outputs are"))
    if args.get("init") in ("normal", "uniform"):
        changes.append(Change(f"{key}.init", str(args["init"]), "data", "starts all codes on encoder outputs"))
    if args.get("distance") != "cosine":
        why = "directions do not run away as lengths do"
        changes.append(Change(f"{key}.distance", str(args.get("distance") or "euclidean"), "cosine", why))
    if "codebook_dim" not in args or args["codebook_dim"] > 32:
        now = str(args.get("codebook_dim") or "256")
        changes.append(Change(f"{key}.codebook_dim", now, "8", "few dimensions leave no code far from everything"))
    changes.append(Change("train.lr", _text(config.train.lr), _round(config.train.lr / 3), "lets the codes keep up"))
    return tuple(changes[:MOST_CHANGES])


def for_winning(config: Config, *, pull: float | None) -> tuple[Change, ...]:
    """Three knobs against a GAN that ruins reconstructions.

    Args:
        config: the settings.
        pull: applied GAN gradient over the reconstruction's; None where unknown.
    """
    loss, train = config.loss, config.train
    disc_lr = train.disc_lr or train.lr
    faster = disc_lr > train.lr
    calm = Change(
        "train.disc_lr", _text(disc_lr), _round(min(disc_lr, train.lr) / 4), "gives the generator time to follow"
    )
    cap = Change("loss.max_weight", _text(loss.max_weight), "1", "caps the pull of the GAN where it explodes")
    weight = loss.disc_weight * min(0.5, 0.2 / pull if pull else 0.5)
    less = Change("loss.disc_weight", _text(loss.disc_weight), _round(weight), "lessens the pull of the GAN")
    start, ramp = int(loss.gan_start), int(loss.ramp_steps)
    if ramp < LONG_RAMP:
        slower = Change("loss.ramp_steps", str(ramp), str(max(LONG_RAMP, 2 * ramp)), "lets the GAN in slowly")
    else:
        slower = Change("loss.gan_start", str(start), str(max(LONG_RAMP, 2 * start)), "starts from better pictures")
    first = [calm] if faster else []
    capped = [cap] if loss.adaptive and loss.max_weight > 1 else []
    rest = [less, slower] if faster else [less, calm, slower]
    return tuple([*first, *capped, *rest][:MOST_CHANGES])


def for_asleep(config: Config) -> tuple[Change, ...]:
    """Wake the discriminator: what holds it back first, then its learning rate and its size."""
    loss, train = config.loss, config.train
    disc_lr = train.disc_lr or train.lr
    changes = []
    if loss.regularise.label_noise > 0:
        now = _text(loss.regularise.label_noise)
        changes.append(Change("loss.regularise.label_noise", now, "0", "it is told wrong labels"))
    for name in ("r1", "r2", "gradient_penalty", "lecam"):
        value = getattr(loss.regularise, name)
        if value > 0:
            changes.append(Change(f"loss.regularise.{name}", _text(value), _round(value / 10), "it is held back"))
    wanted = train.lr if disc_lr < train.lr / 4 else 2 * disc_lr
    changes.append(Change("train.disc_lr", _text(disc_lr), _round(wanted), "lets it learn faster"))
    start, gan_start = int(loss.disc_start), int(loss.gan_start)
    if gan_start // 2 < start <= gan_start:
        changes.append(Change("loss.disc_start", str(start), str(gan_start // 2), "gives it longer to warm up"))
    args = loss.discriminator.args
    if "n_layers" in args and args["n_layers"] < 3:
        key = "loss.discriminator.args.n_layers"
        changes.append(Change(key, str(args["n_layers"]), str(args["n_layers"] + 1), "lets it see larger patches"))
    return tuple(changes[:MOST_CHANGES])


def for_waiting(config: Config, *, step_ms: float, wait_ms: float) -> tuple[Change, ...]:
    """Enough loader processes to hide loading behind the steps, by what they have managed so far.

    Args:
        config: the settings.   step_ms, wait_ms: of one step, on average.
    """
    workers = config.data.workers
    loading = wait_ms if workers == 0 else workers * (wait_ms + step_ms)  # ms of one process for one batch
    wanted = max(workers + 1, 2, math.ceil(loading / max(step_ms, 1e-3)))
    changes = [Change("data.workers", str(workers), str(min(wanted, 64)), "loads while the step computes")]
    size = config.data.image_size
    why = f"a copy with about {size} px on the short side is decoded many times as fast"
    changes.append(Change("data.train", config.data.train, "FOLDER_OF_SMALLER_COPIES", why))
    return tuple(changes)


def figure(value: float, digits: int) -> str:
    """`digits` significant ones; large numbers as whole ones, without an exponent: 100, not 1e+02."""
    short = f"{value:.{digits}g}"
    return f"{value:.0f}" if 10**digits <= abs(float(short)) < 1e15 else short


def _round(value: float) -> str:
    """Two significant digits."""
    return figure(float(f"{value:.2g}"), 2)


def _text(value: float | None) -> str:
    return "null" if value is None else figure(value, 6)
