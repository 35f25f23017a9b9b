"""How a file's tensors become the ones that our algorithms know: where other programs keep another
orientation, a rotation instead of its generator, or a scale instead of an alpha.

Nothing is read here. A `Source` says from which keys a tensor is made, how, and of what shape it
will be, so that a header alone tells algorithm, dims and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .algorithms import Shape
from .errors import AdapterError


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Source:
    """One tensor under its canonical suffix: the keys it is made from, and how."""

    keys: tuple[str, ...]
    shape: Shape
    make: Callable[..., Tensor] = field(default=same, compare=False)

    def tensor(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Made from the file's tensors; AdapterError where they do not go together."""
        try:
            return self.make(*(tensors[key] for key in self.keys)).reshape(self.shape)
        except (RuntimeError, ValueError, IndexError) as problem:
            raise AdapterError(f"{' and '.join(self.keys)} cannot be read together: {problem}.",
                               "The file is damaged; take another copy.",
                               keys=self.keys) from None

    def then(self, change: Callable[[Tensor], Tensor], shape: Shape | None = None) -> Source:
        return Source(self.keys, self.shape if shape is None else shape,
                      lambda *read: change(self.make(*read)))


Group = Mapping[str, Source]  # {canonical suffix: where it comes from}
SPARSE = ("bias_indices", "bias_values", "bias_size")


def constant(value: float) -> Source:
    return Source((), (), lambda: torch.tensor(value))


def joined(parts: Group, make: Callable[[Mapping[str, Tensor]], Tensor], shape: Shape) -> Source:
    """A tensor made from several others: `make` gets them by their suffixes."""

    def from_keys(*read: Tensor) -> Tensor:
        left, found = list(read), {}
        for suffix, part in parts.items():
            own, left = left[:len(part.keys)], left[len(part.keys):]
            found[suffix] = part.make(*own)
        return make(found)

    return Source(tuple(key for part in parts.values() for key in part.keys), shape, from_keys)


def lengths(group: Group) -> Group:
    """PEFT's DoRA: lora_magnitude_vector, (o) or (1, o, 1, ..), is dora_scale (o, 1, ..)."""
    if "magnitude" not in group:
        return group
    group = dict(group)
    found = group.pop("magnitude")
    ones = (1,) * (len(group["lora_down.weight"].shape) - 1 if "lora_down.weight" in group else 1)
    return {**group, "dora_scale": found.then(same, (max(found.shape, default=1), *ones))}


def factors(group: Group, on_input: bool) -> Group:
    """PEFT's ia3_l is what each channel is multiplied with, 1 + w; ours is w."""
    group = dict(group)
    found = group.pop("ia3_l")
    sides = max(found.shape, default=1)
    shape = (1, sides, *found.shape[2:]) if len(found.shape) > 2 else (sides,)
    return {**group, "weight": found.then(lambda t: t.float() - 1, shape),
            "on_input": constant(float(on_input))}


def rotations(group: Group) -> Group:
    """Old LyCORIS' oft_diag (n, b, b), the rotation R itself: its generator B is oft_blocks.

    R = (I + Q)(I - Q)^-1 gives Q = (R - I)(R + I)^-1, and B = Q / 2 has B - B^T = Q. Such files had
    no constraint, so an alpha beside R says nothing.
    """
    if "oft_diag" not in group:
        return group
    found = group["oft_diag"]
    others = {suffix: source for suffix, source in group.items()
              if suffix not in ("oft_diag", "alpha")}
    return {**others, "oft_blocks": found.then(lambda r: _generator(r, found.keys[0]))}


def _generator(rotation: Tensor, key: str) -> Tensor:
    """B of R, (.., b, b); AdapterError where R is no rotation, or one by half a turn."""
    r = rotation.double()
    eye = torch.eye(r.shape[-1], dtype=r.dtype)
    half, singular = torch.linalg.solve_ex(r + eye, r - eye, left=False)
    half = (half - half.mT) / 4  # what is not skew-symmetric in it is rounding, or R no rotation
    again = torch.linalg.solve_ex(eye - 2 * half, eye + 2 * half, left=False)[0]
    allowed = max(16 * torch.finfo(rotation.dtype).eps, 1e-4)
    error = (again - r).abs().amax().item()
    if singular.any() or not error <= allowed:
        raise AdapterError(
            f"{key} is no rotation that can be read: it is {error:.2g} away from one. It was "
            "trained with rescaling, or with an early version that did not hold it to rotations.",
            "Merge it into its base model with the program that made it, and extract it again.",
            keys=[key])
    return half.to(torch.float32)


