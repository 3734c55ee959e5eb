"""Pictures of the codebook page: their shapes, their titles, and that hand-made extremes can be drawn."""

import numpy as np
import pytest
import torch
from PIL import ImageFont

from vqgan.training import codebook_figures
from vqgan.training.charts import HEIGHT, WIDTH, Axis, Chart, doubling_axis, linear_axis
from vqgan.training.codebook_figures import cut, draw_page, log2_hits_over_uniform, sheet
from vqgan.training.codebook_page import CodebookPage, gallery, measure


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles and notes of all charts drawn in the test."""
    seen: list[str] = []

    class Watched(Chart):
        def __init__(self, title: str, note: str, x: Axis, y: Axis) -> None:
            super().__init__(title, note, x, y)
            seen.extend([title, note])

    monkeypatch.setattr(codebook_figures, "Chart", Watched)
    return seen


def page_of(codes: torch.Tensor, hits: np.ndarray, vectors: torch.Tensor, indices: torch.Tensor) -> CodebookPage:
    most, least = gallery(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.arange(4).view(1, 2, 2), hits=hits)
    return CodebookPage((hits,), measure(codes, hits, vectors, indices), 0, most, least)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_pictures_and_their_statements(titles: list[str]) -> None:
    codes = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 4.25]])
    indices = torch.tensor([0, 1, 2])
    hits = np.array([70.0, 20.0, 10.0, 0.0])
    pictures = draw_page(page_of(codes, hits, codes[indices] + torch.tensor([1.0, 0.0]), indices))
    assert list(pictures) == ["usage_curve", "norms", "neighbours", "map", "gallery"]
    assert {pictures[name].shape for name in list(pictures)[:4]} == {(HEIGHT, WIDTH, 3)}
    assert all(picture.dtype == np.uint8 and picture.std() > 1 for picture in pictures.values())
    assert titles[0] == "75 % of 4 codes used; the busiest takes 70 %"
    assert titles[2] == "Codes have a median norm of 3.5, encoder outputs of 4"
    assert titles[4] == "Neighbouring codes lie 1.62 errors apart; 50 % have a near twin"
    assert titles[6] == "Two directions hold 100 % of the codes' variance"
    page = sheet(pictures, "A codebook")
    assert page.shape == (56 + 2 * HEIGHT + pictures["gallery"].shape[0], 2 * WIDTH, 3)
    assert np.array_equal(page[56 : 56 + HEIGHT, WIDTH:], pictures["norms"])


def test_few_validation_tokens_are_said(titles: list[str]) -> None:
    codebook_figures.usage_curve((np.repeat([1.0, 0.0], [10, 990]),))
    codebook_figures.usage_curve((np.full(10, 3.0),))
    codebook_figures.usage_curve((np.full(10, 5.0),))
    assert titles[1] == "10 validation tokens are few for 1,000 codes: at most 1 % can be used. See train.val_images."
    assert titles[3] == "30 validation tokens are few for 10 codes to meet them all. See train.val_images."
    assert titles[5].startswith("On all validation images")


def test_several_books_have_a_line_each(titles: list[str]) -> None:
    books = (np.array([50.0, 50.0]), np.array([90.0, 0.0, 10.0]), np.ones(8), np.zeros(8), np.ones(8))
    pictures = draw_page(CodebookPage(books, None, 0, (), ()))
    assert list(pictures) == ["usage_curve"]
    assert titles[0] == "5 books: 100 %, 67 %, 100 %, 0 %, 100 % of their codes used"
    assert sheet(pictures, "").shape == (56 + HEIGHT, 2 * WIDTH, 3)


@pytest.mark.parametrize(
    ("codes", "scale"),
    [(torch.zeros(4, 3), 1.0), (torch.ones(4, 1), 0.0), (1e6 * normal(4, 2), 1e-6), (normal(4, 9), 1.0)],
)
def test_degenerate_codebooks_can_be_drawn(codes: torch.Tensor, scale: float) -> None:
    for hits in (np.array([4.0, 0.0, 0.0, 0.0]), np.ones(4)):
        vectors = scale * normal(6, codes.shape[1])
        draw_page(page_of(codes, hits, vectors, torch.tensor([0, 0, 1, 2, 3, 3])))
        draw_page(CodebookPage((hits,), measure(codes, hits), 0, (), ()))  # z is not compared with codes


def test_hits_over_uniform_by_hand() -> None:
    values = log2_hits_over_uniform(np.array([8.0, 4.0, 4.0, 0.0]))
    assert values.tolist() == [1, 0, 0, -4]  # one hit would be at -2


def test_shares_are_not_rounded_to_all_or_nothing() -> None:
    percents = [codebook_figures._percent(share) for share in (0, 0.00001, 0.0123, 0.5, 0.995, 0.99999, 1)]
    assert percents == ["0 %", "< 0.01 %", "1.2 %", "50 %", "> 99 %", "> 99 %", "100 %"]


def test_axes() -> None:
    assert [name for _, name in linear_axis(0, 1, "", percent=True).ticks] == [
        "0 %",
        "20 %",
        "40 %",
        "60 %",
        "80 %",
        "100 %",
    ]
    assert [value for value, _ in linear_axis(-0.3, 0.9, "").ticks] == pytest.approx(
        [-0.2, 0, 0.2, 0.4, 0.6, 0.8], abs=1e-9
    )
    assert linear_axis(2, 2, "")[:2] == (1.5, 2.5)
    assert doubling_axis(-2.5, 1.5, "").ticks == [(-2, "1/4"), (-1, "1/2"), (0, "1"), (1, "2")]
    assert [name for _, name in doubling_axis(-6, 6, "").ticks] == ["1/64", "1/16", "1/4", "1", "4", "16", "64"]


def test_a_dot_lies_where_it_should_and_beyond_the_field_is_nothing() -> None:
    def red(points: list[tuple[float, float]]) -> np.ndarray:
        chart = Chart("", "", Axis(0, 1, [], ""), Axis(0, 1, [], ""))
        x, y = np.array(points).T
        chart.dots(x, y, np.array([255, 0, 0]), radius=2)
        return np.argwhere((chart.picture() == [255, 0, 0]).all(axis=2))

    # margins: 76 left, 20 right, 106 above, 62 below
    assert red([(0.5, 0.25)]).mean(axis=0) == pytest.approx(
        [106 + 0.75 * (HEIGHT - 168), 76 + 0.5 * (WIDTH - 96)], abs=1
    )
    assert len(red([(1.5, 0.5), (0.5, -0.1)])) == 0


def test_a_long_heading_is_cut_in_its_middle() -> None:
    font = ImageFont.load_default(size=24)
    text = "Codebook at step 1: " + "many parts, " * 50 + "5 validation tokens"
    shown = cut(text, font, 400)
    assert shown.startswith("Codebook") and shown.endswith("tokens") and shown.count(" ... ") == 1
    assert 350 < font.getlength(shown) <= 400
    assert cut("short", font, 400) == "short"
