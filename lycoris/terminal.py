"""What the command line says: progress bars and sentences for people, or JSON and nothing else."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from . import events
from .errors import LycorisError


class Terminal:
    """One command's output. With `as_json` stdout carries JSON only, whatever libraries print."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.out: TextIO = sys.stdout
        self.total = 0
        self._bar: tqdm | None = None
        self._stage = ""

    def __enter__(self) -> Terminal:
        if isinstance(self.out, io.TextIOWrapper):  # a pipe on Windows is not UTF-8 by itself
            if self.as_json:
                self.out.reconfigure(encoding="utf-8")
            else:
                self.out.reconfigure(errors="backslashreplace")
        if self.as_json:
            sys.stdout = sys.stderr
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        sys.stdout = self.out

    def document(self, data: Mapping[str, Any], text: str) -> None:
        """The answer of a verb: `data` as one JSON document, or `text` for people."""
        self._close()
        self._write(json.dumps(data, ensure_ascii=False, default=_plain) if self.as_json else text)

    def event(self, event: events.Event) -> None:
        """Progress: a JSON line, or a bar."""
        if self.as_json:
            self._write(events.line(event))
            return
        match event:
            case events.Stage():
                self._advance(event.name, event.done, event.total)
                if self._bar is not None and event.taken:
                    self._bar.set_postfix_str(f"{event.taken} from the cache")
            case events.Cached():
                self.say(f"The cache in {event.folder} holds {mebibytes(event.bytes)} in "
                         f"{event.files} files.")
            case events.Validated():
                parts = ", ".join(f"{t} {loss:.4f}" for t, loss in event.timesteps.items())
                self.say(f"Step {event.step}: val/loss {event.loss:.4f} on the pictures held out; "
                         f"by timestep {parts}.")
            case events.Step():
                self._advance("training", event.step, self.total)
                if self._bar is not None:
                    norms = "" if event.norm_max is None else (
                        f", norms up to {event.norm_max:.2g}, {event.capped} layers shrunk")
                    self._bar.set_postfix_str(
                        f"loss {event.loss_avg:.4f}, lr {event.lr:.2e}{norms}")
            case events.Started():
                self.total = event.total_steps
                if event.device:
                    self.say(f"Device: {event.device}")
            case events.Resumed() if event.step:
                self.say(f"Resumed at step {event.step}.")
            case events.Paused():
                self.say(f"Paused at step {event.step}.")
            case events.Stopping():
                self.say("It finishes the files, then it stops; once more ends it at once.")
            case events.Saved():
                self.say(f"Saved {event.path} ({event.bytes:,} bytes).")
            case events.Warned():
                self.say(f"Note: {event.text} {event.fix}".rstrip())

    def line(self, data: Mapping[str, Any]) -> None:
        """One of many answers, always JSON."""
        self._write(json.dumps(data, ensure_ascii=False, default=_plain))

    def say(self, text: str) -> None:
        """A line beside the progress; nothing in JSON mode."""
        if not self.as_json:
            tqdm.write(text, file=sys.stderr)

    def error(self, error: LycorisError) -> None:
        self._close()
        if self.as_json:
            self.line({"error": as_data(error)})
        else:
            sys.stderr.write(f"{error.message}\n")
            if error.fix:
                sys.stderr.write(f"→ {error.fix}\n")

    def _advance(self, name: str, done: int, total: int) -> None:
        if name != self._stage:
            self._close()
            self._stage = name
            self._bar = tqdm(total=total or None, desc=name, file=sys.stderr, leave=True,
                             dynamic_ncols=True, initial=max(0, done - 1))
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _write(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()


def as_data(error: LycorisError) -> dict[str, Any]:
    """A typed error as JSON has it."""
    return {"kind": error.kind, "message": error.message, "fix": error.fix,
            "problems": error.problems}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
