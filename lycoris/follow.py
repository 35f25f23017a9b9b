"""A command in a folder that others follow as they do a run's: its events, its log, and small files
by which it is asked to stop."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from . import durable, events, runs
from .errors import LycorisError
from .runs import RunFolder
from .terminal import Terminal

BEGAN = psutil.Process().create_time() - 1  # a request older than this is not for this process
RESULT = "result.json"


class Signals:
    """SIGINT, SIGTERM and SIGHUP (a closed terminal, unless `nohup` has it ignored) ask for a stop;
    after `patience` of them one ends the process at once. A launcher of several processes repeats
    what its terminal has sent them already."""

    def __init__(self) -> None:
        self.received = self._count = 0
        self.patience = 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            ignored = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
            if number and not ignored:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self._count += 1
        if self._count > self.patience:
            os._exit(128 + number)
        self.received = number

    def asked(self) -> set[str]:
        return {"stop"} if self.received else set()

    @property
    def exit_code(self) -> int:
        return 128 + self.received if self.received else 0


class Followed:
    """One command's work: what it emits goes to the terminal and, with a folder, into its events,
    its failure too. Only one process works in a folder."""

    def __init__(self, where: Path | None, terminal: Terminal, signals: Signals):
        self.folder = None if where is None else RunFolder(durable.make_folder(where))
        self.terminal, self.signals = terminal, signals
        self._held = ExitStack()

    def __enter__(self) -> Followed:
        if self.folder is not None:
            own_log(self.folder)
            self.folder.clear_before(BEGAN)
            self._held.enter_context(self.folder.locked())
            durable.remove(self.folder.path / RESULT)  # an earlier command's
            me = runs.Process.this()
            self.emit(events.Started(me.pid, me.born, "", 0))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._held:
            if isinstance(error, LycorisError):
                self._write(failed(error))
            elif isinstance(error, Exception):
                logging.getLogger("lycoris").error("unexpected", exc_info=error)
                self._write(bug(error))

    def emit(self, event: events.Event) -> None:
        self._write(event)
        self.terminal.event(event)

    def asked(self) -> set[str]:
        wanted = set() if self.folder is None else self.folder.requests() & {"stop"}
        return wanted | self.signals.asked()

    def finish(self, reason: str, result: Mapping[str, Any] | None = None) -> None:
        """The last event; the result is in its file before that."""
        if self.folder is None:
            return
        if result is not None:
            durable.write_text(self.folder.path / RESULT,
                               json.dumps(result, ensure_ascii=False, indent=1))
        self._write(events.Finished(reason, 0, "" if result is None else RESULT))

    def _write(self, event: events.Event) -> None:
        if self.folder is not None:
            self.folder.append(event)


def failed(error: LycorisError) -> events.Failed:
    return events.Failed(error.kind, error.message, error.fix, error.field)


def bug(error: Exception) -> events.Failed:
    return events.Failed("bug", f"{type(error).__name__}: {error}",
                         "This is a bug in lycogui; log.txt has the details.")


def own_log(folder: RunFolder) -> None:
    """Warnings and unexpected errors also go to the folder's log.txt."""
    handler = logging.FileHandler(folder.log_file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
