"""The one shell around every algorithm: scale, dropouts, DoRA, attaching, merging.

An `Adapter` holds one layer's small tensors. While adapters are attached, a `Slot` stands in for
the layer's forward: it either computes with W + dW, or, where that is cheaper, adds the adapter's
own thin products to the layer's output. Merging uses the same W + dW, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import adapterfile, streams
from .adapterfile import AdapterFile
from .assignments import Assignment
from .errors import AdapterError

SLOT = "lycoris_slot"


class Adapter(nn.Module):
    """One layer's adapter. `p` are the algorithm's tensors, in fp32."""

    def __init__(self, assignment: Assignment):
        super().__init__()
        self.assignment = assignment
        self.layer, self.algorithm = assignment.layer, assignment.algorithm
        self.extras = assignment.extras
        self.multiplier = 1.0
        self.p = nn.ParameterDict({
            name: nn.Parameter(torch.empty(shape))
            for name, shape in assignment.shapes().items()})
        self.scalar = nn.Parameter(torch.zeros(())) if assignment.has_scalar else None
        shape = assignment.dora_shape()
        self.dora_scale = None if shape is None else nn.Parameter(torch.empty(shape))

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.p.values())).dtype

    @torch.no_grad()
    def init(self, weight: Tensor) -> None:
        """Start values: no change of the layer. `weight` is the base layer's."""
        self.algorithm.init(self.p, from_zero=self.scalar is None)
        if self.scalar is not None:
            self.scalar.zero_()
        if self.dora_scale is not None:
            self.dora_scale.copy_(self._lengths(weight.float()))

    def scaled_delta(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """multiplier * scale * dW in the layer's shape and the adapter's dtype."""
        return self._scaled(self._dropped_ranks(), weight, multiplier)

    def _scaled(self, p: Mapping[str, Tensor], weight: Tensor, multiplier: float = 1.0) -> Tensor:
        delta = self.algorithm.delta(p, self.layer, weight)
        if self.scalar is not None:
            delta = delta * self.scalar
        factor = multiplier * self.algorithm.scale()
        return delta if factor == 1.0 else delta * factor

    def changed(self, weight: Tensor, bias: Tensor | None,
                multiplier: float) -> tuple[Tensor, Tensor | None]:
        """(W', b') of the layer under this adapter at the given strength.

        With DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5) the rows of W + dW get the learned
        lengths; the gradient does not flow through their own length (sec. 4.3). The multiplier goes
        from W to that result, so 0 is the base.
        """
        weight = weight.to(self.dtype)
        with torch.autocast(weight.device.type, enabled=False):  # dW is made in full precision
            if self.dora_scale is None:
                changed = weight + self.scaled_delta(weight, multiplier)
            else:
                full = weight + self.scaled_delta(weight)
                full = full * (self.dora_scale / self._lengths(full.detach()))
                changed = full if multiplier == 1.0 else torch.lerp(weight, full, multiplier)
        shift = self.algorithm.bias(self.p)
        if shift is not None and bias is not None:
            bias = bias.to(shift.dtype) + multiplier * shift
        return changed, bias

    def _lengths(self, weight: Tensor) -> Tensor:
        """Norms of the rows (on the output) or of the columns (on the input), never zero."""
        axis = 0 if self.extras.dora_on_output else 1
        others = [d for d in range(weight.ndim) if d != axis]
        lengths = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return lengths.clamp_min(torch.finfo(weight.dtype).tiny)

    def _dropped_ranks(self) -> Mapping[str, Tensor]:
        """The tensors with a random share of their ranks silenced and the rest made up for it."""
        share = self.extras.rank_dropout
        if not (share and self.training and self.algorithm.ranked):
            return self.p
        p = dict(self.p.items())
        for name, axis in self.algorithm.ranked.items():
            tensor = p[name]
            sides = [1] * tensor.ndim
            sides[axis] = tensor.shape[axis]
            p[name] = tensor * F.dropout(torch.ones(sides, device=tensor.device), share)
        return p

    def sits_out(self) -> bool:
        """Does the layer go without this adapter in this forward pass?"""
        if self.multiplier == 0.0:
            return True
        share = self.extras.module_dropout
        return bool(share) and self.training and torch.rand(()).item() < share

    def bypass(self, x: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """multiplier * scale * dW x without forming dW; None where W + dW is the way."""
        cheap = self.dora_scale is None and self.algorithm.bypass_is_cheaper(self.layer)
        if not cheap:
            return None
        p = self._dropped_ranks()
        change = self.algorithm.bypass(p, x, self.layer, op)
        if change is None:
            return None
        factor = self.multiplier * self.algorithm.scale()
        if self.scalar is not None:
            change = change * self.scalar
        return change * factor

    @torch.no_grad()
    def file_tensors(self) -> dict[str, Tensor]:
        """{key: tensor} for a file, the trained scalar folded in."""
        keys = self.algorithm.keys
        found: dict[str, Tensor] = {}
        for name, tensor in self.p.items():
            value = tensor.detach()
            if self.scalar is not None and name == self.algorithm.fold:
                value = value * self.scalar
            found[keys[name]] = value
        if self.algorithm.scaled:
            found["alpha"] = torch.tensor(self.algorithm.saved_alpha)
        if self.dora_scale is not None:
            found["dora_scale"] = self.dora_scale.detach()
        return {f"{self.assignment.key}.{suffix}": value for suffix, value in found.items()}

    @torch.no_grad()
    def load_tensors(self, found: Mapping[str, Tensor]) -> None:
        """Take over {suffix: tensor} as read from a file, its alpha with them."""
        if self.algorithm.scaled and "alpha" in found:
            kind = type(self.algorithm)
            self.algorithm = kind(self.algorithm.dim, found["alpha"].item(), self.algorithm.options)
        for name, tensor in self.p.items():
            tensor.copy_(found[self.algorithm.keys[name]].reshape(tensor.shape))
        if self.scalar is not None:
            self.scalar.fill_(1.0)
        if self.dora_scale is not None:
            self.dora_scale.copy_(found["dora_scale"].reshape(self.dora_scale.shape))

    @torch.no_grad()
    def cap_norm(self, weight: Tensor, limit: float) -> tuple[bool, float]:
        """Shrink the adapter until the Frobenius norm of its scaled dW is at most `limit`, all
        ranks counted.

        Returns whether it was shrunk and the norm afterwards.
        """
        norm = self._scaled(self.p, weight.float()).norm().item()
        if norm <= limit:
            return False, norm
        self.p[self.algorithm.fold].mul_(limit / norm)
        return True, limit


class Slot:
    """Stands in for one layer's forward while adapters are attached to it."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.adapters: list[Adapter] = []

    @classmethod
    def of(cls, module: nn.Module) -> Slot:
        """The module's slot, made and put in place if there is none yet."""
        slot = module.__dict__.get(SLOT)
        if slot is None:
            slot = cls(module)
            module.__dict__[SLOT] = slot
            module.forward = slot.forward
        return slot

    def remove(self, adapter: Adapter) -> None:
        self.adapters.remove(adapter)
        if not self.adapters:  # the class's own forward shows again
            del self.module.__dict__[SLOT]
            del self.module.__dict__["forward"]

    def forward(self, x: Tensor) -> Tensor:
        module = self.module
        weight, bias = module.weight, module.bias
        added: list[Tensor] = []
        dense = False
        for adapter in self.adapters:
            if adapter.sits_out():
                continue
            change = self._aside(adapter, x)
            if change is None:
                dense = True
                weight, bias = adapter.changed(weight, bias, adapter.multiplier)
            else:
                added.append(change)
        if dense:
            y = apply(module, x, weight.to(module.weight.dtype),
                      None if bias is None else bias.to(module.weight.dtype))
        else:
            y = type(module).forward(module, x)
        for change in added:
            y = y + change.to(y.dtype)
        return y

    def _aside(self, adapter: Adapter, x: Tensor) -> Tensor | None:
        """The adapter's own output, to be added to the layer's; None: it changes the weight.

        Dropout of outputs needs them apart from the layer's, whatever the algorithm.
        """
        share = adapter.extras.dropout if adapter.training else 0.0
        module = self.module
        if adapter.layer.kind == "norm":
            return None
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(adapter.dtype)
        change = None
        if getattr(module, "groups", 1) == 1:
            change = adapter.bypass(x, lambda h, w: apply(module, h, w, None))
        if change is None and share:
            weight = module.weight.to(adapter.dtype)
            changed, _ = adapter.changed(weight, None, adapter.multiplier)
            change = apply(module, x, changed - weight, None)
        if change is not None and share:
            change = F.dropout(change, share)
        return change


def apply(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's own operation (stride, padding mode, groups, eps) with another weight and
    bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module._conv_forward(x, weight, bias)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    assert isinstance(module, nn.LayerNorm), type(module)
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


class LycorisNetwork(nn.Module):
    """Adapters for many layers of one or more modules.

    Several networks may be attached to the same model, and removed in any order; the base's own
    weights are touched only by merge_to.
    """

    def __init__(self, assignments: Iterable[Assignment], modules: Mapping[str, nn.Module],
                 seed: int = 0):
        super().__init__()
        self.adapters = nn.ModuleDict()
        self._targets: dict[str, nn.Module] = {}
        for assignment in assignments:
            target = modules[assignment.layer.part].get_submodule(assignment.layer.name)
            adapter = Adapter(assignment)
            with torch.random.fork_rng(devices=[]):  # the start is each layer's own, on the CPU
                torch.manual_seed(streams.number(seed, "init", assignment.key))
                adapter.init(target.weight.detach().cpu())
            self.adapters[assignment.key] = adapter.to(target.weight.device)
            self._targets[assignment.key] = target
        self._attached = False

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self.adapters.values())

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def attached(self) -> bool:
        return self._attached

    def apply_to(self) -> LycorisNetwork:
        """Attach: from now on the model computes with these adapters."""
        if not self._attached:
            for key, adapter in self.adapters.items():
                Slot.of(self._targets[key]).adapters.append(adapter)
            self._attached = True
        return self

    def restore(self) -> LycorisNetwork:
        """Detach; the model is bit for bit what it was."""
        if self._attached:
            for key, adapter in self.adapters.items():
                Slot.of(self._targets[key]).remove(adapter)
            self._attached = False
        return self

    @torch.no_grad()
    def merge_to(self, weight: float = 1.0) -> LycorisNetwork:
        """Write the change into the base's own weights at the given strength, and detach."""
        self.restore()
        for key, adapter in self.adapters.items():
            target = self._targets[key]
            changed, bias = adapter.eval().changed(target.weight, target.bias, weight)
            target.weight.copy_(changed)
            if bias is not None and target.bias is not None:
                target.bias.copy_(bias)
        return self

    def set_multiplier(self, multiplier: float) -> None:
        for adapter in self:
            adapter.multiplier = float(multiplier)

    def get_trainable_params(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """{part: its parameters}, for learning rates of their own."""
        found: dict[str, list[nn.Parameter]] = {}
        for adapter in self:
            found.setdefault(adapter.layer.part, []).extend(adapter.parameters())
        return found

    def apply_max_norm_regularization(self, value: float) -> tuple[int, float, float]:
        """Cap every layer's scaled dW at Frobenius norm `value`: (layers capped, mean, max
        norm)."""
        results = [adapter.cap_norm(self._targets[key].weight.detach(), value)
                   for key, adapter in self.adapters.items()]
        norms = [norm for _, norm in results]
        return sum(capped for capped, _ in results), sum(norms) / len(norms), max(norms)

    def file_tensors(self) -> dict[str, Tensor]:
        return {key: tensor for adapter in self for key, tensor in adapter.file_tensors().items()}

    def save_weights(self, file: Path | str, dtype: torch.dtype | None = None,
                     metadata: Mapping[str, str] | None = None) -> Path:
        """Write a .safetensors file durably, every tensor in `dtype` (default: as trained)."""
        return adapterfile.write(file, self.file_tensors(), dtype, metadata or {})

    def load_weights(self, file: Path | str) -> None:
        """Take over a file's tensors; raises AdapterError where any of ours is missing or unfit."""
        opened = adapterfile.AdapterFile(file)
        wrong = [key for key, adapter in self.adapters.items()
                 if not opened.fits(key, adapter.assignment)]
        if wrong:
            raise AdapterError(
                f"{file} does not fit this network: {len(wrong)} of {len(self)} layers are missing "
                f"or of another shape, the first is {wrong[0]}.",
                "Use create_lycoris_from_weights, which builds the network the file describes.",
                keys=wrong)
        self._take(opened)

    @classmethod
    def from_file(cls, file: AdapterFile, assignments: Sequence[Assignment],
                  modules: Mapping[str, nn.Module]) -> LycorisNetwork:
        """The network of a file, its assignments as `adapterfile.match` found them; frozen."""
        network = cls(assignments, modules)
        network._take(file)
        return network.requires_grad_(False).eval()

    def _take(self, file: AdapterFile) -> None:
        for key, adapter in self.adapters.items():
            adapter.load_tensors(file.group(key))
