from vqgan.training.validation import choose_validation_images


def test_processes_share_a_fixed_evenly_spread_choice_without_overlap() -> None:
    whole = choose_validation_images(100, 10, rank=0, processes=1)
    assert whole == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    shares = [choose_validation_images(100, 10, rank=rank, processes=3) for rank in range(3)]
    assert sorted(position for share in shares for position in share) == whole


def test_a_small_set_is_looked_at_whole() -> None:
    assert choose_validation_images(3, 10, rank=0, processes=1) == [0, 1, 2]
