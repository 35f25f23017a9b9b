"""What autograd saves and what is in use, of a module on the meta device: the instruments.

Arithmetic runs the operations as a GPU or a CPU would choose them, Tape counts what is saved in
the order of the forward pass, Meter what lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .algorithms import Layer
from .footprint import TEXT_LEVEL

BATCH = 2  # with 1, copies of transposed tensors would pass for views
# What autocast computes in half precision and in fp32 on CUDA, of the operations in these models.
LOWER = {F.linear, torch.conv2d, torch.matmul, torch.bmm, Tensor.__matmul__, Tensor.matmul}
UPPER = {F.layer_norm, F.group_norm, torch.softmax, F.softmax}


class _Attention(torch.autograd.Function):
    """softmax(q k^T) v by a kernel that saves q, k, v, the output and a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, heads, rows, _ = q.shape
        out = q.new_empty(b, rows, heads, v.shape[-1]).transpose(1, 2)
        sums = q.new_empty(b, heads, rows, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class Arithmetic(TorchFunctionMode):
    """Attention by such a kernel and, with `half`, the casts of autocast."""

    def __init__(self, half: bool):
        super().__init__()
        self.half = half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half and (func in LOWER or func is F.scaled_dot_product_attention):
            args, kwargs = _cast(args, kwargs, torch.bfloat16)
        elif self.half and func in UPPER:
            args, kwargs = _cast(args, kwargs, torch.float32)
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3]) if len(args) > 2 else _Attention.apply(
                *args, *(kwargs[name] for name in ("query", "key", "value")[len(args):]))
        return func(*args, **kwargs)


def _cast(args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    def one(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    return tuple(map(one, args)), {name: one(value) for name, value in kwargs.items()}


class Meter(TorchDispatchMode):
    """The bytes of all storages made under it that live, and the most there were at once."""

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.ignored = {id(tensor.untyped_storage()) for tensor in ignored}
        self.live: dict[int, weakref.ref] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._see(each.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.live or key in self.ignored:
            return

        def gone(_: Any) -> None:
            self.live.pop(key, None)
            self.now -= size

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@dataclass
class Tape:
    """One forward pass as it went: ("saved", storage, bytes), ("layer", facts) and the ends of
    what checkpointing would compute again. Storages are kept, so that no two are taken for one."""

    events: list[tuple[str, Any]] = field(default_factory=list)
    kept: list[torch.UntypedStorage] = field(default_factory=list)
    ignored: set[int] = field(default_factory=set)

    def storage(self, tensor: Tensor) -> int:
        found = tensor.untyped_storage()
        self.kept.append(found)
        return id(found)

    def pack(self, tensor: Tensor) -> Tensor:
        key = self.storage(tensor)
        if key not in self.ignored:
            self.events.append(("saved", (key, tensor.untyped_storage().nbytes())))
        return tensor

    def segment(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of torch's checkpoint: the same call, its ends and its inputs noted."""
        owner = getattr(call, "__self__", call)
        given = [(self.storage(each), each.untyped_storage().nbytes())
                 for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.events.append(("open", given))
        found = owner(*args, **kwargs) if isinstance(owner, nn.Module) else call(*args, **kwargs)
        self.events.append(("close", None))
        return found

    def follow(self, layers: Mapping[nn.Module, Layer]) -> list[Any]:
        """Hooks that note each layer before it computes."""
        def before(module: nn.Module, args: tuple) -> None:
            self.events.append(("layer", [layers[module], self.storage(args[0]), args[0], None]))

        def after(module: nn.Module, args: tuple, out: Tensor) -> None:
            next(value for kind, value in reversed(self.events) if kind == "layer")[-1] = (
                self.storage(out), out.numel())

        hooks: list[Any] = []
        for module in layers:
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        return hooks


def read(tape: Tape, half: bool) -> tuple[list, list, float]:
    """(layers, segments, all bytes) of a tape."""
    saved = {key for kind, value in tape.events if kind == "saved" for key in (value[0],)}
    compute = torch.bfloat16 if half else torch.float32
    groups: dict[int, int] = {}
    seen: set[int] = set()
    outside: set[int] = set()
    total, layers, segments = 0.0, [], []
    inside: dict[str, Any] | None = None
    for kind, value in tape.events:
        if kind == "open":
            held = {key: size for key, size in value
                    if key not in outside and key not in tape.ignored}
            outside |= held.keys()
            inside = {"at": total, "held": sum(held.values()), "own": 0.0, "keys": set()}
        elif kind == "close":
            assert inside is not None
            segments.append((inside["at"] / BATCH, (total - inside["at"]) / BATCH,
                             inside["held"] / BATCH, inside["own"] / BATCH))
            inside = None
        elif kind == "saved":
            key, size = value
            if key not in seen:
                seen.add(key)
                total += size
            if inside is None:
                outside.add(key)
            elif key not in outside and key not in inside["keys"]:
                inside["keys"].add(key)
                inside["own"] += size
        else:
            layer, storage, x, (result, numbers) = value
            inputs = layer.out if layer.kind == "norm" else layer.inp
            source: int | str = groups.setdefault(storage, len(groups))
            if layer.kind == "norm" or (x.dtype == compute and (
                    storage in saved or layer.kind == "conv")):
                source = "saved"
            elif x.dtype != compute:
                source = "cast"
            layers.append((layer.name.removeprefix(TEXT_LEVEL),
                           {"positions": numbers / layer.out / BATCH,
                            "fed": x.numel() / inputs / BATCH, "before": total / BATCH}, source,
                           int(result in saved)))
    return layers, segments, total / BATCH
