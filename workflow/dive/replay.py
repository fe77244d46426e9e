"""Work for a GPU that is recorded once as a CUDA graph and replayed: all of its kernels are launched at once."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dive.progress import log


class Replay:
    """A computation at fixed addresses and shapes, recorded and replayed on a GPU, called as it is elsewhere.

    A graph reads and writes the memory that its tensors had while it was recorded. What ``compute`` refers to is kept
    alive here. What changes from call to call is copied into these tensors before the call.

    Args:
        compute: takes no arguments, waits for nothing, and returns a tensor, which the next call overwrites. It should
            not refer to the object that holds this one: the cycle would keep the GPU's memory until Python finds it.
        changed: tensors that a call changes in place; recording leaves them as they were.
        device: that it runs on.
        before: a recording whose memory may be used again, since no two of them run at the same time.
    """

    def __init__(
        self,
        compute: Callable[[], torch.Tensor],
        changed: Sequence[torch.Tensor],
        device: torch.device,
        before: "Replay | None" = None,
    ) -> None:
        self._compute = compute
        self._graph: Any = None
        self._pool = before._pool if before else None
        if device.type == "cuda":
            self._record(changed)

    def __call__(self) -> torch.Tensor:
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._result

    def _record(self, changed: Sequence[torch.Tensor]) -> None:
        values = [tensor.clone() for tensor in changed]
        # Kernels are compiled and libraries initialised in a call that is not recorded, and then undone.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._compute()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad():
            for tensor, value in zip(changed, values, strict=True):
                tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # What Python frees meanwhile, an older graph for example, would invalidate the recording.
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._result = self._compute()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning(
                "no CUDA graph could be recorded, kernels are launched one by one: %s", str(error).split("\n")[0]
            )
            return
        finally:
            gc.enable()
        self._graph, self._pool = graph, graph.pool()
