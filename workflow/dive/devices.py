"""Which device a job runs its model on, and what to change when the memory there does not do."""

import fcntl
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dive.progress import log

if TYPE_CHECKING:
    import torch

LOCKS = Path(tempfile.gettempdir()) / f"dive-devices-{os.getuid()}"
"""A file for each GPU of this machine, locked by the process that has it."""

WAIT_SECONDS = 2.0
"""Between two looks for a GPU that has become free."""

_claim: tuple[int, IO[str]] | None = None
"""The GPU that this process has claimed, and its locked file, open as long as the process lives."""


def claim_device(setting: str, key: str = "backbones.*.device") -> str:
    """The device for the models of this process.

    ``auto`` is a GPU where there is one, else the CPU. Where torch sees several GPUs, ``auto`` and ``cuda`` are one
    that no other process of this user has claimed in this way, and it is waited for: jobs that run side by side get one
    each. The claim is a lock that the kernel lifts when the process ends, killed or not. A GPU that is named
    (``cuda:1``), or the only one that SLURM or ``CUDA_VISIBLE_DEVICES`` leaves to be seen, was assigned by somebody and
    is taken as it is.

    Args:
        setting: ``auto``, ``cpu``, ``cuda``, ``cuda:<n>`` or ``mps``.
        key: of the configuration, for the error.

    Raises:
        ValueError: the setting asks for a GPU that torch does not see.
    """
    if setting in ("cpu", "mps"):
        return setting
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "auto" and not count:
        return "cpu"
    number = setting.partition(":")[2]
    if int(number or 0) >= count:
        raise ValueError(f"{key} is {setting}, but torch sees {count} GPUs here; auto takes what there is")
    index = int(number) if number else 0 if count == 1 else _claim_one(count)
    torch.cuda.set_device(index)  # what asks for the current device, as statistics of memory do, means this one
    return f"cuda:{index}"


def _claim_one(count: int) -> int:
    """Index of a GPU that is locked for this process from now on."""
    global _claim
    import torch

    if _claim is not None:
        return _claim[0]
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    # Indices depend on what each process is shown; a GPU's own number does not.
    numbers = [getattr(torch.cuda.get_device_properties(index), "uuid", index) for index in range(count)]
    told = False
    while True:
        for index, number in enumerate(numbers):
            file = (LOCKS / str(number)).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _claim = (index, file)
            log.info("running on GPU %d of %d", index, count)
            return index
        if not told:
            log.warning("all %d GPUs are taken by other jobs: waiting for one (--resources gpu=%d fits)", count, count)
            told = True
        time.sleep(WAIT_SECONDS)


@cache
def has_triton(device_type: str) -> bool:
    """Whether kernels written in Triton run on this type of device (``cuda``, ``cpu``, ...)."""
    return device_type == "cuda" and importlib.util.find_spec("triton") is not None


def upload(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """``tensor`` on ``device``, without waiting for what a GPU still has to do.

    A plain copy from pageable memory waits for all work that was queued before it, so that the GPU idles while the next
    kernels are queued. A copy from pinned memory is queued like a kernel.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def read_later(tensor: "torch.Tensor") -> "Callable[[], list[Any]]":
    """A function that gives ``tensor.tolist()``; it waits for ``tensor``, not for what a GPU is to do afterwards."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    import torch

    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    here.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> "list[Any]":
        arrived.synchronize()
        return here.tolist()

    return read


@contextmanager
def explained_memory(setting: str) -> Iterator[None]:
    """Turn an out-of-memory error of the block, or of the function so decorated, into one that names what to lower.

    Args:
        setting: the key of the configuration.

    Raises:
        RuntimeError: in the place of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise RuntimeError(f"out of device memory; lower {setting} ({error})") from error
