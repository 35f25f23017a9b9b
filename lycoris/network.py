"""Adapters for many layers of one or more modules, attached, merged, saved and read together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import adapterfile, dialects, quantised, streams, swapping
from .adapter import Adapter
from .adapterfile import AdapterFile
from .algorithms import Layer
from .assignments import Assignment
from .errors import AdapterError
from .slot import Slot

Report = Callable[[int, int], None]  # (layers done, of how many)


@dataclass(frozen=True)
class Norms:
    """What the norm cap found: layers it shrank, and all layers' norms of the scaled dW after."""

    capped: int = 0
    mean: float | None = None
    most: float | None = None


@dataclass
class Group:
    """Parameters with one learning rate: `rate` is the layers' own, None the part's."""

    part: str
    rate: float | None
    plus: bool
    parameters: list[nn.Parameter] = field(default_factory=list)


class LycorisNetwork(nn.Module):
    """Adapters for many layers of one or more modules.

    Several networks may be attached to the same model, and removed in any order; the base's own
    weights are touched only by merge_to.
    """

    def __init__(self, assignments: Iterable[Assignment], modules: Mapping[str, nn.Module],
                 seed: int = 0, report: Report | None = None, source: AdapterFile | None = None):
        """`source` is the file whose tensors they take; without one they start at no change."""
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.names: Mapping[Layer, Sequence[str]] = {}  # others that a layer has in files
        self._targets: dict[str, nn.Module] = {}
        self._roots = dict(modules)
        self._hooks: list[RemovableHandle] = []
        self._attached = False
        listed = list(assignments)
        for done, assignment in enumerate(listed, 1):
            target = modules[assignment.layer.part].get_submodule(assignment.layer.name)
            adapter = Adapter(assignment)
            with torch.random.fork_rng(devices=[]):  # the start is each layer's own, on the CPU
                streams.seed_globals(torch.device("cpu"), seed, "init", assignment.key)
                weight = quantised.weight_of(target).detach().to("cpu", torch.float32)
                adapter.derive(weight)
                if source is None:
                    adapter.init(weight)
                else:
                    adapter.load_tensors(source.group(assignment.source or assignment.key))
            self.adapters[assignment.key] = adapter.to(swapping.place_of(target))
            if not quantised.is_quantised(target):
                adapter.absorb(target.weight.detach())
            self._targets[assignment.key] = target
            if report is not None:
                report(done, len(listed))

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self.adapters.values())

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def attached(self) -> bool:
        return self._attached

    @property
    def targets(self) -> Mapping[nn.Module, Adapter]:
        """The model's own layers, each with its adapter."""
        return dict(zip(self._targets.values(), self, strict=True))

    def apply_to(self) -> LycorisNetwork:
        """Attach: from now on the model computes with these adapters."""
        if not self._attached:
            for key, adapter in self.adapters.items():
                Slot.of(self._targets[key]).adapters.append(adapter)
            self._follow_timesteps()
            self._attached = True
        return self

    def restore(self) -> LycorisNetwork:
        """Detach; the model is bit for bit what it was."""
        if self._attached:
            for key, adapter in self.adapters.items():
                Slot.of(self._targets[key]).remove(adapter)
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            self._attached = False
        return self

    def _follow_timesteps(self) -> None:
        """Adapters that go by the timestep hear it from the denoiser's own argument."""
        for part, root in self._roots.items():
            timed = [a for a in self if a.algorithm.timed and a.layer.part == part]
            names = list(inspect.signature(root.forward).parameters)
            if timed and "timestep" in names:
                place = names.index("timestep")

                def hear(_: nn.Module, args: tuple, given: dict[str, Any], place: int = place,
                         timed: list[Adapter] = timed) -> None:
                    t = given["timestep"] if "timestep" in given else args[place]
                    for adapter in timed:
                        adapter.clock = torch.as_tensor(t, device=adapter.p.q.device).reshape(-1)

                self._hooks.append(root.register_forward_pre_hook(hear, with_kwargs=True))

    @torch.no_grad()
    def merge_to(self, weight: float = 1.0) -> LycorisNetwork:
        """Write the change into the base's own weights at the given strength, and detach.

        Raises AdapterError for a quantised base, in whose steps the change would be lost.
        """
        if coarse := [a.layer.name for key, a in self.adapters.items()
                      if quantised.is_quantised(self._targets[key])]:
            raise AdapterError(
                f"{len(coarse)} layers of the base are held in 4 or 8 bits, in whose steps a small "
                f"change would be lost; the first is {coarse[0]}.",
                "Merge into the base loaded in fp32, bf16 or fp16, and quantise that.")
        self.restore()
        for key, adapter in self.adapters.items():
            target = self._targets[key]
            adapter.release()
            changed, bias = adapter.eval().changed(target.weight, target.bias, weight,
                                                   p=adapter.all_tensors())
            target.weight.copy_(changed)
            if bias is not None and target.bias is not None:
                target.bias.copy_(bias)
        return self

    def set_multiplier(self, multiplier: float) -> None:
        for adapter in self:
            adapter.multiplier = float(multiplier)

    def unfreeze(self) -> LycorisNetwork:
        for adapter in self:
            adapter.unfreeze()
        return self

    def get_trainable_params(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def groups(self) -> list[Group]:
        """The parameters that learn, by learning rate: of each part, of layers with a rate of their
        own, and of the tensors that LoRA+ speeds up (Hayou et al. 2024, arXiv 2402.12354)."""
        found: dict[tuple, Group] = {}
        for adapter in self:
            for name, parameter in adapter.named_parameters():
                if not parameter.requires_grad:
                    continue
                plus = name.removeprefix("p.") in adapter.algorithm.plus
                key = (adapter.layer.part, adapter.assignment.rate, plus)
                found.setdefault(key, Group(*key)).parameters.append(parameter)
        return list(found.values())

    @torch.no_grad()
    def apply_max_norm_regularization(self, value: float) -> Norms:
        """Cap every layer's scaled dW at Frobenius norm `value`."""
        def weight(key: str) -> Tensor:
            target = self._targets[key]
            if not self.adapters[key].algorithm.needs_weight:
                return target.weight
            return quantised.weight_of(target).to(swapping.place_of(target))

        norms = torch.stack([adapter.norm(weight(key))
                             for key, adapter in self.adapters.items()]).tolist()
        capped = 0
        for place, (key, adapter) in enumerate(self.adapters.items()):
            if norms[place] > value:
                norms[place] = adapter.cap_norm(weight(key), norms[place], value)
                capped += 1
        return Norms(capped, sum(norms) / len(norms), max(norms))

    @torch.no_grad()
    def not_finite(self) -> str:
        """The first layer with a number that is none; empty where all are finite."""
        if not len(self):
            return ""
        sound = torch.stack([torch.stack([p.isfinite().all() for p in adapter.parameters()]).all()
                             for adapter in self]).tolist()
        return next((f"{adapter.layer.part} {adapter.layer.name}"
                     for adapter, fine in zip(self, sound, strict=True) if not fine), "")

    def file_tensors(self) -> dict[str, Tensor]:
        return {key: tensor for adapter in self for key, tensor in adapter.file_tensors().items()}

    def save_weights(self, file: Path | str, dtype: torch.dtype | None = None,
                     metadata: Mapping[str, str] | None = None) -> Path:
        """Write a .safetensors file durably, every tensor in `dtype` (default: as trained)."""
        return adapterfile.write(file, self.file_tensors(), dtype, metadata or {})

    def load_weights(self, file: Path | str) -> None:
        """Take over a file's tensors, whose layers may go by any of their `names`; raises
        AdapterError where any of ours is missing or unfit."""
        opened = adapterfile.AdapterFile(file)
        theirs = {dialects.canonical(name): name for name in opened.shapes}
        places = {key: next((theirs[name] for name in (key, *self.names.get(adapter.layer, ()))
                             if name in theirs), key)
                  for key, adapter in self.adapters.items()}
        wrong = [key for key, adapter in self.adapters.items()
                 if not opened.fits(places[key], adapter.assignment)]
        if wrong:
            raise AdapterError(
                f"{file} does not fit this network: {len(wrong)} of {len(self)} layers are missing "
                f"or of another shape, the first is {wrong[0]}.",
                "Use create_lycoris_from_weights, which builds the network the file describes.",
                keys=wrong)
        for key, adapter in self.adapters.items():
            scale_1 = {"alpha": torch.tensor(float(adapter.algorithm.dim))}  # where none is said
            adapter.load_tensors(scale_1 | opened.group(places[key]))

    @classmethod
    def from_file(cls, file: AdapterFile, assignments: Sequence[Assignment],
                  modules: Mapping[str, nn.Module], report: Report | None = None) -> LycorisNetwork:
        """The network of a file, its assignments as `adapterfile.match` found them; frozen."""
        network = cls(assignments, modules, report=report, source=file)
        return network.requires_grad_(False).eval()
