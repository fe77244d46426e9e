"""Which positions a call of ``generate`` steers: from the last token of its prompt on, however the tokens are decoded.

In one call of ``generate`` a position is known by its column: padding, tokens in a given cache and the prompt come
first, all that is written follows. Drafts of assisted generation, chunks of a prompt and what follows a cached prefix
are passes over such columns, so one number, the column of the prompt's last token, says what every pass steers.
A cache remembers from which column its states are steered, since a chat that goes on is steered from its first answer.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

MARK = "steered_from"
"""Attribute of a cache, which copies of it keep: (first steered column, whether ``generate`` steered it)."""

SECOND_PROMPT = "it runs the model on tokens that are not the prompt, and which of them to steer is not known"
REFUSED = {
    "guidance_scale": SECOND_PROMPT,
    "token_healing": "it rewrites the end of the prompt, where steering begins",
    "custom_generate": SECOND_PROMPT,
    "trust_remote_code": "decoding code from the hub may run the model on other tokens",
}
"""Settings of ``generate`` with which the steered positions would be wrong or unknown."""

PACKED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
PACKED_PROMPTS = (
    "continuous batching packs prompts into one row, where the steered positions are not known: call generate with a "
    "batch that is padded on the left, or detach() the adapter first"
)
RIGHT_PADDING = (
    "a prompt of the batch ends with padding, where its last token should be: pad on the left "
    "(processor.tokenizer.padding_side = 'left') and give the attention_mask"
)
COPIES = (
    "a model that is steered cannot be pickled, and a copy of it would share the steering: copy.deepcopy what attach "
    "returned, or detach() first; save_pretrained of what attach returned writes the adapter"
)


def note_call(cache: Any, layer: int, length: int, answer: bool, active: bool) -> None:
    """Note in ``cache`` what a plain call of the model is about to put there; called as its first steered layer begins.

    Args:
        cache: key-value cache of the call.
        layer: index of that layer.
        length: new positions of the call.
        answer: whether only answer positions are steered (of several new ones on an empty cache the last one).
        active: False where the steering is paused.
    """
    known = getattr(cache, MARK, None)
    if length == 1 and known is not None and active:
        return
    cached = int(cache.get_seq_length(layer))
    if known is not None and known[0] >= cached:
        delattr(cache, MARK)  # it was emptied, or cropped to where nothing is steered
        known = None
    if active and known is None:
        setattr(cache, MARK, (length - 1 if answer and not cached else cached, False))


class Overrides:
    """Methods of a steered model that are other ones until ``remove``.

    ``generate`` steers from the last token of its prompt on; what cannot be steered, or would copy half of the
    steering, says so.

    Args:
        model: a ``transformers`` model that ``steering`` is on.
        steering: ``dive.steering.attach.Steering``.
    """

    def __init__(self, model: Any, steering: Any) -> None:
        self.model = model
        new = {name: _refuse(PACKED_PROMPTS) for name in PACKED if hasattr(model, name)}
        if hasattr(model, "generate"):
            new["generate"] = _steered_generate(model, steering)
        new |= {name: _refuse(COPIES, TypeError) for name in ("__deepcopy__", "__reduce_ex__")}
        self.new, self.before = new, {name: vars(model).get(name) for name in new}
        for name, function in new.items():
            setattr(model, name, function)
        forget_graphs()

    def remove(self) -> None:
        """Give the model its own methods again; one that somebody has put in their place meanwhile stays."""
        for name, function in self.before.items():
            if getattr(self.model, name, None) is self.new[name]:
                delattr(self.model, name)
                if function is not None:
                    setattr(self.model, name, function)
        forget_graphs()


def forget_graphs() -> None:
    """Drop what torch.compile made: its graphs do not notice that hooks have come or gone."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()


def _refuse(message: str, kind: type[Exception] = ValueError) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise kind(message)

    return refuse


def _steered_generate(model: Any, steering: Any) -> Callable[..., Any]:
    own = model.generate

    @wraps(own)
    def generate(*args: Any, **kwargs: Any) -> Any:
        with steering.turn:
            if not steering.active:
                return own(*args, **kwargs)
            bound = inspect.signature(own).bind_partial(*args, **kwargs).arguments
            given = {**bound, **bound.get("kwargs", {})}
            answer = steering.intervention.positions == "answer"
            _refuse_settings(model, given, answer)
            first = _first_steered(model, given, answer)
            cache, output = given.get("past_key_values"), None
            try:
                with steering.generating(first, _setting(model, given, "prefill_chunk_size") is not None):
                    output = own(*args, **kwargs)
                return output
            finally:
                for filled in (cache, getattr(output, "past_key_values", None)):
                    if hasattr(filled, "get_seq_length"):
                        setattr(filled, MARK, (first, True))

    return generate


