"""A look at both ends of an image file: cheap enough for every image before any long work."""

from pathlib import Path

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def image_problem(path: str | Path) -> str | None:
    """Say what is wrong with an image file by its first and last bytes; None when they are those of a whole
    JPEG or PNG.

    The kind is told from the content, not from the name. Padding after the end marker is allowed, as decoders
    do.
    """
    try:
        with open(path, "rb") as handle:
            start = handle.read(32)
            size = handle.seek(0, 2)
            handle.seek(max(0, size - 256))
            end = handle.read().rstrip(b"\0\r\n ")
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if size == 0:
        return "zero bytes"
    if start.startswith(JPEG_START):
        return None if end.endswith(JPEG_END) else "truncated JPEG: no end marker"
    if start.startswith(PNG_START):
        if not any(start[16:20]) or not any(start[20:24]):
            return "PNG without width or height"
        return None if end.endswith(PNG_END) else "truncated PNG: no end marker"
    return "neither JPEG nor PNG"
