"""Gradients of training steps that a GPU replays: recorded once for each shape of a micro-batch, as CUDA graphs."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dive.devices import has_triton
from dive.distillation.losses import distillation_loss
from dive.distillation.student import Student
from dive.replay import Replay

_Tensors = dict[str, torch.Tensor]

STRIDE = 16
"""Lengths of reports are padded to a multiple of this, so that few shapes occur."""


class MicroBatch(NamedTuple):
    """A part of an effective batch.

    Attributes:
        rows: indices of the student's prompts.
        teacher: cached states of all their labels (N, width), on the CPU, or None where kd is 0.
        weights: w_t of all their labels (N,), on the CPU.
        total_weight: sum of the weights over the effective batch.
        total_positions: labels of the effective batch.
    """

    rows: Sequence[int]
    teacher: torch.Tensor | None
    weights: torch.Tensor
    total_weight: float
    total_positions: int


@dataclass
class Filled:
    """A micro-batch at its shape, on the CPU.

    Attributes:
        shape: (B, A), reports and padded length.
        tensors: by name.
        fetched: the event after which a GPU has copied them, once that was asked for.
    """

    shape: tuple[int, int]
    tensors: dict[str, torch.Tensor]
    fetched: Any = None


class RecordedGradient:
    """Loss and gradient of a micro-batch, at shapes that seldom change.

    A step of training is several thousand kernels, and a CPU needs longer to launch them than a GPU to run them. A
    replayed graph launches them all at once; it repeats addresses and shapes. So reports are padded to a multiple of
    `STRIDE` tokens, padding is part of the loss with weight 0, and what a micro-batch consists of is copied to where
    the graph reads it. Gradients are added to the parameters' ``grad``, whose tensors must stay: zero them with
    ``set_to_none=False``. On a device without graphs the same computation runs as it is.

    Args:
        student: with prefixes that are kept in memory.
        loss: kd, ce and temperature.
    """

    def __init__(self, student: Student, loss: Mapping[str, float]) -> None:
        self.student, self.loss, self.backbone = student, loss, student.backbone
        self._rooms: dict[tuple[int, int], deque[Filled]] = {}
        # By shape: what the graph reads, and the graph.
        self._graphs: dict[tuple[int, int], tuple[_Tensors, Replay]] = {}
        for parameter in student.steering.intervention.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def fill(
        self,
        rows: Sequence[int],
        teacher: torch.Tensor | None,
        weights: torch.Tensor,
        total_weight: float,
        total_positions: int,
    ) -> Filled:
        """Put a micro-batch (`MicroBatch` has the arguments) in its shape, on the CPU, where a GPU fetches it.

        Two of a shape can be filled at a time: one to be computed while the next one is prepared.
        """
        prompts = [self.student.prompts[row] for row in rows]
        shape = len(rows), STRIDE * math.ceil(max(prompt.n_labels for prompt in prompts) / STRIDE)
        if shape not in self._rooms:
            self._rooms[shape] = deque(Filled(shape, self._room(shape, teacher)) for _ in range(2))
        filled = self._rooms[shape][0]
        self._rooms[shape].rotate()
        if filled.fetched is not None:
            filled.fetched.synchronize()
        given = filled.tensors
        given["rows"].copy_(torch.tensor(rows))
        given["totals"].copy_(torch.tensor([total_weight, float(total_positions)]))
        for name, padding in {"ids": 0, "mask": False, "labels": -1, "weights": 0.0}.items():
            given[name].fill_(padding)
        begin = 0
        for row, prompt in enumerate(prompts):
            n, first = prompt.n_labels, prompt.prompt_length - 1
            given["ids"][row, :n] = torch.tensor(prompt.ids[first : first + n])
            given["mask"][row, :n] = True
            given["labels"][row, :n] = torch.tensor(prompt.labels)
            given["weights"][row, :n] = weights[begin : begin + n]
            if teacher is not None:
                given["teacher"][row, :n] = teacher[begin : begin + n]
            begin += n
        return filled

    def add(self, filled: Filled) -> torch.Tensor:
        """Add a micro-batch's gradient to the parameters'.

        Returns:
            Its part of loss, L_wce and L_kd, (3,), on the device; overwritten by the next call.
        """
        if filled.shape not in self._graphs:
            held = {name: value.to(self.backbone.device) for name, value in filled.tensors.items()}
            self._graphs[filled.shape] = held, self._replay(held)
        held, replay = self._graphs[filled.shape]
        for name, value in filled.tensors.items():
            held[name].copy_(value, non_blocking=True)
        if self._on_gpu:
            filled.fetched = torch.cuda.Event()
            filled.fetched.record()
        return replay()

    def _room(self, shape: tuple[int, int], teacher: torch.Tensor | None) -> _Tensors:
        """What a micro-batch of this shape is written to on the CPU, in memory that a GPU copies by itself."""
        dtypes = {"ids": torch.long, "mask": torch.bool, "labels": torch.long, "weights": torch.float32}
        room = {name: torch.empty(shape, dtype=dtype) for name, dtype in dtypes.items()}
        room |= {"rows": torch.empty(shape[0], dtype=torch.long), "totals": torch.empty(2)}
        if teacher is not None:  # what stands at padding counts nowhere, and must be finite
            room["teacher"] = torch.zeros(*shape, teacher.shape[-1], dtype=teacher.dtype)
        return {name: tensor.pin_memory() for name, tensor in room.items()} if self._on_gpu else room

    @property
    def _on_gpu(self) -> bool:
        return self.backbone.device.type == "cuda"

    def _replay(self, held: _Tensors) -> Replay:
        """Adds the gradient of what ``held`` holds when it is called."""
        student, loss, head = self.student, self.loss, self.backbone.head

        def compute() -> torch.Tensor:
            hidden = student.at_fixed_shapes(held["rows"], held["ids"], held["mask"])
            losses = distillation_loss(
                hidden.flatten(0, 1),
                held["teacher"].flatten(0, 1) if "teacher" in held else None,
                held["labels"].flatten(),
                held["weights"].flatten(),
                head,
                *held["totals"].unbind(),
                **loss,
            )
            losses.total.backward()
            return torch.stack([losses.total, losses.cross_entropy, losses.distillation]).detach()

        gradients = [parameter.grad for parameter in student.steering.intervention.parameters()]
        before = next(reversed(self._graphs.values()), (None, None))[1]
        return Replay(compute, gradients, self.backbone.device, before)


def recorded_gradient(student: Student, loss: Mapping[str, float]) -> RecordedGradient | None:
    """A `RecordedGradient` where it can be used and pays: on a GPU with Triton, with prefixes that are kept."""
    usable = has_triton(student.backbone.device.type) and student.keeps_prefixes and not student.backbone.compiled
    return RecordedGradient(student, loss) if usable else None
