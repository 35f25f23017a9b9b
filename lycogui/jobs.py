"""Runs in their own processes: started, watched and stopped from a thread of the app.

Nothing is remembered here that the run folders do not say: a waiting run is one with a request to
start, a running one is one whose process is alive. So a restarted app, or a second one, sees the
same.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from lycogui import deaths, guard
from lycoris import config, devices, durable, runs
from lycoris.config import ROOT
from lycoris.errors import LycorisError, RunError
from lycoris.runs import Process, RunFolder

POLL = 0.5  # seconds between two looks
SHORT = 3.0  # seconds to stop for a job with nothing to lose
QUIET = 30.0  # seconds without any sign of life after which a stop becomes a terminate, then a kill
DEAF = 600.0  # the same for a process that computes but says nothing, as in one very long step


class Jobs:
    """The queue of training runs in the known folders, one at a time on each device, and single
    jobs beside it."""

    def __init__(self, folders: Callable[[], Sequence[Path]]):
        self._folders = folders
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        self._known: dict[Path, RunFolder] = {}
        self._kills: dict[Path, dict[str, int]] = {}  # {run: the kernel's count when it was begun}
        self._single: set[Path] = set()
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="queue", daemon=True).start()

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._closing.set()

    def runs(self) -> list[RunFolder]:
        """Every run of the known folders, the newest first; the same objects each time."""
        found: list[RunFolder] = []
        with self._lock:
            for folder in dict.fromkeys(path.resolve() for path in self._folders()):
                found += [self._keep(run) for run in runs.list_runs(folder)]
        return found

    def run(self, path: Path) -> RunFolder:
        """The run at a path, kept open so that its events are read once."""
        with self._lock:
            return self._keep(RunFolder(path.resolve()))

    def _keep(self, run: RunFolder) -> RunFolder:
        path = run.path.resolve()
        return self._known.setdefault(path, RunFolder(path))

    def state(self, run: RunFolder) -> str:
        """As the run folder says; "starting" while its process is too young to have said so."""
        with self._lock:
            state = run.state()
            child = self._children.get(run.path)
            if state == "running" or child is None or child.poll() is not None:
                return state
            process = run.process
            silent = process is None or process.pid != child.pid
            return "starting" if silent else state

    def waiting(self) -> list[RunFolder]:
        """The queue, the next one first."""
        found = [run for run in self.runs() if run.state() == "waiting"]
        return sorted(found, key=lambda run: run.requested_at("start"))

    def at_work(self) -> list[RunFolder]:
        """The runs that are training now, or are about to, the newest first."""
        return [run for run in self.runs() if self.state(run) in ("running", "starting")]

    def active(self) -> RunFolder | None:
        """One of those, the newest."""
        return next(iter(self.at_work()), None)

    def enqueue(self, run: RunFolder) -> None:
        """Put a run into the queue; it starts as soon as none is before it on its device."""
        if self.state(run) in ("running", "starting"):
            raise RunError(f"{run.name} is running already.", "Stop it first.")
        run.clear({*runs.REQUESTS} - {"start"})
        run.request("start")

    def withdraw(self, run: RunFolder) -> None:
        """Take a waiting run out of the queue; the run itself stays."""
        run.clear(["start"])

    def delete(self, run: RunFolder) -> None:
        """Delete the folder of a run that is at rest."""
        with self._lock:
            state = self.state(run)
            if state in ("running", "starting"):
                raise RunError(f"{run.name} is going on.", "Stop it first.")
            if state == "waiting":
                raise RunError(f"{run.name} is waiting in the queue.", "Take it out first.")
            if run.path.parent not in {path.resolve() for path in self._folders()}:
                raise RunError(f"{run.name} is a link to {run.path}, which is left alone.",
                               "Delete it there.")
            run.delete()
            self._known.pop(run.path, None)

    def move(self, run: RunFolder, by: int) -> None:
        """A waiting run that many places back in the queue, or forward with a negative number. The
        order is that of the times in requests/start, so it survives a restart."""
        with self._lock:
            queue = self.waiting()
            if run not in queue:
                raise RunError(f"{run.name} is not waiting.", "It has begun, or was taken out.")
            times, place = [each.requested_at("start") for each in queue], queue.index(run)
            queue.remove(run)
            queue.insert(max(0, place + by), run)
            last = 0.0
            for each, at in zip(queue, sorted(times), strict=True):
                last = max(at, last + 0.001)
                if each.requested_at("start") != last:
                    each.request("start", last)

    def stop(self, run: RunFolder) -> None:
        """Ask for a stop with a save; a process that stays silent is terminated, then killed."""
        child = self._children.get(run.path)
        starting = child is not None and child.poll() is None
        process = Process.of(child.pid) if child and starting else run.process
        run.request("stop")
        if process is not None:
            threading.Thread(target=self._escalate, args=(run, process), daemon=True).start()

    def end(self, run: RunFolder) -> None:
        """Stop a job that loses nothing by it: one that does not listen soon is killed."""
        child, process = self._children.get(run.path), run.process
        if child is not None and child.poll() is None:
            process = Process.of(child.pid)
        run.request("stop")

        def wait() -> None:
            until = time.monotonic() + SHORT
            while process is not None and process.alive:
                if time.monotonic() > until:
                    return _kill(process)
                time.sleep(0.1)

        threading.Thread(target=wait, daemon=True).start()

    def launch(self, folder: Path, arguments: Sequence[str]) -> RunFolder:
        """Start any verb that follows the run-folder protocol in `folder`, beside the queue."""
        durable.make_folder(folder)
        run = self.run(folder)
        self._start(run, arguments)
        self._single.add(run.path)
        return run

    def beside(self) -> list[RunFolder]:
        """The single jobs at work that this app has started."""
        with self._lock:
            return [self._keep(RunFolder(path)) for path in self._single
                    if (child := self._children.get(path)) and child.poll() is None]

    def _watch(self) -> None:
        while not self._closing.wait(POLL):
            with guard.logged("the queue could not look after its runs"), self._lock:
                self._reap()
                at_work = self.at_work()
                self._reap_orphans(at_work)
                busy = {device_of(run) for run in at_work}
                for run in self.waiting():
                    if (device := device_of(run)) not in busy:
                        busy.add(device)
                        run.clear(["start"])
                        self._start(run, ["train", str(run.path)])

    def _start(self, run: RunFolder, arguments: Sequence[str]) -> None:
        """A child of this Python that outlives the app, its output in the run's log."""
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1",
                       "PYTHONUTF8": "1",
                       "PYTHONPATH": os.pathsep.join(
                           [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        apart = ({"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined]
                  | subprocess.CREATE_NO_WINDOW} if os.name == "nt"
                 else {"start_new_session": True})
        with run.log_file.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "lycoris", *arguments, "--json"], env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, **apart)
        with self._lock:
            self._children[run.path] = child
            self._kills[run.path] = deaths.kills()

    def _reap(self) -> None:
        """Say in the run folder what a child that died could not say itself."""
        for path, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[path]
            run = self.run(path)
            history, process = run.history(), run.process
            own = process is not None and process.pid == child.pid
            told = history.failed or (own and history.finished)
            taken = not own and process is not None and process.alive  # by another app's child
            before = self._kills.pop(path, {})
            if code and not told and not taken:
                run.append(deaths.post_mortem(code, before, deaths.kills(), run.log_tail(1)))

    def _reap_orphans(self, at_work: Sequence[RunFolder]) -> None:
        """The same for runs that were not started here: from a terminal, or by an app before."""
        for run in at_work:
            self._kills.setdefault(run.path, deaths.kills())
        for path in [*self._kills]:
            run = self.run(path)
            if path not in self._children and run not in at_work:
                before = self._kills.pop(path)
                if run.state() == "crashed":
                    run.append(deaths.post_mortem(None, before, deaths.kills(), run.log_tail(1)))

    def _escalate(self, run: RunFolder, process: Process) -> None:
        """Wait while the run shows life; then terminate, then kill its process tree.

        Windows cannot ask a process without a window to end, so there only the kill is left.
        """
        for act in (_kill,) if os.name == "nt" else (_terminate, _kill):
            _wait_while_living(run, process)
            if not process.alive:
                return
            act(process)


