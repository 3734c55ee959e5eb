"""Every kind of file a folder may hold: the pixels it must give, or the reason it must name.

The tables are the tests: file -> expected pixels, and file -> expected message.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqgan.data.decode import BadImage, Header, decode, read_header

WHITE = [255, 255, 255]
MAX_PIXELS = 1_000_000


def read(data: bytes | Path, channels: int = 3, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"background": WHITE, "float_range": None, "max_pixels": MAX_PIXELS}
    return decode(data, channels=channels, **(settings | changes))


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(mode: str, pixels: list[Any]) -> Image.Image:
    """A picture of one row."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def columns(tensor: Tensor) -> list[Any]:
    """Pixels of a picture of one row: one number, or one tuple, each."""
    assert tensor.shape[1] == 1
    pixels = tensor[:, 0].T.tolist()
    return [pixel[0] for pixel in pixels] if tensor.shape[0] == 1 else [tuple(pixel) for pixel in pixels]


def png_bytes(values: NDArray[Any], colour_type: int) -> bytes:
    """A PNG of 16-bit samples, which Pillow cannot write in colour; values (H, W, c)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_bytes(
    values: NDArray[Any], *, order: str = "<", bits: int = 16, photometric: int, packed: bool = False
) -> bytes:
    """A TIFF of unsigned samples; values (H, W, c); `packed` with Deflate, which goes through libtiff."""
    height, width, count = values.shape
    body = values.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if packed else body
    entries = [(256, width), (257, height), (258, bits), (259, 8 if packed else 1), (262, photometric)]
    entries += [(273, 8 + 8), (277, count), (278, height), (279, len(body))]
    bits_at = 8
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 16 + len(body))
    table = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        if tag == 258 and count > 2:
            table += struct.pack(f"{order}HHII", tag, 3, count, bits_at)
        else:
            table += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return head + struct.pack(f"{order}4H", *[bits] * 4) + body + table + struct.pack(f"{order}I", 0)


def npy_bytes(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def icc_bytes(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal input profile (ICC.1:2001) from colour space `space` with these tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0\0\0\0", 0x02400000, b"scnr", space, connection)
    header += struct.pack(">6H4s", 2001, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def linear_rgb_profile() -> bytes:
    """The primaries of sRGB without its gamma."""
    xyz = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
    tags = {name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in xyz[name])) for name in xyz}
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return icc_bytes(b"RGB ", tags | {b"wtpt": white, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def black_ink_profile() -> bytes:
    """CMYK in which only black ink shows: L* falls from 100 to 0 with it (an `mft1` table of two points per ink)."""
    ramp = bytes(range(256))
    grid = b"".join(bytes([0 if black else 255, 128, 128]) for _ in range(8) for black in (0, 1))  # K varies fastest
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return icc_bytes(b"CMYK", {b"A2B0": b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + grid + ramp * 3})


def palette_picture(transparency: Any = None) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return stored(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


R, G, B = (255, 0, 0), (0, 255, 0), (0, 0, 255)

# name: (file, channels, background, pixels)
EIGHT_BIT: dict[str, tuple[bytes, int, list[int], list[Any]]] = {
    "1 bit": (stored(picture("1", [0, 255]), "PNG"), 3, WHITE, [(0, 0, 0), (255, 255, 255)]),
    "L": (stored(picture("L", [7, 200]), "PNG"), 3, WHITE, [(7, 7, 7), (200, 200, 200)]),
    "L as 1": (stored(picture("L", [7, 200]), "PNG"), 1, WHITE, [7, 200]),
    "L as 2": (stored(picture("L", [7, 200]), "PNG"), 2, WHITE, [(7, 255), (200, 255)]),
    "L, key": (stored(picture("L", [7, 200]), "PNG", transparency=7), 2, WHITE, [(7, 0), (200, 255)]),
    "RGB": (stored(picture("RGB", [R, (1, 2, 3)]), "PNG"), 3, WHITE, [R, (1, 2, 3)]),
    "RGB as 1": (stored(picture("RGB", [R, G, B]), "PNG"), 1, WHITE, [76, 150, 29]),  # 0.299, 0.587, 0.114 of 255
    "RGB as 4": (stored(picture("RGB", [R]), "PNG"), 4, WHITE, [(255, 0, 0, 255)]),
    "RGB, key": (stored(picture("RGB", [R, G]), "PNG", transparency=R), 3, [9, 9, 9], [(9, 9, 9), G]),
    "LA": (stored(picture("LA", [(80, 0), (80, 255)]), "PNG"), 3, [1, 2, 3], [(1, 2, 3), (80, 80, 80)]),
    "LA as 1": (stored(picture("LA", [(80, 0), (80, 255)]), "PNG"), 1, [200, 200, 200], [200, 80]),
    "LA as 2": (stored(picture("LA", [(80, 0), (90, 255)]), "PNG"), 2, WHITE, [(80, 0), (90, 255)]),
    "RGBA": (
        stored(picture("RGBA", [(*R, 0), (*R, 255), (0, 0, 0, 51)]), "PNG"),
        3,
        WHITE,
        [tuple(WHITE), R, (204,) * 3],
    ),
    "RGBA as 4": (stored(picture("RGBA", [(*R, 0), (*G, 51)]), "PNG"), 4, WHITE, [(*R, 0), (*G, 51)]),
    "RGBA as 2": (stored(picture("RGBA", [(*R, 9)]), "PNG"), 2, WHITE, [(76, 9)]),
    "RGBA as 1": (stored(picture("RGBA", [(*R, 0), (*G, 255)]), "PNG"), 1, list(B), [29, 150]),
    "P": (palette_picture(), 3, WHITE, [R, G, B]),
    "P, one key": (palette_picture(1), 3, [5, 6, 7], [R, (5, 6, 7), B]),
    "P, alphas": (palette_picture(bytes([255, 0, 51])), 4, WHITE, [(*R, 255), (*G, 0), (*B, 51)]),
    "P, alphas on white": (palette_picture(bytes([255, 0, 51])), 3, WHITE, [R, (255, 255, 255), (204, 204, 255)]),
    "CMYK": (stored(picture("CMYK", [(0, 0, 0, 0), (0, 255, 255, 0)]), "TIFF"), 3, WHITE, [(255, 255, 255), R]),
    "BMP": (stored(picture("RGB", [R, G]), "BMP"), 3, WHITE, [R, G]),
    "GIF": (stored(picture("L", [10, 20]), "GIF"), 1, WHITE, [10, 20]),
    "WEBP": (
        stored(picture("RGBA", [(*R, 255), (*G, 0)]), "WEBP", lossless=True, exact=True),
        3,
        WHITE,
        [R, (255,) * 3],
    ),
    "PPM": (stored(picture("RGB", [R, G]), "PPM"), 3, WHITE, [R, G]),
    "TIFF": (stored(picture("RGB", [R, G]), "TIFF", compression="tiff_deflate"), 3, WHITE, [R, G]),
    "npy": (npy_bytes(np.array([[3, 4]], np.uint8)), 1, WHITE, [3, 4]),
    "npy as 3": (npy_bytes(np.array([[3, 4]], np.uint8)), 3, WHITE, [(3, 3, 3), (4, 4, 4)]),
}


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_eight_bit_pixels(name: str) -> None:
    data, channels, background, expected = EIGHT_BIT[name]
    tensor = read(data, channels, background=background)
    assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert columns(tensor) == expected


RAMP = [0, 1, 255, 256, 32768, 65535]
GREY16 = np.array(RAMP, np.uint16)[None]  # (1, 6)
COLOUR16 = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), np.uint16)

# name: (file, channels, exact values times 65535)
DEEP: dict[str, tuple[bytes, int, NDArray[Any]]] = {
    "grey PNG": (stored(Image.fromarray(GREY16), "PNG"), 1, GREY16[..., None]),
    "grey PNG as 3": (stored(Image.fromarray(GREY16), "PNG"), 3, np.repeat(GREY16[..., None], 3, axis=2)),
    "grey TIFF": (stored(Image.fromarray(GREY16), "TIFF"), 1, GREY16[..., None]),
    "grey TIFF, big endian": (tiff_bytes(GREY16[..., None], order=">", photometric=1), 1, GREY16[..., None]),
    "grey TIFF, white is zero": (tiff_bytes(GREY16[..., None], photometric=0), 1, 65535 - GREY16[..., None]),
    "grey PGM": (b"P5 6 1 65535\n" + GREY16.astype(">u2").tobytes(), 1, GREY16[..., None]),
    "grey + alpha PNG": (png_bytes(COLOUR16[..., :2], 4), 2, COLOUR16[..., :2]),
    "RGB PNG": (png_bytes(COLOUR16[..., :3], 2), 3, COLOUR16[..., :3]),
    "RGBA PNG": (png_bytes(COLOUR16, 6), 4, COLOUR16),
    "RGB TIFF": (tiff_bytes(COLOUR16[..., :3], photometric=2), 3, COLOUR16[..., :3]),
    "RGB TIFF, big endian": (tiff_bytes(COLOUR16[..., :3], order=">", photometric=2), 3, COLOUR16[..., :3]),
    "RGB TIFF, packed": (tiff_bytes(COLOUR16[..., :3], photometric=2, packed=True), 3, COLOUR16[..., :3]),
    "RGBA TIFF": (tiff_bytes(COLOUR16, photometric=2), 4, COLOUR16),
    "npy, channels last": (npy_bytes(COLOUR16[..., :3]), 3, COLOUR16[..., :3]),
    "npy, big endian": (npy_bytes(COLOUR16.astype(">u2")), 4, COLOUR16),
}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_are_scaled_not_clipped(name: str) -> None:
    data, channels, expected = DEEP[name]
    tensor = read(data, channels)
    assert tensor.dtype == torch.float32
    assert np.array_equal(np.rint(tensor.permute(1, 2, 0).numpy().astype(np.float64) * 65535), expected)
    assert tensor.min() >= 0 and tensor.max() <= 1


def test_sixteen_bit_alpha_is_composited() -> None:
    data = png_bytes(np.array([[[65535, 0, 0, 0], [65535, 0, 0, 65535], [0, 0, 0, 13107]]], np.uint16), 6)
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.8, 0.0]]).T[:, None]  # on green; 13107 is 0.2
    torch.testing.assert_close(read(data, background=[0, 255, 0]), expected)


SHAPES = [(4, 3, 5), (3, 5, 4), (4, 3), (8, 3, 5), (3, 5, 8), (3, 5, 2), (1, 9, 9)]


@pytest.mark.parametrize("shape", SHAPES)
def test_array_layouts(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    if len(shape) == 2:
        expected = array[None]
    elif shape[-1] in (1, 2, 3, 4, 8):
        expected = array.transpose(2, 0, 1)
    else:
        expected = array
    for order in (array, np.asfortranarray(array)):
        assert np.array_equal(read(npy_bytes(order), expected.shape[0]).numpy(), expected)


def float_tiff(values: list[float]) -> bytes:
    return stored(Image.fromarray(np.array([values], np.float32)), "TIFF")


@pytest.mark.parametrize(
    "data",
    [
        float_tiff([-20, -10, 0, 10, 30]),
        npy_bytes(np.array([[-20, -10, 0, 10, 30]], np.float16)),
        npy_bytes(np.array([[-20, -10, 0, 10, 30]], np.float64)),
        npy_bytes(np.array([[-20, -10, 0, 10, 30]], np.int32)),
        stored(Image.fromarray(np.array([[-20, -10, 0, 10, 30]], np.int32)), "TIFF"),
    ],
)
def test_wide_sources_need_a_range(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"set data\.float_range"):
        read(data, 1)
    assert columns(read(data, 1, float_range=[-10, 10])) == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_bad(value: float) -> None:
    for data in (float_tiff([0, value]), npy_bytes(np.array([[0, value]]))):
        with pytest.raises(BadImage, match="NaN or infinite"):
            read(data, 1, float_range=[0, 1])


UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
STORED_AS = {  # EXIF 2.3, tag 274: which side of the upright picture is the 0th row and the 0th column
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int, kind: str) -> None:
    pixels = STORED_AS[orientation].repeat(16, axis=0).repeat(16, axis=1)  # whole JPEG blocks
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True, "quality": 100}  # each kind takes what it knows
    data = stored(Image.fromarray(pixels), kind, exif=exif, **options)
    tensor = read(data, 1)[0, 8::16, 8::16]
    assert np.abs(tensor.numpy().astype(int) - UPRIGHT).max() <= (1 if kind == "JPEG" else 0)
    header = read_header(data, max_pixels=MAX_PIXELS)
    assert (header.width, header.height, header.orientation) == (48, 32, orientation)


def test_sixteen_bit_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        data = stored(Image.fromarray(STORED_AS[6].astype(np.uint16) * 257), kind, exif=exif)
        assert np.array_equal((read(data, 1)[0] * 255).round().numpy(), UPRIGHT)


def test_broken_exif_counts_as_upright() -> None:
    data = stored(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read(data, 1)[0].numpy(), UPRIGHT)


def test_rgb_profile_is_converted() -> None:
    """Linear 0.2158 is 0.5 in sRGB (IEC 61966-2-1)."""
    for kind in ("PNG", "TIFF", "WEBP"):
        image = picture("RGB", [(0, 55, 255), (55, 55, 55)])
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        tensor = read(stored(image, kind, icc_profile=linear_rgb_profile(), **options))
        assert (tensor[:, 0].T - torch.tensor([[0, 128, 255], [128, 128, 128]])).abs().max() <= 1


def test_profile_leaves_alpha_alone_and_comes_before_compositing() -> None:
    data = stored(picture("RGBA", [(55, 55, 55, 51)]), "PNG", icc_profile=linear_rgb_profile())
    assert columns(read(data, 4))[0][3] == 51
    assert abs(columns(read(data))[0][0] - (0.2 * 128 + 0.8 * 255)) <= 1


def test_cmyk_profile_is_used() -> None:
    """Cyan ink is invisible to this profile; L* = 50 is sRGB 119 (CIE 1976, IEC 61966-2-1)."""
    image = picture("CMYK", [(255, 0, 0, 0), (0, 0, 0, 127), (0, 0, 0, 255)])
    tensor = read(stored(image, "TIFF", icc_profile=black_ink_profile()))
    assert (tensor[:, 0].T - torch.tensor([255, 119, 0])[:, None]).abs().max() <= 2


def test_cmyk_jpeg() -> None:
    """Pillow writes the inverted inks of Adobe, and must read them back as such."""
    data = stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert (read(data).float().mean(dim=(1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() <= 3


def test_srgb_profile_changes_nothing_and_a_broken_one_is_ignored() -> None:
    from PIL import ImageCms

    colours = [(x, (7 * x) % 256, 255 - x) for x in range(256)]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey_only = icc_bytes(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})
    for profile in (srgb, b"no profile", grey_only):
        assert columns(read(stored(picture("RGB", colours), "PNG", icc_profile=profile))) == colours


def test_deep_colour_with_a_profile_is_converted_at_eight_bits() -> None:
    def with_profile(data: bytes) -> bytes:
        body = b"p\0\0" + zlib.compress(linear_rgb_profile())
        chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
        return data[:33] + chunk + data[33:]

    tensor = read(with_profile(png_bytes(np.full((1, 1, 3), 55 * 256, np.uint16), 2)))
    assert tensor.dtype == torch.uint8 and (tensor.int() - 128).abs().max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (R, G, B)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    tensor = read(stored(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert tensor.shape == (3, 4, 4) and torch.equal(tensor[:, 0, 0], torch.tensor(R, dtype=torch.uint8))


def tiff_pages(pages: list[NDArray[Any]]) -> bytes:
    first, *others = [Image.fromarray(page) for page in pages]
    return stored(first, "TIFF", save_all=True, append_images=others)


def test_pages_become_channels() -> None:
    shallow = tiff_pages([np.full((2, 3), page, np.uint8) for page in range(8)])
    assert torch.equal(read(shallow, 8)[:, 1, 2], torch.arange(8, dtype=torch.uint8))
    assert read(shallow, 3).shape == (3, 2, 3)  # the first page
    deep = read(tiff_pages([np.full((2, 3), 10_000 * page, np.uint16) for page in range(4)]), 4)
    torch.testing.assert_close(deep[:, 0, 0], torch.arange(4) * (10_000 / 65535))


# name: (file, channels, what the message must say)
BAD: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 3, "empty file"),
    "text": (b"not a picture", 3, "not an image of a known kind"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 3, "not an image of a known kind"),
    "zero bytes": (bytes(1000), 3, "not an image"),
    "bomb": (stored(Image.new("1", (1100, 1000)), "PNG"), 3, r"1100 x 1000 pixels are more than data.max_pixels"),
    "array bomb": (npy_bytes(np.zeros((1100, 1000), np.uint8)), 1, r"more than data.max_pixels"),
    "array of objects": (npy_bytes(np.array([[None]])), 1, "dtype object"),
    "array of booleans": (npy_bytes(np.zeros((2, 2), bool)), 1, "dtype bool"),
    "array without pixels": (npy_bytes(np.zeros((0, 4), np.uint8)), 1, "has no pixels"),
    "array of one axis": (npy_bytes(np.zeros(4, np.uint8)), 1, r"shape \(4,\)"),
    "array of 5 channels": (npy_bytes(np.zeros((9, 9, 5), np.uint8)), 3, r"shape \(9, 9, 5\)"),
    "array of 4 channels": (npy_bytes(np.zeros((9, 9, 4), np.uint8)), 3, r"4 channels; data.channels asks for 3"),
    "array header only": (b"\x93NUMPY\x01\x00", 3, "cannot be decoded"),
    "array of a future version": (b"\x93NUMPY\x03\x00" + bytes(99), 3, "version 3.0"),
    "picture as 8": (stored(picture("RGB", [R]), "PNG"), 8, "picture of 3 channels; data.channels asks for 8"),
    "colour pages": (tiff_pages([np.zeros((4, 4, 3), np.uint8)] * 2), 2, "page 1 has mode RGB"),
    "uneven pages": (tiff_pages([np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)]), 2, "differ in size"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_why(name: str) -> None:
    data, channels, message = BAD[name]
    with pytest.raises(BadImage, match=message) as caught:
        read(data, channels)
    assert "\n" not in str(caught.value)


def noise(mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


WHOLE: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: stored(noise(), "JPEG"),
    "progressive JPEG": lambda: stored(noise(), "JPEG", progressive=True),
    "PNG": lambda: stored(noise(), "PNG"),
    "16-bit RGB PNG": lambda: png_bytes(np.random.default_rng(2).integers(0, 65536, (32, 32, 3)), 2),
    "WEBP": lambda: stored(noise(), "WEBP"),
    "BMP": lambda: stored(noise(), "BMP"),
    "GIF": lambda: stored(noise("P"), "GIF"),
    "TIFF": lambda: stored(noise(), "TIFF"),
    "packed TIFF": lambda: stored(noise(), "TIFF", compression="tiff_lzw"),
    "PPM": lambda: stored(noise(), "PPM"),
    "npy": lambda: npy_bytes(np.asarray(noise())),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_bad(name: str) -> None:
    data = WHOLE[name]()
    assert read(data).shape[0] == 3
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadImage):
            read(data[: int(len(data) * share)])


def test_damage_is_bad_or_harmless() -> None:
    """Random bytes inside any kind of file raise nothing but BadImage, and no warning."""
    generator = np.random.default_rng(3)
    for name in WHOLE:
        whole = np.frombuffer(WHOLE[name](), np.uint8)
        for _ in range(20):
            data = whole.copy()
            data[generator.integers(0, min(400, len(data)), 12)] = generator.integers(0, 256, 12)
            try:
                assert read(data.tobytes()).shape[0] == 3
            except BadImage as error:
                assert "\n" not in str(error)


def test_bytes_after_the_picture_do_no_harm() -> None:
    data = stored(noise(), "JPEG")
    assert torch.equal(read(data + bytes(100)), read(data))


def test_bombs_do_not_warn_and_the_setting_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stored(Image.new("L", (100, 100)), "PNG")
    for pillow_limit in (10, 6_000, 10_000):  # above twice the limit, above it, below it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
        assert read(data, max_pixels=10_000).shape == (3, 100, 100)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
        with pytest.raises(BadImage, match="max_pixels"):
            read(data, max_pixels=9_999)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "wrong name \u00e9 '\n.txt"
    path.write_bytes(stored(picture("RGB", [R]), "PNG"))
    assert columns(read(path)) == [R]  # the content counts, not the name
    for suffix in (".npy", ".NPY"):
        (tmp_path / f"text{suffix}").write_bytes(b"text")
        with pytest.raises(BadImage, match="holds no NumPy array"):
            read(tmp_path / f"text{suffix}")
        with pytest.raises(BadImage, match="holds no NumPy array"):
            read(b"text", suffix=suffix)


def test_unreadable_paths_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in ((tmp_path, "cannot be read"), (tmp_path / "gone.png", "cannot be read: No such file")):
        with pytest.raises(BadImage, match=message) as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    for reader in (read, lambda path: read_header(path, max_pixels=1)):
        with pytest.raises(BadImage, match=r"^cannot be read: Permission denied$"):
            reader(tmp_path / "secret.png")


def test_errors_without_words_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadImage, match="cannot be decoded: MemoryError"):
        read(b"any bytes")


def test_headers(tmp_path: Path) -> None:
    assert read_header(stored(Image.new("CMYK", (5, 3)), "JPEG"), max_pixels=15) == Header("CMYK", 5, 3, 1)
    assert read_header(npy_bytes(np.zeros((3, 7, 9), np.uint16)), max_pixels=63) == Header("uint16", 9, 7, 1)
    assert read_header(npy_bytes(np.zeros((7, 9, 2))), max_pixels=63) == Header("float64", 9, 7, 1)
    path = tmp_path / "cut.jpg"
    path.write_bytes(WHOLE["JPEG"]()[:1500])  # damage after the header is not the header's business
    assert read_header(path, max_pixels=MAX_PIXELS) == Header("RGB", 64, 64, 1)
    for data, message in ((b"", "empty"), (b"text", "not an image"), (stored(noise(), "PNG"), "max_pixels")):
        with pytest.raises(BadImage, match=message):
            read_header(data, max_pixels=64 * 64 - 1)


@pytest.mark.parametrize(
    ("min_side", "size"), [(None, (200, 320)), (101, (200, 320)), (100, (100, 160)), (25, (25, 40)), (3, (25, 40))]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_at_reduced_scale(
    min_side: int | None, size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.tile(np.linspace(0, 255, 320), (200, 1)).astype(np.uint8)
    data = stored(Image.fromarray(ramp), "JPEG", quality=95, exif=exif)
    tensor = read(data, 1, min_side=min_side)
    assert tensor.shape[1:] == (size if orientation == 1 else size[::-1])
    along = tensor[0].float().mean(dim=0 if orientation == 1 else 1)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.linspace(0, 255, 320)[None], size[1])[0]
    assert (along - expected).abs().max() < 4


def test_reduced_scale_leaves_other_kinds_alone() -> None:
    assert read(stored(noise(), "PNG"), min_side=8).shape == (3, 64, 64)


def test_wrong_channel_count_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="channels is 5"):
        read(stored(noise(), "PNG"), 5)
