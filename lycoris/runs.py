"""The run folder is the truth: config in, events out, append-only.

    runs/<name>/  <name>.safetensors  config.toml  plan.json  events.jsonl  log.txt
                  samples/  checkpoints/  state/  requests/  preset.toml (of a preset of one's own)

The state of a run is derived from its events and from whether that very process is alive; nothing
stores it, so nothing can go stale. Control is by small files in requests/.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from . import durable, events
from .errors import RunError

REQUESTS = ("start", "stop", "save", "sample", "pause", "resume", "cancel")
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Process:
    """One process of this machine, told apart from a later one with the same pid.

    `born` is in seconds, since boot on Linux and since 1970 elsewhere: both are written down by the
    kernel when the process starts, so setting the clock changes neither.
    """

    pid: int
    born: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None where there is none."""
        try:
            return cls(pid, _born(pid))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None

    @classmethod
    def this(cls) -> Process:
        return cls(os.getpid(), _born(os.getpid()))

    @property
    def alive(self) -> bool:
        now = Process.of(self.pid)
        if now is None or abs(now.born - self.born) > 0.5:
            return False
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # another user's, and there


def _born(pid: int) -> float:
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
    return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")


@dataclass
class History:
    """What the events so far say; `read` adds new ones, so a follower never reads twice."""

    started: events.Started | None = None
    started_at: float = 0.0
    last_at: float = 0.0
    stage: events.Stage | None = None
    stage_began: tuple[float, int] = (0.0, 0)  # when, and how much of it was done
    steps: list[events.Step] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    validations: list[events.Validated] = field(default_factory=list)
    cached: events.Cached | None = None
    samples: list[events.Sampled] = field(default_factory=list)
    saves: list[events.Saved] = field(default_factory=list)
    measured: events.Measured | None = None
    warnings: list[events.Warned] = field(default_factory=list)
    failed: events.Failed | None = None
    finished: events.Finished | None = None
    paused: bool = False
    stopping: events.Stopping | None = None

    def add(self, at: float, event: events.Event) -> None:
        self.last_at = at
        match event:
            case events.Started():
                self.started, self.started_at = event, at
                self.failed = self.finished = self.stage = self.stopping = None
                self.warnings, self.paused = [], False
            case events.Resumed():
                self.resumes.append(event.step)
                self.steps = [s for s in self.steps if s.step <= event.step]
                self.validations = [v for v in self.validations if v.step <= event.step]
                self.samples = [s for s in self.samples if s.step <= event.step]
                self.saves = [s for s in self.saves if s.step <= event.step]
            case events.Stage():
                if self.stage is None or self.stage.name != event.name:
                    self.stage_began = (at, event.done)
                self.stage = event
            case events.Step():
                self.stage = None
                self.steps.append(event)
            case events.Validated():  # once more after a resume at the same step: the later one
                self.validations = [v for v in self.validations if v.step != event.step]
                self.validations.append(event)
            case events.Cached():
                self.cached = event
            case events.Sampled():  # painted again after a resume at the same step: the later one
                place = (event.step, event.index, event.contestant)
                self.samples = [s for s in self.samples
                                if (s.step, s.index, s.contestant) != place]
                self.samples.append(event)
            case events.Saved():
                self.stage = None
                self.saves.append(event)
            case events.Paused():
                self.paused, self.stage = True, None
            case events.Continued():
                self.paused = False
            case events.Stopping():
                self.stopping = event
            case events.Measured():
                self.measured = event
            case events.Warned():
                self.warnings.append(event)
            case events.Failed():
                self.failed = event
            case events.Finished():
                self.finished = event

    @property
    def looks(self) -> list[events.Validated]:
        """The first and the last at the pictures that are held out, as far as there are."""
        return self.validations[:1] + self.validations[1:][-1:]

    @property
    def stage_left(self) -> float | None:
        """Seconds until the end of what is done before or between steps, by its pace so far."""
        began, first = self.stage_began
        if self.stage is None or self.stage.done <= first:
            return None
        pace = (self.last_at - began) / (self.stage.done - first)
        return pace * (self.stage.total - self.stage.done)

    @property
    def step(self) -> int:
        return self.steps[-1].step if self.steps else (self.resumes[-1] if self.resumes else 0)


