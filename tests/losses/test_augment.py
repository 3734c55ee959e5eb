"""Augmentation of what the discriminator sees: by hand, differentiable, and the same for both of a pair."""

import pytest
import torch
from torch import Tensor

from losses.augment import Color, DiffAugment, Draw, cut_out, recolor, translate

FULL = {"color": 1.0, "translation": 0.125, "cutout": 0.5}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def colour(brightness: float = 0.0, saturation: float = 1.0, contrast: float = 1.0, changed: bool = True) -> Color:
    values = (torch.tensor([value], dtype=torch.float64) for value in (brightness, saturation, contrast))
    return Color(torch.tensor([changed]), *values)


def test_the_two_of_a_pair_are_changed_alike() -> None:
    augment, images, recon = DiffAugment(**FULL), pictures(16, 3, 16, 16), pictures(16, 3, 16, 16, seed=1)
    torch.manual_seed(0)
    draw = augment.draw(images)
    both = Draw(
        Color(*(part.repeat(2) for part in draw.color or ())),
        *(part.repeat(2, 1) for part in draw[1:] if part is not None),
    )
    together = augment.apply(torch.cat([images, recon]), both)
    assert torch.equal(together, torch.cat([augment.apply(images, draw), augment.apply(recon, draw)]))
    # no two pairs are treated alike
    same = augment.apply(images[:1].expand_as(images), draw)
    assert len(torch.unique(same.flatten(1), dim=0)) == 16


def test_one_seed_gives_one_draw() -> None:
    augment, images = DiffAugment(probability=0.5, **FULL), pictures(8, 3, 16, 16)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augment.apply(images, augment.draw(images)))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("settings", [{}, {"probability": 0.0, **FULL}])
def test_with_nothing_to_do_the_same_tensor_comes_out_and_nothing_is_drawn(settings: dict[str, float]) -> None:
    augment, images = DiffAugment(**settings), pictures(2, 3, 8, 8).bfloat16()
    state = torch.get_rng_state()
    assert not augment.active
    assert augment.apply(images, augment.draw(images)) is images
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_probability_is_the_share_of_pairs_that_change(name: str) -> None:
    augment, images = DiffAugment(probability=0.3, **{name: 1.0}), pictures(1, 3, 32, 32).expand(400, -1, -1, -1)
    torch.manual_seed(0)
    changed = (augment.apply(images, augment.draw(images)) != images).flatten(1).any(dim=1)
    assert 90 <= changed.sum() <= 150  # 120 expected, standard deviation 9.2; the others are equal bit for bit


def test_the_three_are_chosen_independently() -> None:
    torch.manual_seed(0)
    draw = DiffAugment(probability=0.5, **FULL).draw(pictures(1, 1, 64, 64).expand(4000, -1, -1, -1))
    assert draw.color is not None and draw.shift is not None and draw.hole is not None
    chosen = torch.stack([draw.color.changed, draw.shift.any(dim=1), draw.hole[:, 1] > draw.hole[:, 0]]).double()
    assert torch.corrcoef(chosen).triu(1).abs().max().item() < 0.06


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_ranges_of_colour(strength: float) -> None:
    torch.manual_seed(0)
    color = DiffAugment(color=strength).draw(torch.empty(10_000, 1, 1, 1)).color
    assert color is not None and color.changed.all()
    for values, centre, reach in (
        (color.brightness, 0.0, strength / 2),
        (color.saturation, 1.0, strength),
        (color.contrast, 1.0, strength / 2),
    ):
        assert centre - reach <= values.min() < centre - 0.99 * reach
        assert centre + 0.99 * reach < values.max() < centre + reach


def test_colour_by_hand() -> None:
    images = torch.tensor([0.9, -0.3, 0.6, -0.6], dtype=torch.float64).view(1, 2, 1, 2)  # channels (.9, -.3), (.6, -.6)
    assert torch.allclose(recolor(images, colour(brightness=0.5)), images + 0.5)  # 1.4: not clamped
    # channel means .75 and -.45, distances .15
    greyer = torch.tensor([1.05, -0.15, 0.45, -0.75], dtype=torch.float64).view_as(images)
    assert torch.allclose(recolor(images, colour(saturation=2.0)), greyer)
    # mean .15
    flatter = torch.tensor([0.525, -0.075, 0.375, -0.225], dtype=torch.float64).view_as(images)
    assert torch.allclose(recolor(images, colour(contrast=0.5)), flatter)
    # brightness first: it moves the mean, which contrast then keeps
    assert torch.allclose(recolor(images, colour(brightness=0.5, contrast=0.5)), flatter + 0.5)
    assert torch.equal(recolor(images, colour(0.5, 2.0, 0.5, changed=False)), images)


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_any_channel_count(channels: int) -> None:
    augment, images = DiffAugment(**FULL), pictures(3, channels, 9, 14)
    torch.manual_seed(0)
    assert augment.apply(images, augment.draw(images)).shape == images.shape
    dull, vivid = (recolor(images[:1], colour(saturation=factor)) for factor in (0.0, 2.0))
    assert torch.equal(dull, vivid) is (channels == 1)


