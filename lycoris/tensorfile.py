"""safetensors files: the header rule, which makes sizes exact beforehand; writing and reading.

Written here rather than by the safetensors package for two reasons: the header computed for an
estimate is the header that is written, byte for byte; and the metadata keeps its order, so that two
equal runs leave equal files. Tensors are ordered as that package orders them. Reading is the
package's.
"""

from __future__ import annotations

import functools
import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from . import durable
from .errors import LycorisError

# Name in the file, in the package's order of alignment (widest first).
NAMES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
         torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
         torch.uint8: "U8", torch.bool: "BOOL"}
_RANK = {name: rank for rank, name in enumerate(NAMES.values())}
WIDTHS = {name: dtype.itemsize for dtype, name in NAMES.items()}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

MAX_HEADER = 64 * 2**20
MAX_TENSORS = 100_000

Entries = Mapping[str, tuple[str, tuple[int, ...]]]  # {tensor name: (dtype's name, shape)}
Tick = Callable[[], None]  # called after each tensor


def silent() -> None:
    pass



def header(entries: Entries, metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The bytes before the data (length, JSON, padding to 8) and the tensors' order in the data."""
    order = sorted(entries, key=lambda name: (_RANK[entries[name][0]], name))
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = entries[name]
        end = offset + WIDTHS[dtype] * elements(shape)
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = _json(described).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def size(entries: Entries, metadata: Mapping[str, str]) -> int:
    """Bytes of the file on disk."""
    data = sum(WIDTHS[dtype] * elements(shape) for dtype, shape in entries.values())
    return len(header(entries, metadata)[0]) + data


def header_sizes(lengths: int, counts: Sequence[int], dtype: str,
                 metadata_length: int) -> tuple[int, int]:
    """How many bytes `header` would take without metadata and with it, counted instead of written,
    for tensors of one dtype.

    `counts` are their elements in the order of the file, one at least; `lengths` the characters of
    all their names (ASCII that JSON leaves as it is) and of their shapes as `shape_text` has them.
    """
    width = WIDTHS[dtype]
    ends = list(accumulate(counts))
    fixed = len(f'"":{{"dtype":"{dtype}","shape":,"data_offsets":[,]}},')
    last = len(str(ends[-1] * width))
    digits = 2 * _digits(ends, width) - last + 1  # of the ends, and of the starts: 0 and all but it
    text = len("{}") + lengths + fixed * len(ends) - 1 + digits
    bare, full = 8 + text, 8 + text + metadata_length
    return bare + -bare % 8, full + -full % 8


def metadata_length(metadata: Mapping[str, str]) -> int:
    """Bytes of a header's text that are the metadata's."""
    return len(f'"__metadata__":{_json(dict(metadata))},'.encode()) if metadata else 0


@functools.lru_cache(maxsize=4096)
def shape_text(shape: tuple[int, ...]) -> str:
    return _json(list(shape))


def _digits(ends: Sequence[int], width: int) -> int:
    """Decimal digits of all of the rising `ends` times `width`."""
    total, power = len(ends), 10
    while power <= ends[-1] * width:
        total += len(ends) - bisect_left(ends, -(-power // width))
        power *= 10
    return total


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def entries_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def write(path: Path | str, tensors: Mapping[str, torch.Tensor],
          metadata: Mapping[str, str], *, sync: bool = True, tick: Tick = silent) -> Path:
    """Write durably (`sync`: as durable.write_bytes); one tensor at a time is copied to the CPU,
    and `tick` called after it."""
    return stream(path, entries_of(tensors), tensors.__getitem__, metadata, sync=sync, tick=tick)


def stream(path: Path | str, entries: Entries, make: Callable[[str], torch.Tensor],
           metadata: Mapping[str, str], *, sync: bool = True, tick: Tick = silent) -> Path:
    """Write durably what `entries` announce; `make(name)` is asked for one tensor after another."""
    start, order = header(entries, metadata)

    def chunks() -> Iterator[bytes | memoryview]:
        yield start
        for name in order:
            tensor = make(name)
            assert (NAMES[tensor.dtype], tuple(tensor.shape)) == entries[name], name
            yield raw_bytes(tensor)
            tick()

    return durable.write_bytes(path, chunks(), sync=sync)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements as they stand in a file (little-endian, contiguous)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def digest(tensors: Mapping[str, torch.Tensor], tick: Tick = silent) -> str:
    """sha256 over the tensors' names and bytes, in the order of the file."""
    order = header(entries_of(tensors), {})[1]
    total = hashlib.sha256()
    for name in order:
        total.update(name.encode("utf-8"))
        total.update(raw_bytes(tensors[name]))
        tick()
    return total.hexdigest()


def read(path: Path | str, error: type[LycorisError]) -> tuple[dict[str, torch.Tensor],
                                                             dict[str, str]]:
    """All tensors (on the CPU) and the metadata. Raises `error` where the file is not whole.

    Read with pread: a file that is cut short while mapped would end the process.
    """
    peek(path, error)
    try:
        with safe_open(str(path), framework="pt", backend="pread") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} cannot be read: {problem}.",
                    "The file is damaged or cut short; take another copy.") from problem


class Lazy:
    """A file's entries and metadata; its tensors are read, on the CPU, when asked for.

    Raises `error` where the file is not whole.
    """

    def __init__(self, path: Path | str, error: type[LycorisError]):
        self.path, self._error = Path(path), error
        self.entries, self.metadata = peek(path, error)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            with safe_open(str(self.path), framework="pt", backend="pread") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as problem:
            raise self._error(
                f"{self.path} cannot be read: {problem}.",
                "The file is damaged or cut short; take another copy.") from problem


def peek(path: Path | str, error: type[LycorisError]) -> tuple[dict[str, tuple[str, tuple]],
                                                             dict[str, str]]:
    """The entries and the metadata from the header alone; no tensor is read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
                raise error(f"{path} is not a safetensors file.",
                            "Only .safetensors files are read; convert older formats first.")
            described = json.loads(file.read(length).decode("utf-8"))
    except FileNotFoundError:
        raise error(f"There is no file {path}.", "Check the path.") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise error(f"{path} is not a safetensors file: its header is no JSON.",
                    "Only .safetensors files are read; convert older formats first.") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}.", "Check the path.") from problem
    try:
        metadata = described.pop("__metadata__", None) or {}
        entries = {str(name): (str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
                   for name, entry in described.items()}
        texts = {str(key): str(value) for key, value in metadata.items()}
        whole = 8 + length + max((int(entry["data_offsets"][1]) for entry in described.values()),
                                 default=0)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise error(f"{path} is not a safetensors file: its header does not describe tensors.",
                    "Take another copy of it.") from None
    if (there := path.stat().st_size) < whole:
        raise error(f"{path} is cut off: {there:,} of its {whole:,} bytes are there.",
                    "Copy or download it again.")
    if len(entries) > MAX_TENSORS:
        raise error(f"{path} lists {len(entries):,} tensors; at most {MAX_TENSORS:,} are read.")
    return entries, texts
