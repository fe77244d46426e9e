"""Chest phantoms: small gray images in which every finding can be seen, none of them trivially.

Coordinates run from -1 to 1, x to the image's right and y downwards. As in a radiograph the patient faces the
viewer, so the patient's right lies on the image's left.
"""

from functools import cache

import numpy as np
from PIL import Image

from dive.data.synthetic.findings import Findings

PHANTOM_SIZE = 48
DISK_SIZE = 96
NOISE = 0.06

# How strongly a finding shows, in parts of the gray range before its own shape thins it out (`draw_phantom`). Set so
# that after training no finding is at chance and none is read without error.
CONTRAST = {
    "cardiomegaly": 0.17,
    "effusion": 0.14,
    "consolidation": 0.29,
    "pneumothorax": 0.8,
    "edema": 0.13,
    "nodule": 0.62,
    "atelectasis": 0.32,
    "tube": 0.125,
    "line": 0.125,
    "pacemaker": 0.105,
}


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return axis[None, :], axis[:, None]


def _inside(value: np.ndarray, softness: float) -> np.ndarray:
    """1 where ``value`` < 0, 0 where > 0, linear over ``softness`` between: an edge without stair steps."""
    return np.clip(0.5 - value / softness, 0.0, 1.0)


def _ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return _inside(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1, 0.35)


def _blob(x: np.ndarray, y: np.ndarray, cx: float, cy: float, width: float) -> np.ndarray:
    return np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)))


def _segment(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A line from (x0, y0) to (x1, y1) of the given half-width."""
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
    return np.clip(1.5 - distance / width, 0.0, 1.0)


def draw_phantom(findings: Findings, rng: np.random.Generator, size: int = PHANTOM_SIZE) -> np.ndarray:
    """Draw one frontal chest.

    Args:
        findings: what is to be seen.
        rng: where anatomy varies (position, habitus, exposure), findings lie, and noise comes from.
        size: pixels a side.

    Returns:
        Gray values, uint8, shape (size, size).
    """
    x, y = _grid(size)
    jitter = rng.uniform(-1, 1, 24)
    x = x - 0.06 * jitter[0]
    y = y - 0.06 * jitter[1]
    wide = 1 + 0.05 * jitter[2]

    image = 0.08 + 0.42 * _ellipse(x, y, 0, 0.08, 0.95 * wide, 1.05)
    right = _ellipse(x, y, -0.44 * wide, 0.0, 0.34 * wide, 0.72)
    left = _ellipse(x, y, 0.46 * wide, 0.0, 0.32 * wide, 0.72)
    lungs = {0: right, 1: left}
    image -= 0.26 * np.maximum(right, left)
    image += 0.03 * np.sin(y * 17 + 2.2 * np.abs(x) + 2 * jitter[3]) * np.maximum(right, left)

    enlarged = findings.cardiomegaly * (0.6 + 0.2 * jitter[4]) if findings.cardiomegaly else 0.0
    heart_width = 0.27 * (1 + CONTRAST["cardiomegaly"] * enlarged)
    heart = _ellipse(x, y, 0.10 + 0.02 * jitter[5], 0.34, heart_width, 0.36)
    image += 0.22 * heart

    for side, severity in ((0, findings.right_effusion), (1, findings.left_effusion)):
        if severity:
            outward = -x if side == 0 else x
            level = 0.66 - 0.15 * severity - 0.25 * (outward - 0.45) + 0.04 * jitter[6 + side]
            image += CONTRAST["effusion"] * _inside(level - y, 0.15) * lungs[side]

    if findings.consolidation:
        side, zone, density = findings.consolidation_place
        centre = (-0.44 if side == 0 else 0.50) + 0.08 * jitter[8], (-0.32, 0.24)[zone] + 0.08 * jitter[9]
        strength = CONTRAST["consolidation"] * (0.65, 1.0)[density]
        image += strength * _blob(x, y, *centre, 0.19 + 0.03 * jitter[10]) * lungs[side]

    if findings.pneumothorax:
        side, large = findings.pneumothorax_place
        sign = -1 if side == 0 else 1
        depth = (0.20, 0.34)[large] + 0.03 * jitter[11]
        inner = _ellipse(x, y, sign * (0.45 * wide - depth * 0.6), depth * 0.9, 0.34 * wide, 0.72)
        air = lungs[side] * (1 - inner) * (y < 0.25)
        image -= CONTRAST["pneumothorax"] * 0.35 * air

    if findings.edema:
        haze = _blob(x, y, -0.30, 0.02, 0.22) + _blob(x, y, 0.34, 0.02, 0.22)
        image += CONTRAST["edema"] * (0.7, 1.1)[findings.edema - 1] * haze

    if findings.nodule:
        side, zone = findings.nodule_place
        centre = (-0.46 if side == 0 else 0.52) + 0.10 * jitter[12], (-0.36, 0.20)[zone] + 0.12 * jitter[13]
        image += CONTRAST["nodule"] * _blob(x, y, *centre, 0.065)

    if findings.atelectasis:
        sign = -1 if findings.atelectasis == 1 else 1
        base = 0.42 + 0.08 * jitter[14]
        tilt = 0.06 * jitter[15]
        band = _segment(x, y, sign * 0.24, base + tilt, sign * 0.72, base - tilt, 0.05)
        image += CONTRAST["atelectasis"] * 0.7 * band

    if findings.tube:
        shift = 0.03 * jitter[16]
        image += CONTRAST["tube"] * _segment(x, y, shift, -1.0, shift, -0.42 + 0.08 * jitter[17], 0.04)

    if findings.line:
        image += CONTRAST["line"] * (
            _segment(x, y, -0.52 + 0.05 * jitter[18], -0.82, -0.13, -0.52, 0.04)
            + _segment(x, y, -0.13, -0.52, -0.11, 0.05 + 0.05 * jitter[19], 0.04)
        )

    if findings.pacemaker:
        cx, cy = 0.60 + 0.05 * jitter[20], -0.62 + 0.05 * jitter[21]
        box = _inside(np.maximum(np.abs(x - cx), np.abs(y - cy)) - 0.13, 0.08)
        image += CONTRAST["pacemaker"] * (1.2 * box + _segment(x, y, cx, cy, 0.10, 0.30, 0.035))

    image = image * (1 + 0.08 * jitter[22]) + 0.03 * jitter[23]
    image += NOISE * rng.standard_normal((size, size), dtype=np.float32)
    return (np.clip(image, 0.0, 1.0) * 255).round().astype(np.uint8)


def draw_image(findings: Findings, rng: np.random.Generator, size: int = DISK_SIZE) -> Image.Image:
    """A phantom as it lies on disk: gray, ``size`` x ``size``, larger than any tiny backbone looks at it."""
    return Image.fromarray(draw_phantom(findings, rng)).resize((size, size), Image.Resampling.BILINEAR)


def blank_image(size: int = DISK_SIZE) -> Image.Image:
    """A mid-gray image, which shows nothing."""
    return Image.new("L", (size, size), 128)
