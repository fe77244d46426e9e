"""Images as they come: what decodes is used with the right values, what cannot be used is named, no job stops."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dive.data.images import MAX_PIXELS, image_problem, image_size
from dive.data.pixels import open_image, to_eight_bits


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 64, height: int = 40) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows(samples: np.ndarray) -> bytes:
    """Filtered bytes of 16-bit samples: every second row by its difference from the row above."""
    raw = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    above = np.vstack([np.zeros_like(raw[:1]), raw[:-1]])
    return b"".join(
        b"\2" + (raw[i] - above[i]).tobytes() if i % 2 else b"\0" + raw[i].tobytes() for i in range(len(raw))
    )


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def wide_png(samples: np.ndarray, colour: int, interlaced: bool = False) -> bytes:
    """A PNG of 16-bit samples (height, width, channels), written here since Pillow writes gray ones only."""
    height, width = samples.shape[:2]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    packed = zlib.compress(b"".join(rows(part) for part in parts if part.size))
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, interlaced)
    halves = chunk(b"IDAT", packed[:50]) + chunk(b"IDAT", packed[50:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + halves + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("highest", "depth"),
    [(255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16), (65535, 16)],
)
def test_sixteen_bits_are_scaled_by_the_depth_that_holds_the_maximum(highest, depth):
    samples = np.array([[0, highest // 3, highest // 2, highest]], dtype=np.uint16)
    scaled = to_eight_bits(samples)
    assert scaled.tolist() == [[round(255 * int(value) / (2**depth - 1)) for value in samples[0]]]
    assert scaled[0, 0] == 0
    assert 255 / 4 < scaled[0, -1] <= 255


@pytest.mark.parametrize(("highest", "depth"), [(1023, 10), (4095, 12), (16383, 14), (65534, 16)])
def test_a_letter_burnt_in_at_full_scale_does_not_darken_the_image(highest, depth):
    samples = np.array([[0, highest // 2, highest, 65535]], dtype=np.uint16)
    scaled = to_eight_bits(samples)[0].tolist()
    assert scaled == [*(round(255 * int(value) / (2**depth - 1)) for value in samples[0, :3]), 255]
    assert to_eight_bits(np.array([0, 65535], np.uint16)).tolist() == [0, 255]


def test_no_light_stays_black():
    assert to_eight_bits(np.zeros((2, 2), np.uint16)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_every_kind_of_sixteen_bit_png_keeps_its_low_bits(tmp_path, colour, channels, bits, interlaced):
    gray = np.random.default_rng(0).integers(0, 1 << bits, (21, 19))
    gray[0, 0] = (1 << bits) - 1
    samples = np.repeat(gray[..., None], channels, axis=2)
    if channels in (2, 4):
        samples[..., -1] = 65535  # opaque
    path = tmp_path / "x.png"
    path.write_bytes(wide_png(samples, colour, interlaced))
    assert image_problem(path) is None
    expected = np.round(255 * gray / ((1 << bits) - 1)).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(path)), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_keep_their_values(tmp_path, mode):
    gray = ramp() if mode != "1" else ramp().point(lambda value: 255 * (value > 99))
    kind, options = ("JPEG", {"quality": 100}) if mode == "CMYK" else ("PNG", {})
    path = tmp_path / "x"
    source = gray.convert("RGB").convert(mode) if mode == "CMYK" else gray.convert(mode)
    path.write_bytes(encoded(source, kind, **options))
    difference = np.asarray(open_image(path)).astype(int) - np.asarray(gray.convert("RGB"))
    assert np.abs(difference).max() <= (3 if mode == "CMYK" else 0)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_fills_the_range(tmp_path, bits):
    levels = np.arange(1 << bits).repeat(16 // (1 << bits))
    packed = np.packbits(((levels[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).ravel()).tobytes()
    header = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress((b"\0" + packed) * 8))
    (tmp_path / "x").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))
    assert np.asarray(open_image(tmp_path / "x"))[0, :, 0].tolist() == (levels * 255 // ((1 << bits) - 1)).tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_as_their_exif_says(tmp_path, kind, orientation):
    image, exif = ramp(32, 24), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x"
    path.write_bytes(encoded(image, kind, exif=exif))
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert open_image(path).size == ((24, 32) if orientation > 4 else (32, 24))
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(expected))


def test_a_sixteen_bit_image_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "x.png", exif=exif)
    read = np.asarray(open_image(tmp_path / "x.png"))[..., 0]
    assert (read[0, 0], read[0, -1], read[-1, -1]) == (round(992 * 255 / 1023), 0, round(31 * 255 / 1023))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_leave_a_sound_image_as_it_is_stored(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(encoded(ramp(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + bytes(9)))
    assert open_image(path).size == (64, 40)


FOLLOWING = {
    "text": b"exported by somebody\n",
    "ff": b"\xff",
    "many ff": b"\xff" * 70_000,
    "zeros": bytes(5000),
    "page": b"<html>" + bytes(range(256)),
}
SOURCES = {
    "baseline": lambda: encoded(ramp(), "JPEG"),
    "progressive": lambda: encoded(ramp(300, 200), "JPEG", progressive=True, quality=95),
    "restarts": lambda: encoded(ramp(300, 200), "JPEG", restart_marker_blocks=2),
    "thumbnail": lambda: encoded(ramp(), "JPEG", exif=b"Exif\0\0" + encoded(ramp(16, 16), "JPEG")),
    "PNG": lambda: encoded(ramp(), "PNG"),
    "interlaced": lambda: wide_png(np.random.default_rng(0).integers(0, 65536, (21, 19, 1)), 0, True),
    "animated": lambda: encoded(ramp(), save_all=True, append_images=[ramp().rotate(180)], duration=9),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("following", FOLLOWING)
def test_bytes_after_the_end_are_no_damage(tmp_path, source, following):
    sound, longer = tmp_path / "sound", tmp_path / "longer"
    sound.write_bytes(SOURCES[source]())
    longer.write_bytes(SOURCES[source]() + FOLLOWING[following])
    assert image_problem(longer) is None
    assert np.array_equal(np.asarray(open_image(longer)), np.asarray(open_image(sound)))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("following", ["nothing", *FOLLOWING])
def test_a_cut_is_seen_whatever_follows(tmp_path, source, following):
    whole, path = SOURCES[source](), tmp_path / "x"
    kind, end = ("JPEG", 2) if whole.startswith(b"\xff\xd8") else ("PNG", 12)
    for size in (*range(24, len(whole) - end, max(1, len(whole) // 40)), len(whole) - end, len(whole) - 1):
        path.write_bytes(whole[:size] + FOLLOWING.get(following, b""))
        if kind == "PNG" and following != "nothing" and size == len(whole) - 1:
            continue  # a byte takes the place of the last one of a checksum, which no decoder reads
        assert image_problem(path) == f"truncated {kind}: no end marker", size


def test_the_first_frame_of_an_animation_is_the_image(tmp_path):
    (tmp_path / "x").write_bytes(SOURCES["animated"]())
    assert np.array_equal(np.asarray(open_image(tmp_path / "x"))[..., 0], np.asarray(ramp()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ((1, 300), "too small: 1 x 300 pixels"),
        ((300, 1), "too small: 300 x 1 pixels"),
        ((1, 1), "too small"),
        ((3, 300), "too small"),
        ((300, 7), "too small"),
        ((8, 161), "one side is more than 20 times"),
        ((8, 160), None),
    ],
)
def test_what_no_backbone_can_use_is_named_before_and_when_it_is_decoded(tmp_path, kind, size, problem):
    path = tmp_path / "x"
    path.write_bytes(encoded(Image.new("L", size, 99), kind))
    assert image_size(path) == size
    if problem is None:
        assert image_problem(path) is None
        assert open_image(path).size == size
    else:
        assert problem in image_problem(path)
        with pytest.raises(OSError, match=problem):
            open_image(path)


def test_an_image_beyond_all_size_is_named_and_never_decoded(tmp_path):
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    jpeg = encoded(ramp(), "JPEG").replace(struct.pack(">HH", 40, 64), struct.pack(">HH", 20_000, 20_000))
    for content in (bomb + chunk(b"IEND", b""), jpeg):
        (tmp_path / "x").write_bytes(content)
        assert "too large: 20000 x 20000 pixels" in image_problem(tmp_path / "x")
        with pytest.raises(OSError, match="x: cannot be read as an image"):
            open_image(tmp_path / "x")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(ramp(), kind))
    assert image_problem(path) == "neither JPEG nor PNG"
    with pytest.raises(OSError, match="neither JPEG nor PNG"):
        open_image(path)


@pytest.mark.parametrize("source", SOURCES)
def test_damage_anywhere_is_an_error_of_the_file_or_none(tmp_path, source):
    whole, rng, path = SOURCES[source](), random.Random(0), tmp_path / "x"
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        assert image_problem(path) is None or image_problem(path)
        try:
            mode, told = open_image(path).mode, ""
        except OSError as error:
            mode, told = None, str(error)
        assert mode == "RGB" or "x: cannot be read as an image" in told