def device_of(run: RunFolder) -> str:
    """The device that a run's settings ask for: cpu, cuda:0, cuda:1, mps."""
    try:
        name = config.read_toml(run.config_file).get("train", {}).get("device", "auto")
    except LycorisError:
        name = "auto"  # it will say itself what is wrong with its settings
    if name == "auto":
        name = devices.choose(name).type
    return "cuda:0" if name == "cuda" else str(name)


def _wait_while_living(run: RunFolder, process: Process) -> None:
    """Until the process has ended, or shows no sign of life: no event, and no work either. One that
    waits for the disk lives: a large file may take minutes to reach it."""
    asked = looked = time.time()
    worked, limit = _worked(process), DEAF
    while process.alive:
        now = time.time()
        if _waits_for_disk(process):
            asked = now
        if now - looked >= QUIET:
            share = (_worked(process) - worked) / (now - looked)
            looked, worked, limit = now, _worked(process), DEAF if share > 0.05 else QUIET
        if now - max(asked, run.history().last_at) > limit:
            return
        time.sleep(POLL)


def _worked(process: Process) -> float:
    """Processor seconds so far."""
    try:
        times = psutil.Process(process.pid).cpu_times()
        return times.user + times.system
    except psutil.NoSuchProcess:
        return 0.0


def _waits_for_disk(process: Process) -> bool:
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_DISK_SLEEP
    except psutil.NoSuchProcess:
        return False


def _terminate(process: Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.alive:
            psutil.Process(process.pid).terminate()


def _kill(process: Process) -> None:
    """That process and its children, found before any is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.alive:
            root = psutil.Process(process.pid)
            for each in [*root.children(recursive=True), root]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