def _setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """A setting of this call of ``generate``: an argument, else the given configuration's, else the model's."""
    if name in given:
        return given[name]
    chosen = getattr(given.get("generation_config"), name, None)
    return chosen if chosen is not None else getattr(getattr(model, "generation_config", None), name, None)


def _refuse_settings(model: Any, given: Mapping[str, Any], answer: bool) -> None:
    """Raise ValueError for a setting under which the steered positions would be wrong."""
    if _setting(model, given, "cache_implementation") == "paged":
        raise ValueError(PACKED_PROMPTS)
    images = [name for name, value in given.items() if name.startswith("pixel_values") and value is not None]
    if images and _setting(model, given, "prefill_chunk_size") is not None:
        raise ValueError(
            "prefill_chunk_size does not go with an image: transformers cannot split an image into chunks, "
            "and some families then ignore the image. Omit it"
        )
    for name, reason in REFUSED.items() if answer else ():
        value = _setting(model, given, name)
        if value not in (None, False) and not (name == "guidance_scale" and value == 1):
            raise ValueError(
                f"generate of a steered model does not take {name}: {reason}. Omit it, or detach() the adapter first"
            )


def _first_steered(model: Any, given: Mapping[str, Any], answer: bool) -> int:
    """Column of the first position that this call of ``generate`` steers.

    Args:
        model: whose ``generate`` is called.
        given: its arguments by name.
        answer: whether only answer positions are steered.

    Raises:
        ValueError: the cache or the padding leaves the steered positions unknown.
    """
    ids = next((given[key] for key in ("inputs_embeds", "inputs", "input_ids") if given.get(key) is not None), None)
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if isinstance(mask, torch.Tensor) and mask.ndim != 2:
        mask = None
    length = max([1, *(tensor.shape[1] for tensor in (ids, mask) if tensor is not None)])
    if answer and _ends_with_padding(model, given, ids, mask):
        raise ValueError(RIGHT_PADDING)
    if cache is None:
        return length - 1 if answer else 0
    if not hasattr(cache, "get_seq_length"):
        raise ValueError("past_key_values is no Cache of transformers: give one, DynamicCache() for example")
    cached, (first, by_generate) = int(cache.get_seq_length()), getattr(cache, MARK, (None, False))
    if cached >= length:
        raise ValueError(
            f"past_key_values holds {cached} tokens, the prompt has {length}: give the whole prompt, with at least one "
            "token that the cache does not hold; past_key_values.crop(...) removes tokens"
        )
    is_steered = first is not None and first < cached
    if not answer:
        if cached and not (is_steered and first == 0):
            raise ValueError(
                "past_key_values was filled without this adapter, which steers every position: "
                "fill it with the steered model, or omit past_key_values"
            )
        return 0
    if is_steered and not by_generate:
        raise ValueError(
            "past_key_values was filled by a call of the steered model, which steers the last token that it is given. "
            "Fill the cache of a prefix inside `with model.steering.paused():`, or omit past_key_values"
        )
    return first if is_steered else length - 1


def _ends_with_padding(model: Any, given: Mapping[str, Any], ids: Any, mask: torch.Tensor | None) -> bool:
    """Whether a row of the batch ends with padding; without a mask, what transformers would take for it."""
    if mask is not None:
        return bool((mask[:, -1] == 0).any())
    pad = _setting(model, given, "pad_token_id")
    if pad is None or ids is None or ids.is_floating_point() or not ids.shape[1]:
        return False
    ends = ids[:, -1] == pad
    return bool(ends.any()) and not bool(ends.all())


def refuse_padded_call(steering: Any) -> Callable[..., None]:
    """A forward pre-hook for the model: ValueError where a plain call ends with padding, which would be steered."""

    def hook(model: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
        mask, ids = kwargs.get("attention_mask"), args[0] if args else kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        is_mask = isinstance(mask, torch.Tensor) and mask.ndim == 2
        if steering.by_rule and is_mask and ids.shape[1] > 1 and bool((mask[:, -1] == 0).any()):
            raise ValueError(RIGHT_PADDING)

    return hook
