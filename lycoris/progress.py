"""How a verb that goes layer by layer says how far it is, and hears that it should stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from . import events

Item = TypeVar("Item")
EVERY = 0.2  # seconds between two events of one stage


class Stopped(Exception):
    """The verb was asked to stop; what it had begun to write is gone."""


@dataclass
class Progress:
    """`emit` takes the events, `asked` tells what was asked for; `notes` are all warnings so
    far."""

    emit: Callable[[events.Event], None] = lambda event: None
    asked: Callable[[], set[str]] = set
    notes: list[str] = field(default_factory=list)

    def over(self, items: Sequence[Item], name: str) -> Iterator[Item]:
        """The items, with a stage event now and then; raises Stopped between two of them."""
        told = 0.0
        for done, item in enumerate(items):
            self.check()
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                self.emit(events.Stage(name, done, len(items)))
            yield item
        self.check()
        self.emit(events.Stage(name, len(items), len(items)))

    def check(self) -> None:
        if "stop" in self.asked():
            raise Stopped

    def warn(self, text: str, fix: str = "") -> None:
        self.notes.append(f"{text} {fix}".rstrip())
        self.emit(events.Warned(text, fix))
