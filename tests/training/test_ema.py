import torch
from torch import nn

from vqgan.training.ema import Ema


def test_average_follows_the_hand_computed_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, decay=0.5)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model, step=1)  # warm-up: decay (1 + 1) / (10 + 1) = 2 / 11
    torch.testing.assert_close(ema.model.weight.item(), 9 / 11)
    ema.update(model, step=1_000)  # now the decay itself, 0.5
    torch.testing.assert_close(ema.model.weight.item(), (9 / 11 + 1) / 2)


def test_zero_decay_is_a_copy_and_the_average_never_trains() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, decay=0.0)
    nn.init.normal_(model.weight)
    ema.update(model, step=1)
    assert torch.equal(ema.model.weight, model.weight)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training


def test_buffers_are_copied_and_reseeded_rows_taken_over() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.9)
    assert model.running_mean is not None
    model.running_mean.fill_(3.0)
    ema.update(model, step=1)
    assert ema.model.get_buffer("running_mean").tolist() == [3.0, 3.0]

    book = nn.Embedding(3, 2)
    average = Ema(book, decay=0.9)
    before = average.model.get_parameter("weight").clone()
    nn.init.constant_(book.weight, 7.0)
    average.copy_rows("weight", book.weight, torch.tensor([False, True, False]))
    after = average.model.get_parameter("weight")
    assert after[1].tolist() == [7.0, 7.0]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
