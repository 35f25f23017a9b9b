"""What a run will cost besides its file: memory, disk and time, for plan.json, for --json and for
sentences."""

from __future__ import annotations

from typing import Any

from . import devices, disk, machine, memory, relief, units
from .plan import Plan


def peak(plan: Plan) -> int:
    """The most memory the run will have in use, on the device of its settings."""
    device = devices.choose(plan.config.train.device)
    return memory.predict(plan, device.type, correction=machine.correction(
        plan, devices.look(device).name)).peak


def describe(plan: Plan) -> dict[str, Any]:
    """In plain numbers, on the device of the settings: bytes and seconds; `time` is None where
    nothing was measured yet."""
    device = devices.choose(plan.config.train.device)
    facts = devices.look(device)
    correction = machine.correction(plan, facts.name)
    found = memory.predict(plan, device.type, correction=correction)
    written, left = disk.predict(plan), machine.time_left(plan, facts.name)
    data = {"memory": {**found.data(), "name": facts.name, "free": facts.free,
                       "correction": correction},
            "disk": {"bytes": written.bytes, "free": written.free, "lacking": written.lacking,
                     "items": [{"name": item.name, "bytes": item.bytes}
                               for item in written.items]},
            "time": None if left is None else {
                "seconds": round(left.seconds, 1), "low": round(left.low, 1),
                "high": round(left.high, 1), "source": left.source,
                "without": list(left.without)}}
    if found.peak > facts.free:
        steps, enough = relief.savings(plan, device.type, free=facts.free, correction=correction)
        data["memory"]["savings"] = [
            {"values": dict(each.values), "text": each.text, "bytes": each.bytes,
             "peak": each.peak} for each in steps]
        data["memory"]["enough"] = enough
    return data


def sentences(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    said, written, left = data["memory"], data["disk"], data["time"]
    rows = [("Memory", f"{units.size(said['peak'])} at most, while {said['phase']}; "
                       f"{units.size(said['free'])} are free on {said['name']}")]
    if said["missing"]:
        rows.append(("", said["missing"]))
    rows += [("" if place else "To fit", f"{each['text']} Saves {units.size(each['bytes'])}.")
             for place, each in enumerate(said.get("savings", ()))]
    lacking = f": {units.size(written['lacking'])} too little" if written["lacking"] else ""
    rows.append(("Disk", f"{units.size(written['bytes'])}, {units.size(written['free'])} are "
                         f"free{lacking}"))
    rows.append(("Time", "unknown; calibrate measures a few steps" if left is None else
                 f"{units.duration(left['seconds'])} ({units.duration(left['low'])} to "
                 f"{units.duration(left['high'])})"
                 + (f", without {' and '.join(left['without'])}" if left["without"] else "")))
    return rows