def test_translation_moves_pictures_and_brings_in_zeros() -> None:
    images = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    down_left = torch.tensor([[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]).view(1, 1, 3, 4)
    assert torch.equal(translate(images, torch.tensor([[1, -1]])), down_left.float())
    up_right = torch.tensor([[0, 0, 9, 10], [0, 0, 0, 0], [0, 0, 0, 0]]).view(1, 1, 3, 4)
    assert torch.equal(translate(images, torch.tensor([[-2, 2]])), up_right.float())
    assert not translate(images, torch.tensor([[3, 0]])).any()  # a whole side away
    two = translate(images.expand(2, 5, 3, 4), torch.tensor([[1, -1], [0, 0]]))
    assert torch.equal(two[0, 4], down_left[0, 0].float()) and torch.equal(two[1, 4], images[0, 0])


def test_shifts_reach_their_share_of_each_side_and_no_further() -> None:
    torch.manual_seed(0)
    shift = DiffAugment(translation=0.125).draw(torch.empty(2000, 1, 16, 33)).shift
    assert shift is not None
    assert shift[:, 0].unique().tolist() == [-2, -1, 0, 1, 2]
    assert shift[:, 1].unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert (torch.bincount(shift[:, 0] + 2) > 330).all()  # 400 of each expected


def test_cutout_by_hand() -> None:
    holes = torch.tensor([[1, 3, 0, 2], [-1, 1, 3, 5], [2, 2, 0, 4]])
    cut = cut_out(torch.ones(3, 2, 3, 4), holes)
    expected = torch.ones(3, 1, 3, 4)
    expected[0, :, 1:3, 0:2] = 0
    expected[1, :, 0:1, 3:4] = 0  # the rest lies outside; the third hole is empty
    assert torch.equal(cut, expected.expand(3, 2, 3, 4))


@pytest.mark.parametrize(("side", "size"), [(16, 8), (15, 8), (18, 9), (17, 9)])
def test_holes_have_their_size_and_leave_at_most_half_of_it_outside(side: int, size: int) -> None:
    torch.manual_seed(0)
    draw = DiffAugment(cutout=0.5).draw(torch.empty(2000, 1, side, 40))
    assert draw.hole is not None
    top, bottom, left, right = draw.hole.unbind(dim=1)
    assert (bottom - top == size).all() and (right - left == 20).all()
    assert top.min() == -(size // 2) and bottom.max() == side + size // 2
    area = (cut_out(torch.ones(2000, 1, side, 40), draw.hole) == 0).sum(dim=(1, 2, 3))
    assert area.max() == size * 20 and area.min() >= (size // 2) * 10


def test_gradients_are_right_twice() -> None:
    augment = DiffAugment(color=1.0, translation=0.4, cutout=0.4)
    images = pictures(2, 3, 5, 4).double().requires_grad_()
    torch.manual_seed(1)
    draw = augment.draw(images)
    assert draw.shift is not None and draw.shift.any()
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draw), images)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, draw).pow(3), images)


def test_no_gradient_dies_in_colours_out_of_range() -> None:
    images = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).requires_grad_()
    bright = recolor(images, colour(brightness=0.5, contrast=1.5))
    assert bright.max().item() == 2.0
    (bright * torch.tensor([0.0, 1.0])).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten().tolist() == pytest.approx([-0.25, 1.25])  # contrast around a mean of two pixels


def test_low_precision_comes_out_in_float32_whatever_autocast_says() -> None:
    augment, images = DiffAugment(**FULL), pictures(4, 3, 16, 16).bfloat16()
    torch.manual_seed(0)
    draw = augment.draw(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = augment.apply(images, draw)
    assert low.dtype == torch.float32
    assert torch.equal(low, augment.apply(images.float(), draw))
    assert augment.apply(images.double(), draw).dtype == torch.float64


@pytest.mark.parametrize("name", ["probability", "color", "translation", "cutout"])
def test_a_setting_outside_its_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} .* share in \[0, 1\]; got 1\.5"):
        DiffAugment(**{name: 1.5})
