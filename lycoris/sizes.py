"""What an adapter costs, exactly, before it exists: parameters, tensors, bytes. Integers only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import tensorfile
from .assignments import Assignment
from .config import NetworkConfig
from .errors import ConfigError

DTYPE_NAMES = {short: tensorfile.NAMES[dtype] for short, dtype in tensorfile.DTYPES.items()}


@dataclass(frozen=True)
class Sizes:
    """`file_bytes` is the file without metadata; `file_bytes_with_metadata` the one written."""

    layers: int
    parameters: int
    tensors: int
    tensor_bytes: int
    file_bytes: int
    file_bytes_with_metadata: int
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def measure(assignments: Sequence[Assignment], dtype: str,
            metadata: Mapping[str, str]) -> Sizes:
    """The sizes of the adapter these assignments make, saved in `dtype` (fp16, bf16, fp32)."""
    entries = entries_of(assignments, dtype)
    return Sizes(
        layers=len(assignments),
        parameters=sum(a.parameters() for a in assignments),
        tensors=len(entries),
        tensor_bytes=tensorfile.data_size(entries),
        file_bytes=tensorfile.size(entries, {}),
        file_bytes_with_metadata=tensorfile.size(entries, metadata),
        parts=_grouped(assignments, lambda a: a.layer.part),
        kinds=_grouped(assignments, _kind),
    )


def entries_of(assignments: Iterable[Assignment], dtype: str) -> dict[str, tuple[str, tuple]]:
    """{key: (dtype, shape)} of the whole file."""
    name = DTYPE_NAMES[dtype]
    return {key: (name, shape) for a in assignments for key, shape in a.file_shapes().items()}


def match_bytes(target: int, network: NetworkConfig, size_of: Callable[[NetworkConfig], int],
                dims: Sequence[int] | None = None, most: int = 4096) -> NetworkConfig:
    """The network like this one whose file comes closest to `target` bytes, by its dim.

    alpha keeps its ratio to dim, and an explicit conv_dim its ratio too, so that the strength at
    the start is the same. Where file size grows with every dim, bisection finds the place; else
    each of `dims` is tried, those that are impossible left out (ConfigError if all are).
    """
    if dims is not None:
        return _closest(target, [with_dim(network, dim) for dim in dims], size_of)
    target = min(target, size_of(with_dim(network, most)))
    low, high = 1, 1
    while high < most and size_of(with_dim(network, high)) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if size_of(with_dim(network, middle)) < target:
            low = middle
        else:
            high = middle
    return _closest(target, [with_dim(network, dim) for dim in sorted({low, high})], size_of)


def _closest(target: int, candidates: Sequence[NetworkConfig],
             size_of: Callable[[NetworkConfig], int]) -> NetworkConfig:
    best: tuple[int, NetworkConfig] | None = None
    problem: ConfigError | None = None
    for each in candidates:
        try:
            distance = abs(size_of(each) - target)
        except ConfigError as error:
            problem = error
            continue
        if best is None or distance < best[0]:
            best = distance, each
    if best is None:
        assert problem is not None, "nothing to choose from"
        raise problem
    return best[1]


def with_dim(network: NetworkConfig, dim: int) -> NetworkConfig:
    """The same network at another dim: alpha, conv_dim and conv_alpha scaled along."""
    ratio = dim / network.dim
    conv_dim = network.conv_dim and max(1, round(network.conv_dim * ratio))
    conv_alpha = network.conv_alpha
    if conv_alpha is not None:
        conv_alpha = conv_alpha * (conv_dim / network.conv_dim if conv_dim and network.conv_dim
                                   else ratio)
    return dataclasses.replace(network, dim=dim, alpha=network.alpha * ratio, conv_dim=conv_dim,
                               conv_alpha=conv_alpha)


def _kind(assignment: Assignment) -> str:
    layer = assignment.layer
    if layer.kind != "conv":
        return layer.kind
    return "conv" if layer.is_spatial else "conv 1x1"


def _grouped(assignments: Sequence[Assignment],
             key: Callable[[Assignment], str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for assignment in assignments:
        group = found.setdefault(key(assignment), {"layers": 0, "parameters": 0})
        group["layers"] += 1
        group["parameters"] += assignment.parameters()
    return found
