import pytest

from vqgan.training.schedules import gan_factor, is_due, is_due_densely, learning_rate


def rate(step: int, *, schedule: str = "cosine", warmup_steps: int = 10) -> float:
    assert schedule in ("cosine", "constant")
    return learning_rate(
        step,
        peak=1.0,
        max_steps=110,
        warmup_steps=warmup_steps,
        schedule="cosine" if schedule == "cosine" else "constant",
        min_share=0.1,
    )


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert [rate(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert rate(0, warmup_steps=0) == 1.0


def test_cosine_passes_its_middle_and_ends_at_its_share() -> None:
    assert rate(60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate(110) == pytest.approx(0.1)
    assert rate(500) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert rate(10, schedule="constant") == rate(109, schedule="constant") == 1.0


def test_gan_factor_is_zero_then_ramps_to_one() -> None:
    factors = [gan_factor(step, gan_start=100, ramp_steps=4) for step in (0, 99, 100, 101, 103, 104, 10_000)]
    assert factors == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0]
    assert gan_factor(100, gan_start=100, ramp_steps=0) == 1.0


def test_intervals() -> None:
    assert [step for step in range(31) if is_due(step, 10)] == [10, 20, 30]
    assert [step for step in range(31) if is_due_densely(step, 10)] == [1, 2, 4, 8, 10, 20, 30]
