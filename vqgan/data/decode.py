"""One file to one tensor (C, H, W): pictures through Pillow, arrays through NumPy, whatever their mode.

Inside, `pixels` are (H, W, c) arrays, uint8 or float32 in [0, 1] (see `vqgan.data.pixels`).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

from vqgan.data.no_warnings import NO_WARNINGS
from vqgan.data.pixels import BadImage, Pixels, scale_range, to_channels, upright

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # the others are rare, slow or start programs
CHANNELS = (1, 2, 3, 4, 8)
NPY_MAGIC = b"\x93NUMPY"
ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_PHOTOMETRIC = 0x0112, 256, 257, 258, 262
_PROBE_COLOURS = (250, 5, 5, 5, 250, 5, 5, 5, 250, 200, 120, 40, 40, 120, 200, 128, 128, 128, 20, 20, 20, 240, 200, 180)

# Pillow keeps the high byte of 16-bit colour samples. Unpacked in the opposite byte order, the same data yield the low
# byte; for grey + alpha the raw bytes fit the four channels of RGBA.
_NATIVE_SWAPPED = "B" if sys.byteorder == "little" else "L"
_LOW_BYTES = {
    "LA;16B": "RGBA",
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": f"RGB;16{_NATIVE_SWAPPED}",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": f"RGBA;16{_NATIVE_SWAPPED}",
}


class Header(NamedTuple):
    """What a file says about itself before any pixel is decoded."""

    mode: str  # Pillow's name of the pixel format; for an array its dtype
    width: int  # upright, as a viewer shows it
    height: int
    orientation: int  # EXIF: 1 upright, 2 to 8 mirrored or turned


def read_header(data: bytes | Path, *, suffix: str = "", max_pixels: int) -> Header:
    """Mode and upright size of a file from its first bytes.

    Args:
        data: the file's content, or its path.
        suffix: file name extension of `data` where it is bytes.
        max_pixels: files with more pixels are bad.

    Raises:
        BadImage: not a readable picture or array, or above `max_pixels`. (Damage further in shows only when decoding.)
    """
    with _reading(data, suffix) as (stream, is_array):
        if is_array:
            shape, dtype = _array_header(stream, max_pixels)
            return Header(dtype.name, shape[1], shape[0], 1)
        image = _open(stream, max_pixels)
        orientation = _orientation(image)
        width, height = _stored_size(image)
        return Header(image.mode, *((height, width) if orientation >= 5 else (width, height)), orientation)


def decode(
    data: bytes | Path,
    *,
    suffix: str = "",
    channels: int | None,
    background: Sequence[int],
    float_range: Sequence[float] | None,
    max_pixels: int,
    min_side: int | None = None,
) -> Tensor:
    """Decode a file, upright and in sRGB, to (channels, H, W): uint8, or float32 in [0, 1] from deeper sources.

    Pictures of every mode give 1 (luma), 2 (luma, alpha), 3 (RGB) or 4 (RGB, alpha) channels; without an alpha channel
    in the result, transparent pixels are composited on `background`. A TIFF of exactly 2, 4 or 8 pages gives that many
    channels, one per page; of other animations and page stacks the first frame counts. 16-bit samples are divided by
    65535 (grey ones stay as they are, whatever their profile; colour with a profile other than sRGB is converted at 8
    bits). Arrays (.npy) are (H, W), (H, W, C) or (C, H, W) and must have the channels asked for, but grey ones may
    become RGB.

    Args:
        data: the file's content, or its path.
        suffix: file name extension of `data` where it is bytes.
        channels: channels of the result: 1, 2, 3, 4 or 8; None: as many as the file has.
        background: RGB colour, 0 to 255.
        float_range: values [low, high] of floating-point and wide integer sources that become [0, 1].
        max_pixels: files with more pixels are bad; checked before pixels are decoded.
        min_side: decode a larger JPEG at 1/2, 1/4 or 1/8 of its size, as long as its short side keeps this many pixels.

    Raises:
        BadImage: whatever is wrong with the file, or a file that does not fit `channels` or lacks `float_range`.
    """
    if channels is not None and channels not in CHANNELS:
        raise ValueError(f"channels is {channels}; expected one of {CHANNELS}, or None.")
    with _reading(data, suffix) as (stream, is_array):
        if is_array:
            pixels = _read_array(stream, channels, float_range, max_pixels)
        else:
            image = _open(stream, max_pixels)
            if channels in (2, 4, 8) and image.format == "TIFF" and getattr(image, "n_frames", 1) == channels:
                pixels = _read_pages(image, channels, float_range, max_pixels)
            else:
                if min_side is not None:
                    image.draft(None, (min_side, min_side))
                pixels = _read_picture(image, stream, float_range)
                if channels is not None:
                    pixels = to_channels(pixels, channels, background)
                pixels = upright(pixels, _orientation(image))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # (C, H, W)


@contextmanager
def _reading(data: bytes | Path, suffix: str) -> Iterator[tuple[BinaryIO, bool]]:
    """Open `data` and tell whether it holds an array; whatever goes wrong with it becomes BadImage."""
    try:
        # Pillow warns of odd metadata and of large pictures; we judge both ourselves.
        with data.open("rb") if isinstance(data, Path) else BytesIO(data) as stream, NO_WARNINGS:
            magic = stream.read(len(NPY_MAGIC))
            stream.seek(0)
            if not magic:
                raise BadImage("empty file")
            if magic != NPY_MAGIC and (data.suffix if isinstance(data, Path) else suffix).lower() == ".npy":
                raise BadImage("named .npy, but holds no NumPy array")
            yield stream, magic == NPY_MAGIC
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known kind ({', '.join(FORMATS)} or .npy)") from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}" if error.strerror else f"damaged: {error}"
        raise BadImage(_one_line(reason)) from error
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly anything
        raise BadImage(_one_line(f"cannot be decoded: {str(error) or type(error).__name__}")) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise BadImage(f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than data.max_pixels ({max_pixels})")


def _open(stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header of a picture; its pixels follow with `load`."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow has a limit of its own, which must not undercut the setting
    stream.seek(0)
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"has more pixels than data.max_pixels ({max_pixels})") from None
    _check_size(*image.size, max_pixels)
    return image


def _stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height before any turn; Pillow reports a turned TIFF upright already."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TIFF_WIDTH, image.width), tags.get(TIFF_HEIGHT, image.height)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation still to be applied: 1 for a loaded TIFF, which Pillow turns itself."""
    try:
        value = Image.Image.getexif(image).get(ORIENTATION, 1)  # PNG's own getexif would decode the picture
    except Exception:  # a broken EXIF block does not make the picture bad
        return 1
    return value if value in range(1, 9) else 1


