"""Values that are not finite: found by one pass without copies, and explained by the key that mends them."""

from collections.abc import Mapping

import torch


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, with one copy from the device for all of them.

    The extremes of a tensor tell: a NaN is carried into both. They take one pass and no memory, where ``isfinite``
    writes several tensors of the same shape (at 4 billion bfloat16 values half a second against 30 on one core).
    """
    named = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not named:
        return []
    extremes = [torch.stack(torch.aminmax(tensor)).isfinite().all() for tensor in named.values()]
    return [name for name, finite in zip(named, torch.stack(extremes).tolist(), strict=True) if not finite]


def states_error(what: str, dtype: torch.dtype) -> RuntimeError:
    """The error of states that are not finite: it says which key of the configuration to change.

    Args:
        what: whose states they are.
        dtype: of the backbone.
    """
    name = str(dtype).removeprefix("torch.")
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(name)
    remedy = (
        f"set backbones.*.dtype to {wider}"
        if wider
        else "no backbones.*.dtype is wider: check the weights in backbones.*.path, and train the adapter, if there is "
        "one, again with a lower methods.*.optimiser.lr"
    )
    return RuntimeError(f"{what}: states that are not finite (NaN or infinite) in {name}; {remedy}")


def require_finite(states: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Raise ``states_error`` of the first of ``states``, named by study, that are not finite."""
    if bad := not_finite(states):
        raise states_error(bad[0], dtype)
