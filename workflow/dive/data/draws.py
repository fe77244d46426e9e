"""Draws that depend on a seed and on the name of what is drawn, never on what else there is.

Sampling with one generator ties every draw to the order and number of the candidates: one more study and all
queries get other demonstrations. Here each name gets its own number by a hash, and whatever is drawn is what
has the smallest numbers.
"""

import hashlib
from collections.abc import Iterable
from zlib import crc32

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of one purpose: ``stream(seed, "order", epoch)`` shares nothing with ``stream(seed, "init")``."""
    return np.random.default_rng([seed, *(crc32(str(name).encode()) for name in names)])


def hashes(seed: int, stream: str, names: Iterable[str]) -> np.ndarray:
    """64-bit hash of every name in the stream of draws called ``stream``; shape (n,), uint64, the same everywhere."""
    key = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    values = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, key=key).digest(), "little") for name in names
    ]
    return np.array(values, dtype=np.uint64)


def uniforms(seed: int, stream: str, names: Iterable[str]) -> np.ndarray:
    """A number in [0, 1) for every name in the stream; shape (n,), float64."""
    return (hashes(seed, stream, names) >> np.uint64(11)) / 2.0**53


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014), elementwise on uint64: makes ``hash ^ hash`` well-mixed."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
