"""Why a process ended without a word, as far as its exit code and the kernel tell."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from lycoris import events

GROUPS = Path("/sys/fs/cgroup")
SYSTEM = Path("/proc/vmstat")
KILLED = (-9, 137)  # SIGKILL, as Popen says it and as a shell does
AGAIN = "resume goes on from the last checkpoint."
CODES = {0xC0000005: "an access violation", 0xC0000017: "no memory", 0xC000013A: "Ctrl+C"}


def kills() -> dict[str, int]:
    """How many processes the kernel has killed for want of memory, by what counts them: this
    process's memory group, and the whole system. Empty where nothing can be read (not Linux)."""
    found = {}
    for path in (*_groups(), SYSTEM):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text("ascii", "replace").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    found[str(path)] = int(count)
    return found


def _groups() -> list[Path]:
    """The files that count for this process's group, in version 1 and 2 of the interface."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines():
            _, kinds, name = line.split(":", 2)
            if not kinds:
                found.append(GROUPS / name.lstrip("/") / "memory.events")
            elif "memory" in kinds.split(","):
                found.append(GROUPS / "memory" / name.lstrip("/") / "memory.oom_control")
    return found


def post_mortem(code: int | None, before: dict[str, int], now: dict[str, int],
                last: str = "") -> events.Failed:
    """`code` is the exit code, None where another process's child cannot be asked; `before` and
    `now` are `kills` at its start and after its end, `last` is the last line of its log."""
    grew = {path for path, count in before.items() if now.get(path, count) > count}
    ours = bool(grew - {str(SYSTEM)})  # our group's own count, which our child belongs to
    others = bool(grew) and not ours and (code is None or before.keys() == {str(SYSTEM)})
    if code in KILLED or (code is None and grew):
        if ours:
            message = "The system ran out of memory and killed the engine."
        elif others:
            message = ("The engine was killed, probably because memory ran out: the system has "
                       "killed a process for want of it meanwhile.")
        elif before:
            message = ("The engine was killed (kill -9) by a person or another program: the "
                       "system has not killed it for want of memory.")
        else:
            message = ("The engine was killed by the system, most likely because memory ran out.")
        fix = ("Close other programs, or resume with train.gradient_checkpointing=true or a "
               f"higher train.split; {AGAIN}" if ours or others or not before
               else AGAIN.capitalize())
        return events.Failed("crashed", message, fix)
    how = "" if code is None else f", {_named(code)}"
    said = f" Its last line: {last}" if last else ""
    if code is None and before:  # whose child it was has ended: how it died nobody was told
        said += " The system has not run out of memory meanwhile."
    return events.Failed("crashed", f"The engine ended without a word{how}.{said}",
                         f"log.txt in the run folder has its last lines; {AGAIN}")


def _named(code: int) -> str:
    if os.name == "nt":
        return f"with {CODES.get(code & 0xFFFFFFFF, f'exit code {code}')}"
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"by the signal {signal.Signals(number).name}"
    return f"with exit code {code}"