def _read_picture(image: ImageFile.ImageFile, stream: BinaryIO, float_range: Sequence[float] | None) -> Pixels:
    """Pixels of one frame, in sRGB, with whatever channels it has."""
    profile = image.info.get("icc_profile")
    rawmodes = {tile.args if isinstance(tile.args, str) else (tile.args or [""])[0] for tile in image.tile}
    rawmode = str(rawmodes.pop()) if len(rawmodes) == 1 else ""
    if rawmode in _LOW_BYTES and _profile_to_srgb(profile, "RGB") is None:
        return _read_deep_colour(image, stream, rawmode)
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _read_deep_grey(image, float_range)[..., None]

    # Colour and alpha go separate ways: a profile speaks of colour only.
    is_grey = image.mode in ("1", "L", "LA")
    picture: Image.Image = image
    alpha = None
    if image.has_transparency_data:
        picture = image.convert("LA" if is_grey else "RGBA")
        alpha = picture.getchannel("A")
    picture = picture if picture.mode == "CMYK" else picture.convert("L" if is_grey else "RGB")
    to_srgb = _profile_to_srgb(profile, picture.mode)
    if to_srgb is not None:
        picture = to_srgb.apply(picture)
    elif picture.mode == "CMYK":
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    if alpha is not None:
        return np.dstack([pixels, np.asarray(alpha)])
    return pixels if pixels.ndim == 3 else pixels[..., None]