def is_old_glora(group: Group) -> bool | None:
    """Is a GLoRA group in the old orientation: dW = b2 b1 + W a2 a1? None: it is none, or its
    shapes do not tell.

    Old: a1 (r, i), a2 (i, r), b1 (r, i K), b2 (o, r). New: a1 (i, r), a2 (r, i), b1 (o, r),
    b2 (r, i K). Where both readings hold, the layer is square and the rank the smaller side.
    """
    if not {"a1.weight", "a2.weight", "b1.weight", "b2.weight"} <= set(group):
        return None
    a1, a2, b1, b2 = (group[f"{name}.weight"].shape for name in ("a1", "a2", "b1", "b2"))
    if min(map(len, (a1, a2, b1, b2))) < 2:
        return False
    old = a1[0] == a2[1] == b1[0] == b2[1]
    new = a1[1] == a2[0] == b1[1] == b2[0]
    if old and new:
        return None if a1[0] == a1[1] else a1[0] < a1[1]
    return old if old or new else None


def turned_glora(group: Group) -> Group:
    pairs = {"a1.weight": "a2.weight", "a2.weight": "a1.weight",
             "b1.weight": "b2.weight", "b2.weight": "b1.weight"}
    return {suffix: group[pairs.get(suffix, suffix)] for suffix in group}


def sparse_rests(group: Group) -> Group:
    """The extractor's sparse rest beside a LoRA, dW = s (up @ down + rest), as one full `diff`."""
    if not {*SPARSE, "lora_up.weight", "lora_down.weight"} <= set(group):
        return group
    up, down = group["lora_up.weight"].shape, group["lora_down.weight"].shape
    if len(up) < 2 or len(down) < 2:
        return group
    kernel = group["lora_mid.weight"].shape if "lora_mid.weight" in group else down
    parts = {suffix: source for suffix, source in group.items() if suffix != "dora_scale"}
    whole = joined(parts, _with_rest, (up[0], down[1], *kernel[2:]))
    return {"diff": whole} | {suffix: group[suffix] for suffix in group if suffix == "dora_scale"}


def _with_rest(p: Mapping[str, Tensor]) -> Tensor:
    up, down = p["lora_up.weight"].float().flatten(1), conv_down(p).float()
    product = up @ down.flatten(1)
    sides = [int(side) for side in p["bias_size"].tolist()]
    rest = torch.sparse_coo_tensor(p["bias_indices"].long(), p["bias_values"].float(), sides,
                                   check_invariants=True)
    scale = p["scale"].item() if "scale" in p else (
        p["alpha"].item() / down.shape[0] if "alpha" in p else 1.0)
    return (product + rest.to_dense().reshape(product.shape)) * scale


def first_ranks(group: Group, count: int) -> Group:
    """A LoRA cut to its first ranks at the scale it had, as A1111's `dyn` does with a DyLoRA;
    other groups, and LoRAs of no more ranks, as they are."""
    down = group.get("lora_down.weight")
    if down is None or "lora_up.weight" not in group or "lora_mid.weight" in group:
        return group
    up, dim = group["lora_up.weight"], down.shape[0]
    if count >= dim:
        return group
    alpha = group.get("alpha", constant(float(dim)))
    return {**group, "alpha": alpha.then(lambda t: t.float() * count / dim),
            "lora_down.weight": down.then(lambda t: t[:count], (count, *down.shape[1:])),
            "lora_up.weight": up.then(lambda t: t[:, :count], (up.shape[0], count, *up.shape[2:]))}


def conv_down(p: Mapping[str, Tensor]) -> Tensor:
    """A LoRA's `down` with the kernel of its Tucker core, if there is one, worked in: (r, i, *k).

    dW[p, q] = sum_m up[p, m] sum_n mid[m, n] down[n, q], so the rank stays what it was.
    """
    down = p["lora_down.weight"]
    if "lora_mid.weight" not in p:
        return down
    return torch.einsum("mn...,nq->mq...", p["lora_mid.weight"].float(), down.float().flatten(1))
