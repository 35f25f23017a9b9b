"""A run's events as a TensorBoard event file: a reader of events.jsonl, with no package needed.

The format: records of (length, its masked CRC-32C, data, its masked CRC-32C), each data a protobuf
`Event` {1: wall time, 2: step, 3: file version, 5: summary {1: value {1: tag, 2: number, 4: image
{1: height, 2: width, 3: channels, 4: encoded}}}}.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from . import durable, events
from .runs import RunFolder

VERSION = b"brain.Event:2"
NUMBERS = {"loss": "loss", "loss_avg": "loss/mean", "lr": "lr", "grad_norm": "grad_norm",
           "epoch": "epoch", "sec": "seconds", "memory": "memory"}


def write(run: RunFolder, out: Path) -> Path:
    """The run's curves and samples in `out`/<name>; written again, it replaces the one before."""
    pairs, _ = run.tail()
    began = int(pairs[0][0]) if pairs else 0
    target = out / run.name / f"events.out.tfevents.{began}.lycogui"
    return durable.write_bytes(target, _records(run, pairs))


def _records(run: RunFolder, pairs: list[tuple[float, events.Event]]) -> Iterator[bytes]:
    yield _record(_double(1, pairs[0][0] if pairs else 0.0) + _bytes(3, VERSION))
    for at, event in pairs:
        values = b""
        match event:
            case events.Step():
                for name, tag in NUMBERS.items():
                    number = getattr(event, name)
                    if number is not None and math.isfinite(number):
                        values += _value(tag, _float(2, number))
            case events.Validated():
                losses = {"val/loss": event.loss, **{
                    f"val/loss/t{t.zfill(4)}": loss for t, loss in event.timesteps.items()}}
                values = b"".join(_value(tag, _float(2, loss)) for tag, loss in losses.items()
                                  if math.isfinite(loss))
            case events.Sampled():
                values = _image(run, event)
        if values:
            yield _record(_double(1, at) + _whole(2, event.step) + _bytes(5, values))


def _image(run: RunFolder, event: events.Sampled) -> bytes:
    """The picture as it lies on disk; nothing where it is gone."""
    file = (run.path / event.path).resolve()
    try:
        data = file.read_bytes() if file.is_relative_to(run.path.resolve()) else b""
    except OSError:
        data = b""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return b""
    width, height = struct.unpack(">II", data[16:24])
    tag = f"samples/{event.index:02d}" + (f" {event.contestant}" if event.contestant else "")
    return _value(tag, _bytes(4, _whole(1, height) + _whole(2, width) + _whole(3, 3)
                              + _bytes(4, data)))


def _value(tag: str, content: bytes) -> bytes:
    return _bytes(1, _bytes(1, tag.encode("utf-8")) + content)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _whole(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _table() -> tuple[int, ...]:
    """CRC-32C, reflected polynomial 0x82F63B78 (RFC 3720)."""
    found = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        found.append(number)
    return tuple(found)


TABLE = _table()


def crc32c(data: bytes) -> int:
    value, table = 0xFFFFFFFF, TABLE
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
