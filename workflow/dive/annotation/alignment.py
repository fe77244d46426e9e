"""From spans of characters to subword tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def mark_tokens(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]], text: str) -> np.ndarray:
    """Mark the tokens that overlap a span in at least one character that is not blank.

    Tokenizers of the Qwen and Llama 3 kind count the leading blank into a token, those of Gemma and Llama 2 do not: a
    test of containment would lose the first token of every span. Blanks therefore never count, neither those of a
    token nor those inside a span. A character that several tokens share (bytes of one letter) marks all of them.

    Args:
        offsets: (start, end) characters of ``text`` for each of the T report tokens, special tokens left out.
        spans: (start, end) of every decisive span.
        text: the report.

    Returns:
        bool, shape (T,). Tokens beyond a truncation are simply not in ``offsets``, and nothing is marked for them.

    Raises:
        ValueError: an offset or span does not lie in the text.
    """
    inside = np.zeros(len(text) + 1, dtype=np.int64)
    for start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"span {start}..{end} does not lie in a text of {len(text)} characters")
        inside[start:end] = 1
    inside[:-1] *= np.array([not character.isspace() for character in text], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(inside)])  # number of decisive characters before each place
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    if len(places) and not (places.min() >= 0 and places.max() <= len(text)):
        raise ValueError(f"token offsets do not lie in a text of {len(text)} characters: are they of another text?")
    return before[places[:, 1]] > before[places[:, 0]]


def require_fast(tokenizer: Any) -> None:
    """Raise a `ValueError` for a tokenizer without offsets, which cannot say which characters a token covers."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer and gives no offsets; decisive tokens need a fast one: "
            "load it with use_fast=True, or convert it so that the folder has a tokenizer.json"
        )
