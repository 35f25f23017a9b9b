"""What a run will cost besides its file: memory, disk and time, for plan.json, for --json and for
sentences."""

from __future__ import annotations

from typing import Any

from . import devices, disk, machine, memory, relief
from .plan import Plan

MIB = 2**20


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
    rows = [("Memory", f"{said['peak'] / MIB:,.0f} MiB at most, while {said['phase']}; "
                       f"{said['free'] / MIB:,.0f} MiB are free on {said['name']}")]
    if said["missing"]:
        rows.append(("", said["missing"]))
    rows += [("" if place else "To fit", f"{each['text']} Saves {each['bytes'] / MIB:,.0f} MiB.")
             for place, each in enumerate(said.get("savings", ()))]
    rows.append(("Disk", f"{written['bytes'] / MIB:,.0f} MiB, {written['free'] / MIB:,.0f} MiB are "
                         "free"))
    rows.append(("Time", "unknown; calibrate measures a few steps" if left is None else
                 f"{left['seconds']:,.0f} s ({left['low']:,.0f} to {left['high']:,.0f} s)"))
    return rows
