"""Decodes an image file into what the backbones see: 8-bit RGB."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dive.data.images import png_chunks, size_problem

FULL = 0xFFFF
"""The largest sample of 16 bits."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors deliver; a 16-bit file holds any of them."""

WIDE = {2: ("RGB", "RGB;16B", "RGB;16L"), 4: ("RGBA", "RGBA", "RGBA"), 6: ("RGBA", "RGBA;16B", "RGBA;16L")}
"""Colour type of a PNG -> Pillow's mode, and how it is told to keep each sample's high bytes, and its low bytes."""

DAMAGED_HEADER = "cannot be read as an image (neither JPEG nor PNG, or its header is damaged)"

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's tag, and what each of its numbers asks a viewer to do."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright as its EXIF says; of an animation, the first frame.

    Samples of 16 bits are scaled by the content's own depth, see `to_eight_bits`. Transparency is dropped.

    Raises:
        OSError: the file is absent, truncated, damaged, of an unusable size or no image; the message names it.
    """
    try:
        return _decode(path)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message repeats the path
        raise OSError(f"{path}: {DAMAGED_HEADER}") from ValueError(DAMAGED_HEADER)
    except Exception as error:  # decoders raise anything on a damaged file, and it is the fault of that file alone
        raise OSError(f"{path}: cannot be read as an image ({error})") from error


def _decode(path: str | Path) -> Image.Image:
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        problem = size_problem(*image.size)
        if problem:
            raise ValueError(problem)
        image.load()
        samples = sixteen_bits(path, image)
        turn = TURNS.get(orientation(image))
        decoded = image if samples is None else Image.fromarray(to_eight_bits(samples))
        return (decoded if turn is None else decoded.transpose(turn)).convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF's number of how the image is turned; 1, upright, where there is none or the metadata are damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels are sound
        return 1


def to_eight_bits(samples: np.ndarray) -> np.ndarray:
    """Scale unsigned 16-bit samples to 8 bits by the smallest depth of `DEPTHS` that holds their maximum.

    Samples at full scale, 65,535, have no say, unless there is nothing else: letters are burnt in so.

    A file of 16 bits says nothing of the detector's depth. 12 bits of content divided by 65,535 would be almost black.
    A window from minimum to maximum would make the contrast depend on one burnt-in letter. By depth, the scale stays
    linear, black stays black, and images of one detector get the same scale as long as their maxima need the same
    depth.

    Args:
        samples: any shape, uint16.

    Returns:
        The same shape, uint8: ``round(255 * sample / (2 ** depth - 1))``.
    """
    highest = int(samples.max(initial=0))
    if highest == FULL and (below := samples[samples < FULL]).any():
        highest = int(below.max())  # letters are burnt in at full scale, whatever the depth
    depth = next(bits for bits in DEPTHS if highest < 1 << bits)
    values = np.arange(int(samples.max(initial=0)) + 1)
    return np.round(255 * values / ((1 << depth) - 1)).clip(0, 255).astype(np.uint8)[samples]


def sixteen_bits(path: str | Path, image: Image.Image) -> np.ndarray | None:
    """The samples of a 16-bit image, gray or (height, width, 3) colours; None for an image of fewer bits.

    Of colours, and of gray with transparency, Pillow itself keeps only the high bytes.
    """
    if image.mode.startswith("I"):
        return np.asarray(image).clip(0, 0xFFFF).astype(np.uint16)
    if image.format != "PNG":
        return None
    with open(path, "rb") as handle:
        handle.seek(24)
        bits, colour, _, _, interlaced = struct.unpack(">BBBBB", handle.read(5))
        if bits != 16 or colour not in WIDE:
            return None
        packed = []
        for kind, start, length in png_chunks(handle):
            if kind == b"IDAT":
                handle.seek(start)
                packed.append(handle.read(length))
    mode, *halves = WIDE[colour]
    high, low = (
        np.asarray(Image.frombytes(mode, image.size, b"".join(packed), "zip", (half, interlaced))).astype(np.uint16)
        for half in halves
    )
    if colour == 4:  # gray and alpha, two bytes each, in the places of four samples of one byte
        return high[..., 0] << 8 | high[..., 1]
    return (high << 8 | low)[..., :3]
