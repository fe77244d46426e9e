"""A look at both ends of an image file: cheap enough for every image before any long work."""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

MIN_SIDE = 8
"""Pixels. No radiograph is smaller, and the backbones' processors mistake a side of 1, 3 or 4 pixels for colours."""

MAX_RATIO = 20
"""Longer side over shorter side. No radiograph is longer, and Qwen2.5-VL's processor stops at 200."""

MAX_PIXELS = 178_956_970
"""Pillow refuses to decode more, since a small file can then fill the memory."""

TAIL = 256
"""Bytes at the end in which the end marker is looked for before the file is walked through."""

BLOCK = 1 << 16
"""Bytes read at a time where markers are searched for."""

MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""In a scan of a JPEG: its bytes 0xff are stuffed, padding or restart markers otherwise."""


def image_problem(path: str | Path) -> str | None:
    """Say what is wrong with an image file by its first and last bytes; None when they are those of a whole
    JPEG or PNG of a usable size.

    The kind is told from the content, not from the name. Whatever follows the end marker is allowed, as decoders do:
    only where the marker is not at the end are the file's parts walked through in search of it.
    """
    try:
        with open(path, "rb") as handle:
            return _problem(handle)
    except (OSError, ValueError) as error:
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"


def _problem(handle: BinaryIO) -> str | None:
    start = handle.read(8)
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - TAIL))
    end = handle.read().rstrip(b"\0\r\n ")
    if size == 0:
        return "zero bytes"
    if start.startswith(JPEG_START):
        if not end.endswith(JPEG_END) and not _jpeg_ends(handle):
            return "truncated JPEG: no end marker"
        shape = _stated_size(handle)
        return None if shape is None else size_problem(*shape, "JPEG")
    if start.startswith(PNG_START):
        shape = _stated_size(handle)
        if shape is None or not all(shape):
            return "PNG without width or height"
        if not end.endswith(PNG_END) and not any(kind == b"IEND" for kind, _, _ in png_chunks(handle)):
            return "truncated PNG: no end marker"
        return size_problem(*shape, "PNG")
    return "neither JPEG nor PNG"


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Width and height that a JPEG or PNG states; None where it states none or cannot be opened."""
    try:
        with open(path, "rb") as handle:
            return _stated_size(handle)
    except (OSError, ValueError):
        return None


def _stated_size(handle: BinaryIO) -> tuple[int, int] | None:
    """Width and height by the header; None where that is damaged, which decoding will tell."""
    handle.seek(0)
    start = handle.read(24)
    if start.startswith(PNG_START):
        return struct.unpack(">II", start[16:24]) if len(start) == 24 else None
    for code, place in _jpeg_segments(handle, 0) if start.startswith(JPEG_START) else ():
        if _is_frame(code):
            handle.seek(place + 5)
            stated = handle.read(4)
            return struct.unpack(">HH", stated)[::-1] if len(stated) == 4 else None
        if code == 0xDA:
            return None
    return None


def size_problem(width: int, height: int, kind: str = "image") -> str | None:
    """Say why an image of this size cannot be used, whatever the backbone; None when it can."""
    if not width or not height:
        return f"{kind} without width or height"
    told = f"{width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        return f"too small: {told}, and a side needs at least {MIN_SIDE}"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"no radiograph: {told}, and one side is more than {MAX_RATIO} times the other"
    if width * height > MAX_PIXELS:
        return f"too large: {told}, and at most {MAX_PIXELS:,} are decoded"
    return None


def png_chunks(handle: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of the data of each whole chunk of a PNG, up to its end marker or to where it breaks."""
    size = handle.seek(0, os.SEEK_END)
    place = len(PNG_START)
    while place + 12 <= size:
        handle.seek(place)
        length, kind = struct.unpack(">I4s", handle.read(8))
        if not kind.isalpha() or place + 12 + length > size:
            return
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += 12 + length


def _jpeg_segments(handle: BinaryIO, place: int) -> Iterator[tuple[int, int]]:
    """Code and place of each marker from ``place`` on, by the lengths that segments state; stops where none is."""
    while True:
        handle.seek(place)
        head = handle.read(4)
        while head[:2] == b"\xff\xff":  # markers may be padded
            handle.seek(place)
            padded = handle.read(BLOCK)
            place += len(padded) - len(padded.lstrip(b"\xff")) - 1
            handle.seek(place)
            head = handle.read(4)
        if len(head) < 2 or head[0] != 0xFF:
            return
        yield head[1], place
        if head[1] == 0xD9:
            return
        if head[1] == 0x01 or 0xD0 <= head[1] <= 0xD8:  # without a length
            place += 2
        elif len(head) < 4:
            return
        else:
            place += 2 + struct.unpack(">H", head[2:])[0]


def _is_frame(code: int) -> bool:
    """Whether a marker starts a frame, which states the size."""
    return 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)


def _jpeg_ends(handle: BinaryIO) -> bool:
    """Whether a JPEG has an end marker of its own: not one of a thumbnail within a segment, nor bytes of a scan."""
    place = 0
    while True:
        scan = None
        for code, start in _jpeg_segments(handle, place):
            if code == 0xD9:
                return True
            if code == 0xDA:
                scan = start
                break
        if scan is None:
            return False
        handle.seek(scan + 2)
        length = handle.read(2)
        if len(length) < 2:
            return False
        following = _after_scan(handle, scan + 2 + struct.unpack(">H", length)[0])
        if following is None:
            return False
        place = following


def _after_scan(handle: BinaryIO, place: int) -> int | None:
    """Place of the first marker that is no part of a scan's entropy-coded bytes; None at the end of the file."""
    handle.seek(place)
    kept = b""
    while block := handle.read(BLOCK):
        content = kept + block
        found = MARKER.search(content)
        if found:
            return place + found.start()
        kept = content[-1:] if content.endswith(b"\xff") else b""
        place += len(content) - len(kept)
    return None