@lru_cache(maxsize=16)
def _profile_to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Conversion of `mode` pixels by an embedded ICC profile; None where it is absent, broken or sRGB itself."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ImportError, ValueError):
        return None
    if mode == "RGB":  # sRGB has many names, so ask the conversion itself
        probe = Image.frombytes("RGB", (8, 1), bytes(_PROBE_COLOURS))
        shift = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe, np.int16)
        if np.abs(shift).max() <= 1:
            return None
    return transform


def _read_deep_colour(image: ImageFile.ImageFile, stream: BinaryIO, rawmode: str) -> Pixels:
    """All 16 bits of (grey + alpha), RGB or RGB + alpha samples, in [0, 1]."""
    high = np.asarray(image, np.uint16)
    again = _open(stream, high.size)
    swapped = _LOW_BYTES[rawmode]
    again.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
        for tile in again.tile
    ]
    low = np.asarray(again, np.uint16)
    if rawmode == "LA;16B":  # the bytes of a pixel: grey high, grey low, alpha high, alpha low
        high, low = low[..., 0::2], low[..., 1::2]
    return (high * 256 + low).astype(np.float32) / 65535


def _read_deep_grey(image: ImageFile.ImageFile, float_range: Sequence[float] | None) -> Pixels:
    """Grey samples of more than 8 bits, (H, W) in [0, 1]."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and tags):
        return scale_range(np.asarray(image), float_range)
    bits = tags.get(TIFF_BITS, (16,))[0]
    grey = np.asarray(image).astype(np.float32) / (2**bits - 1)
    return 1 - grey if tags.get(TIFF_PHOTOMETRIC) == 0 else grey  # 0: white is zero


def _read_pages(image: ImageFile.ImageFile, pages: int, float_range: Sequence[float] | None, max_pixels: int) -> Pixels:
    """A TIFF whose pages are the channels of one picture, (H, W, pages)."""
    planes = []
    for page in range(pages):
        image.seek(page)
        _check_size(*image.size, max_pixels)
        image.load()
        if image.mode in ("1", "L"):
            planes.append(np.array(image.convert("L")))
        elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
            planes.append(_read_deep_grey(image, float_range))
        else:
            raise BadImage(f"page {page + 1} has mode {image.mode}; pages that serve as channels must be grey")
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        raise BadImage("pages that serve as channels differ in size or depth")
    return np.dstack(planes)


def _array_header(stream: BinaryIO, max_pixels: int) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape as (H, W, C) and dtype of a .npy file; checks that its data are complete."""
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise BadImage(f"array of .npy version {version[0]}.{version[1]}; expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    start = stream.tell()
    if dtype.kind not in "uif":
        raise BadImage(f"array of dtype {dtype}; expected uint8, uint16 or floating-point numbers")
    if len(shape) == 2:
        height, width, count = *shape, 1
    elif len(shape) == 3 and shape[2] in CHANNELS:
        height, width, count = shape
    elif len(shape) == 3 and shape[0] in CHANNELS:
        count, height, width = shape
    else:
        raise BadImage(f"array of shape {shape}; expected (H, W), (H, W, C) or (C, H, W) with C in {CHANNELS}")
    _check_size(width, height, max_pixels)
    if stream.seek(0, 2) - start < width * height * count * dtype.itemsize:
        raise BadImage("damaged: array file is truncated")
    return (height, width, count), dtype


def _read_array(stream: BinaryIO, channels: int | None, float_range: Sequence[float] | None, max_pixels: int) -> Pixels:
    """A .npy file as (H, W, channels)."""
    shape, dtype = _array_header(stream, max_pixels)
    channels = channels or shape[2]
    if shape[2] != channels and (shape[2], channels) != (1, 3):  # what else a channel means is not ours to guess
        raise BadImage(f"array of {shape[2]} channels; data.channels asks for {channels}")
    stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.ndim == 3 and array.shape != shape:
        array = array.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    array = array.reshape(shape)
    if dtype.name == "uint16":  # of either byte order
        array = array.astype(np.float32) / 65535
    elif dtype.name != "uint8":
        array = scale_range(array, float_range)
    return np.broadcast_to(array, (*shape[:2], channels))
