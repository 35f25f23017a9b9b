"""What a run does not end by: what fails beside its steps, and a disk without room."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from . import devices, events
from .errors import DiskError, LycorisError, OutOfMemory

HOLD = 0.25  # seconds between two looks at what is asked while a run waits
Emit = Callable[[events.Event], None]
Asked = Callable[[], set[str]]
Written = TypeVar("Written")


@contextmanager
def spared(doing: str, emit: Emit, help_with_memory: Callable[[], list[str]], *,
           strict: bool = False) -> Iterator[None]:
    """Around what a run can do without: where it fails the run says so and goes on. `strict`: what
    a person can mend at once still ends it."""
    try:
        yield
        return
    except LycorisError as error:
        if strict:
            raise
        told = events.Warned(f"{doing.capitalize()} failed. {error.message}", error.fix)
    except torch.OutOfMemoryError:
        error = OutOfMemory(doing, help_with_memory())
        told = events.Warned(f"{error.message} The run goes on without.", error.fix)
    except Exception as error:  # whatever it is, the steps are not to be lost by it
        logging.getLogger("lycoris").exception("while %s", doing)
        told = events.Warned(f"{doing.capitalize()} failed ({type(error).__name__}: {error}). The "
                             "run goes on without.", "The log has the whole error.")
    devices.release()  # now that no error holds what was in memory
    emit(told)


def written(write: Callable[[], Written], step: int, emit: Emit, asked: Asked) -> Written:
    """What `write` returns. Where the disk does not take it the run waits, until it is asked to
    resume, and tries again, or to stop, which raises the DiskError."""
    while True:
        try:
            return write()
        except DiskError as error:
            emit(events.Warned(error.message, f"{error.fix} Then resume: the run waits with all it "
                                              "has learned."))
            emit(events.Paused(step))
            heard: set[str] = set()
            while not heard & {"resume", "stop"}:
                time.sleep(HOLD)
                heard = asked()
            if "stop" in heard:
                raise
            emit(events.Continued(step))
