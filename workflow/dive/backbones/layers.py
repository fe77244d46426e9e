"""Where the decoder layers of a vision-language model are, found by watching it run, and what they put out."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dive.devices import upload


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in a layer's output, which is a tensor or a tuple that begins with it, by family."""
    return output[0] if isinstance(output, tuple) else output


def states_at(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``states[mask]`` of states (B, T, d) and a mask (B, T), bool: (N, d); gradients flow.

    With a mask on the CPU, a GPU is not waited for, as it is where it must say how many positions a mask holds.
    """
    rows = mask.flatten().nonzero()[:, 0]
    return states.flatten(0, 1).index_select(0, upload(rows, states.device))


def input_device(model: nn.Module) -> torch.device:
    """Where ``model`` wants its token ids.

    Args:
        model: a ``transformers`` model with ``get_input_embeddings``; its parameters may be offloaded by accelerate
            (``device_map``), which loads them for the moment in which they are used.

    Raises:
        ValueError: its weights are not loaded.
    """
    embedding = model.get_input_embeddings()
    if embedding.weight.device.type != "meta":
        return embedding.weight.device
    hook = getattr(embedding, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        if getattr(one, "execution_device", None) is not None:
            return torch.device(one.execution_device)
    raise ValueError(
        f"{type(model).__name__}: its weights are on the device meta, which holds no numbers; "
        "load them (from_pretrained, outside of init_empty_weights) before steering the model"
    )


def find_decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Decoder layers of ``model``, in order, without relying on module names.

    Two tokens of text are run through the model; the layers are the longest module list whose members were each called
    once, in order, every one fed with exactly the hidden states that the one before it returned. A vision tower
    is not called by text, and lists inside a layer are shorter or not chained.

    Args:
        model: a ``transformers`` model with ``get_input_embeddings``.

    Raises:
        ValueError: no such list exists, or the weights are not loaded.
    """
    ids = torch.ones(1, 2, dtype=torch.long, device=input_device(model))
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    calls: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def watch(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        fed = args[0] if args else kwargs.get("hidden_states")
        returned = hidden_of(output)
        if isinstance(fed, torch.Tensor) and isinstance(returned, torch.Tensor):
            calls.setdefault(id(layer), []).append((fed, returned))

    members = {id(layer): layer for layers in lists for layer in layers}
    handles = [layer.register_forward_hook(watch, with_kwargs=True) for layer in members.values()]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()

    def chained(layers: list[nn.Module]) -> bool:
        seen = [calls.get(id(layer), []) for layer in layers]
        return all(len(calls_of_layer) == 1 for calls_of_layer in seen) and all(
            before[0][1] is after[0][0] for before, after in pairwise(seen)
        )

    found = max((layers for layers in lists if chained(layers)), key=len, default=[])
    if not found:
        raise ValueError(f"{type(model).__name__}: no chain of decoder layers was found by running it on text")
    return found
