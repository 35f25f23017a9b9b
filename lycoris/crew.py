"""The processes that train one run together, as `accelerate launch` and `torchrun` start them.

Each holds the whole model, computes its share of a step's pictures, and takes the same step with
the gradients of all. The first alone writes. They talk at meetings, which all come to in the same
order; whoever fails says so at the next one, so that all end, and the first can write down why.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, LycorisError, OutOfMemory, RunError

PATIENCE = timedelta(hours=6)  # the first may paint and save for long while the others wait
# {what torchrun and accelerate call it: in the words of torchrun, Open MPI, and MPICH or Intel's}
LAUNCHERS = {"WORLD_SIZE": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
             "RANK": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
             "LOCAL_RANK": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")}
CHUNK = 2**24  # gradients that are added up in one message


class Halted(Exception):
    """Asked to stop before the first step: there is nothing to save."""


class Gone(RunError):
    """Another process failed, or is no longer there; `stage` is where its memory ran out."""

    stage = ""


@dataclass(frozen=True)
class Failure:
    """What a process that cannot go on leaves to the others."""

    kind: str
    message: str
    fix: str = ""
    field: str = ""
    stage: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, LycorisError):
            stage = error.stage if isinstance(error, OutOfMemory) else ""
            return cls(error.kind, error.message, error.fix, error.field, stage)
        return cls("halted" if isinstance(error, Halted) else "bug",
                   f"{type(error).__name__}: {error}")


class Crew:
    """One process's place among `size`; by itself where it is the only one. As a context it tells
    the others of an error that leaves it."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0):
        self.rank, self.size, self.local = rank, size, local
        self._over = size == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None or self._over:
            return
        self._over = True
        if not isinstance(error, Gone):
            self._gather(Failure.of(error))

    def meet(self, word: Any = None) -> list[Any]:
        """Everyone's word, in their order. Raises Gone, or Halted, where one has failed."""
        if self.size == 1:
            return [word]
        heard = self._gather(word)
        if heard is None:
            self._over = True
            raise Gone("Another process of this run has ended without a word.",
                       "Its own output says why; resume goes on from the last checkpoint.")
        for rank, each in enumerate(heard):
            if isinstance(each, Failure):
                self._over = True
                raise _as_error(each, rank, self.size)
        return heard

    def again(self, changes: Mapping[str, Any]) -> None:
        """After a failure that all have heard of they go on together, with the same changes."""
        self._over = self.size == 1
        self.alike("the changes", dict(changes))

    def agreed(self, wanted: set[str]) -> set[str]:
        """What any process was asked for."""
        return set().union(*self.meet(wanted))

    def alike(self, what: str, own: Any) -> None:
        """RunError where `own` differs between the processes."""
        words = self.meet(own)
        for rank, word in enumerate(words):
            if word != words[0]:
                raise RunError(f"Process {rank} of {self.size} has not {what} of the first.",
                               "Every machine needs the same files and the same version.")

    def device(self, chosen: torch.device, setting: str) -> torch.device:
        """The device of this process: of several on one machine, each has a card of its own."""
        if self.size == 1 or chosen.type != "cuda":
            return chosen
        count = torch.cuda.device_count()
        if ":" in setting:
            raise ConfigError({"train.device": f"{setting} is one card, but {self.size} processes "
                                               "train together; set it to auto"})
        if self.local >= count:
            raise ConfigError({"train.device": f"there are more processes on this machine than "
                                               f"its {count} cards; start {count}"})
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """All get the first one's values."""
        self.meet()
        if self.size > 1:
            for tensor in tensors:
                values = tensor.detach().contiguous()
                self._carry(lambda values=values: dist.broadcast(values, 0))
                tensor.detach().copy_(values)

    def given(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The first one's tensors, on the CPU; the others come with None."""
        own = dict(tensors or {})
        described = self.meet({name: (t.shape, t.dtype) for name, t in own.items()})[0]
        if self.size == 1:
            return own
        for name, (shape, dtype) in described.items():
            tensor = (own[name].cpu().contiguous() if self.first
                      else torch.empty(shape, dtype=dtype))
            data = tensor.reshape(-1).view(torch.uint8)  # gloo does not know every dtype
            self._carry(lambda data=data: dist.broadcast(data, 0))
            own[name] = tensor
        return own

    def add_up(self, loss: float, parameters: Sequence[nn.Parameter]) -> float:
        """The sum of all shares' losses; their gradients are added up in place. A parameter that
        had none anywhere has none after."""
        if self.size == 1:
            return loss
        words = self.meet((loss, {i for i, p in enumerate(parameters) if p.grad is None}))
        idle = set.intersection(*(without for _, without in words))
        busy = [p for i, p in enumerate(parameters) if i not in idle]
        for group in _groups(busy):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
                              for p in group])
            self._carry(lambda flat=flat: dist.all_reduce(flat))
            for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
                p.grad = part.view(p.shape) if p.grad is None else p.grad.copy_(part.view(p.shape))
        return sum(share for share, _ in words)

    def pieces(self, batch_size: int, accumulate: int, split: int = 1) -> tuple[int, list[int]]:
        """(pieces of a batch, the pieces of a step that are this process's, counted over all its
        batches). Whole batches are dealt out as far as there are enough of them, then parts of
        batches; `split` parts each share further. ConfigError where that does not come out."""
        dealt = math.gcd(accumulate, self.size)
        sharing = self.size // dealt
        if batch_size % sharing:
            raise ConfigError({"train.batch_size": (
                f"{self.size} processes cannot share a step of {accumulate} x {batch_size} "
                f"pictures evenly; make train.batch_size a multiple of {sharing}, "
                f"train.accumulate one of {self.size}, or start {_fitting(batch_size, accumulate)} "
                "processes")})
        parts, seat = sharing * split, self.rank % sharing
        return parts, [micro * parts + seat * split + part
                       for micro in range(self.rank // sharing, accumulate, dealt)
                       for part in range(split)]

    def _gather(self, word: Any) -> list[Any] | None:
        """None where a process is no longer there."""
        heard: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(heard, word)
        except RuntimeError:
            return None
        return heard

    def _carry(self, send: Any) -> None:
        try:
            send()
        except dist.DistError as error:
            self._over = True
            raise Gone(f"The processes of this run cannot reach each other: {error}",
                       "Resume goes on from the last checkpoint.") from error


ALONE = Crew()


def join() -> Crew:
    """This process's place, by what its launcher has put into the environment."""
    size = _told("WORLD_SIZE")
    if size is None and {"MASTER_ADDR", "ACCELERATE_USE_CPU"} <= os.environ.keys():
        raise RunError(
            "accelerate launch was asked for several processes and has started one: on a CPU it "
            "starts more only through mpirun.",
            "Start them with torchrun --nproc-per-node N -m lycoris train .., or with accelerate "
            "launch --multi_gpu --num_processes N, which needs no GPU; or one, with "
            "--num_processes 1.")
    if size is None or size <= 1:
        return Crew()
    rank, local = _told("RANK"), _told("LOCAL_RANK") or 0
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        if rank is None:
            raise ValueError("RANK is not set")
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=PATIENCE,
                                rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise RunError(f"The {size} processes of this run did not find each other: {error}",
                       "Start them with accelerate launch or torchrun; see docs/engine.md."
                       ) from error
    return Crew(rank, size, local)


def _told(name: str) -> int | None:
    """A number that the launcher says, in its own word for it; RunError where it is none."""
    for word in LAUNCHERS[name]:
        if text := os.environ.get(word):
            if not text.isdecimal():
                raise RunError(f"{word} is {text!r} in the environment, which is no number.",
                               "Unset it to train in one process.")
            return int(text)
    return None


def _as_error(failure: Failure, rank: int, size: int) -> Exception:
    if failure.kind == "halted":
        return Halted()
    error = Gone(f"Process {rank} of {size}: {failure.message}", failure.fix, failure.field)
    error.kind, error.stage = failure.kind, failure.stage
    return error


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """In their order, as many as CHUNK holds together; a larger one is alone."""
    found: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room or not found:
            found.append([])
            room = CHUNK
        found[-1].append(parameter)
        room -= parameter.numel()
    return found


def _fitting(batch_size: int, accumulate: int) -> str:
    """The numbers of processes that can share such a step."""
    fits = [n for n in range(1, batch_size * accumulate + 1)
            if batch_size % (n // math.gcd(accumulate, n)) == 0]
    return " or ".join(map(str, fits[:12]))
