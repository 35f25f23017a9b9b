"""While a run's files are written: how far that is, and what is asked meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import events

EVERY = 0.2  # seconds between two looks at what is asked
SILENT = 1.0  # seconds of a save that nobody needs to be told of


@dataclass
class Writing:
    """One save, at `step`. What is asked goes into `heard`; a file that is begun comes whole, and
    only `cancels` is left out on request, by a `cancel`."""

    step: int
    emit: Callable[[events.Event], None]
    asked: Callable[[], set[str]]
    heard: set[str]
    cancels: str = ""
    began: float = field(default_factory=time.monotonic)
    _told: bool = False

    def over(self, name: str, count: int) -> Callable[[], None]:
        """To be called after each of `count` pieces: says now and then how far it is."""
        done, last = 0, time.monotonic()
        self.listen()

        def tick() -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            if now - last >= EVERY:
                last = now
                self.listen()
                if now - self.began >= SILENT:
                    self.emit(events.Stage(name, done, count))

        return tick

    def listen(self) -> None:
        self.heard |= self.asked()
        if "stop" in self.heard:
            self.stopping()

    def stopping(self) -> None:
        """Say once that the files come first, then the stop."""
        if not self._told:
            self._told = True
            self.emit(events.Stopping(self.step, self.cancels))

    def cancelled(self) -> set[str]:
        """For a Progress over what may be left out."""
        self.listen()
        return {"stop"} if "cancel" in self.heard else set()
