from pathlib import Path

import pytest

from vqgan.data.keys import Keys, hash_share, printable, quoted

ODD = ["plain.png", "sp ace.png", "gr\u00fc\u00df/\u7d75.png", "new\nline.png", "byte\udcff.png", ""]


def test_keys_survive_packing() -> None:
    keys = Keys(ODD)
    assert [keys[index] for index in range(len(keys))] == ODD
    for outside in (-1, len(ODD)):
        with pytest.raises(IndexError):
            keys[outside]


def test_no_keys() -> None:
    assert len(Keys([])) == 0


def test_hash_share_never_changes() -> None:
    # blake2b("a.png", 8 bytes) as a share of 2^64; a change would move images between train and val in every run.
    assert hash_share("a.png") == pytest.approx(0.8828655178433421, abs=1e-12)
    assert all(0 <= hash_share(key) <= 1 for key in ODD)


def test_hash_share_is_uniform() -> None:
    shares = [hash_share(f"{number}.png") for number in range(10_000)]
    assert sum(share < 0.05 for share in shares) == pytest.approx(500, abs=100)


def test_printable_is_one_line() -> None:
    assert printable("gr\u00fc\u00df 1.png") == "gr\u00fc\u00df 1.png"
    assert printable("new\nline.png") == "'new\\nline.png'"
    assert printable("byte\udcff.png") == "'byte\\udcff.png'"
    assert (quoted(Path("it's")), quoted("a\nb")) == ("'it's'", "'a\\nb'")
