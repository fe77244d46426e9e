"""A pretend GPU for tests: tensors that say they are on it and hold CPU data.

What is mixed up between it and the CPU raises, as it does on CUDA, and whatever would make the CPU wait for a GPU is
counted with the line that asked for it: reading a number, a copy to the CPU, an index whose size depends on values.
Kernels, streams and memory are not pretended. A process must pretend before its first backward pass, when torch counts
the devices.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "pretend"
# Operations whose result has a size, or is a number, that only the values on the device tell.
READING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip


@dataclass
class Counts:
    """What a block of code asked of the device.

    Attributes:
        waits: times that the CPU would have waited, by the line of this project that made it.
        uploads: copies to the device, by line.
    """

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)


_counts: Counts | None = None


def _line() -> str:
    """The innermost line of the project that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if "/dive/" in frame.filename and "/torch/" not in frame.filename:
            return f"{frame.filename.rpartition('/dive/')[2]}:{frame.lineno} {frame.line}"
    return "elsewhere"


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        if _counts is not None:
            _counts.waits[_line()] += 1
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Operations that make tensors on the device out of none."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given, spec = pytree.tree_flatten((args, kwargs))
    there = [tensor for tensor in given if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in given if isinstance(tensor, torch.Tensor) and not isinstance(tensor, OnDevice)]
    asked = kwargs.get("device")
    wanted = None if asked is None else torch.device(asked).type
    if operation is aten.copy_.default:
        _count_copy(args[1], isinstance(args[0], OnDevice))
    elif operation is aten._to_copy.default:
        _count_copy(args[0], wanted == NAME if wanted else bool(there))
    elif there:
        _refuse_mixed(operation, args, here)
        if _counts is not None and _waits(operation, args):
            _counts.waits[_line()] += 1
    plain = [tensor.held if isinstance(tensor, OnDevice) else tensor for tensor in given]
    args_held, kwargs_held = pytree.tree_unflatten(plain, spec)
    if wanted == NAME:
        kwargs_held = {**kwargs_held, "device": torch.device("cpu")}
    out = operation(*args_held, **{**kwargs_held, **({"pin_memory": False} if kwargs_held.get("pin_memory") else {})})
    if operation is aten.copy_.default:
        return args[0]
    on_device = (bool(there) or wanted == NAME) and wanted != "cpu"
    known = {id(tensor.held): tensor for tensor in there}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
            return value
        if id(value) in known:
            return known[id(value)]
        return OnDevice(value) if on_device and not any(value is tensor for tensor in here) else value

    return pytree.tree_map(wrapped, out)


def _count_copy(source: torch.Tensor, to_device: bool) -> None:
    from_device = isinstance(source, OnDevice)
    if _counts is not None and from_device != to_device and source.numel():
        (_counts.waits if from_device else _counts.uploads)[_line()] += 1


def _refuse_mixed(operation: Any, args: tuple, here: list[torch.Tensor]) -> None:
    """As CUDA does: numbers (0-dimensional) may come from the CPU, and indices, which are uploaded."""
    if mixed := [tensor for tensor in here if tensor.dim() > 0]:
        if operation not in INDEXING or not isinstance(args[0], OnDevice) or any(tensor is args[0] for tensor in mixed):
            shapes = [tuple(tensor.shape) for tensor in mixed]
            raise RuntimeError(f"expected all tensors on one device: {operation} with {shapes} from the CPU, {_line()}")
        if _counts is not None:
            _counts.uploads[_line()] += 1


def _waits(operation: Any, args: tuple) -> bool:
    by_mask = operation in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
    return by_mask or operation in READING


def put(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module's parameters and buffers to the device, in place; they need no gradient there."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(OnDevice(parameter.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
    return module


def pretend() -> TorchDispatchMode:
    """Register a device named ``pretend`` for the rest of the process; a mode to enter where it is used."""
    _setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]  # models switch autocast off
    module.device_count = lambda: 0  # nothing is to look for its random generators
    make, attend = torch.tensor, torch.nn.functional.scaled_dot_product_attention

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Kernels that torch chooses by device are not dispatched: the definition."""
        if not isinstance(query, OnDevice):
            return attend(query, key, value, *args, **kwargs)
        mask, scale = kwargs.get("attn_mask", args[0] if args else None), kwargs.get("scale")
        if kwargs.get("enable_gqa"):
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        if kwargs.get("is_causal"):
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else scores + mask
        return torch.softmax(scores, -1) @ value

    # What torch does not dispatch.
    torch.tensor = tensor
    torch.nn.functional.scaled_dot_product_attention = attention
    return _Everywhere()


@contextmanager
def counted() -> Iterator[Counts]:
    """What the block asks of the device."""
    global _counts
    _counts = Counts()
    try:
        yield _counts
    finally:
        _counts = None