class RunFolder:
    """One run on disk. Reading is incremental: keep the object and call `history()` again, from
    any thread."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._reading = threading.Lock()
        self._history = History()
        self._offset = 0
        self._first = b""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def preset_file(self) -> Path:
        """A copy of the user's own preset, as it was when the run was made; often there is none."""
        return self.path / "preset.toml"

    @property
    def adapter_file(self) -> Path:
        return self.path / f"{self.name}.safetensors"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def sub(self, name: str) -> Path:
        return durable.make_folder(self.path / name)

    def create(self, files: dict[str, str]) -> RunFolder:
        """Make the folder with these text files; raises RunError where it exists already."""
        try:
            durable.make_folder(self.path, new=True)
        except FileExistsError:
            raise RunError(
                f"There is already a run called {self.name} in {self.path.parent}.",
                "Choose another output.name, or resume that one.", field="output.name") from None
        for name, text in files.items():
            durable.write_text(self.path / name, text)
        self.sub("requests")
        return self

    def append(self, event: events.Event) -> None:
        durable.append_line(self.path / EVENTS, events.line(event))

    def tail(self, offset: int = 0) -> tuple[list[tuple[float, events.Event]], int]:
        """The whole lines after byte `offset`, and where to go on; a torn last line waits."""
        try:
            with (self.path / EVENTS).open("rb") as file:
                if file.seek(0, os.SEEK_END) < offset:
                    offset = 0  # the file was replaced: read it from its start
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        whole = data.rpartition(b"\n")[0]
        found = (events.parse(text.decode("utf-8", "replace")) for text in whole.splitlines())
        return [pair for pair in found if pair], offset + len(whole) + bool(whole)

    def history(self) -> History:
        with self._reading:
            first = self._first_line()
            if first != self._first:  # another run under the same name: read it from its start
                self._history, self._offset, self._first = History(), 0, first
            pairs, self._offset = self.tail(self._offset)
            for at, event in pairs:
                self._history.add(at, event)
            return self._history

    def _first_line(self) -> bytes:
        """It carries the time and the process, so no two runs begin alike; empty until whole."""
        try:
            with (self.path / EVENTS).open("rb") as file:
                line = file.readline(4096)
        except FileNotFoundError:
            return b""
        return line if line.endswith(b"\n") else b""

    @property
    def process(self) -> Process | None:
        started = self.history().started
        return Process(started.pid, started.born) if started else None

    def state(self) -> str:
        """new, waiting, running, done, stopped, failed or crashed."""
        history = self.history()
        process = self.process
        ended = history.finished or history.failed
        if process and not ended and process.alive:
            return "running"
        if "start" in self.requests():
            return "waiting"
        if history.failed:
            return "failed"
        if history.finished:
            return history.finished.reason
        return "crashed" if process else "new"

    def request(self, name: str, at: float | None = None) -> None:
        """Ask the engine for something, now or as if it had been at that time; it looks once per
        step."""
        assert name in REQUESTS, name
        stamp = time.time() if at is None else at
        durable.write_text(self.sub("requests") / name, f"{stamp:.6f}\n")

    def requests(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.path / "requests")} & set(REQUESTS)
        except FileNotFoundError:
            return set()

    def requested_at(self, name: str) -> float:
        """When it was asked for, in seconds since 1970; 0 where it was not. Orders the queue."""
        path = self.path / "requests" / name
        try:
            text = path.read_text("utf-8")
            return float(text) if text.strip() else path.stat().st_mtime  # made by `touch`
        except (FileNotFoundError, ValueError):
            return 0.0

    def clear(self, names: Iterable[str]) -> None:
        for name in names:
            durable.remove(self.path / "requests" / name)

    def clear_before(self, moment: float) -> None:
        """Drop what was asked of an earlier process; what was asked since stays."""
        self.clear(name for name in REQUESTS if self.requested_at(name) < moment)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process works in the folder; the lock goes with the process, however it ends.

        Raises RunError where another one holds it.
        """
        with (self.path / "lock").open("ab") as file:
            try:
                _lock(file.fileno())
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise RunError(f"The run {self.name} is going on already, in another process.",
                                   "Stop it first, or wait for its end.") from None
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise durable.disk_error(error, self.path / "lock") from error
                # some network drives have no locks; whether its process lives was asked before
            yield

    def delete(self) -> None:
        """Delete the folder and all in it, for good; RunError where a process works in it."""
        with self.locked():
            pass  # let go before the folder moves: Windows would not let it
        durable.remove_folder(self.path)

    def log_tail(self, lines: int = 30) -> str:
        try:
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 400 * lines))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def open_run(path: Path | str) -> RunFolder:
    """An existing run; raises RunError where there is none."""
    run = RunFolder(path)
    if not run.config_file.is_file():
        raise RunError(f"{run.path} is not a run folder: it has no config.toml.",
                       "Give the folder of a run, e.g. runs/zorb-lora.")
    return run


def list_runs(folder: Path) -> list[RunFolder]:
    """The runs in `folder`, the newest first."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []
    found = [RunFolder(entry.path) for entry in entries
             if not entry.name.startswith(".") and (Path(entry.path) / "config.toml").is_file()]
    return sorted(found, key=lambda run: run.config_file.stat().st_mtime, reverse=True)


if os.name == "nt":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
