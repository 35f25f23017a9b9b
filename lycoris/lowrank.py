"""Low rank: the singular values of a change of weights, which of them to keep, and the two thin
factors they leave.

Everything is computed in fp64, in which the squares that are taken of matrices cost no digit of an
fp32 weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

# {rule: what its value is; "" where it takes none}
RULES: Mapping[str, str] = {
    "dim": "", "lossless": "",
    "sv_ratio": "above 1: singular values above the largest divided by it are kept",
    "sv_fro": "above 0 and at most 1: the share of the Frobenius norm that is kept",
    "sv_cumulative": "above 0 and at most 1: the share of the sum of singular values that is kept",
    "threshold": "above 0: singular values above it are kept"}
NOTHING = 1e-6  # singular values below this share of the largest are rounding
SMALL = 128  # up to this side a plain decomposition is the fastest
GAIN = 1e-3  # share of the rest that another pass may still bring before the passes end
PASSES = 12


@dataclass(frozen=True)
class Rule:
    """How many singular values of a layer are kept: `dim` of them, or as many as the rule says and
    at most `dim`."""

    kind: str = "dim"
    dim: int | None = None
    value: float | None = None

    def problems(self, prefix: str = "") -> dict[str, str]:
        """{option: what is wrong}; `prefix` is put before the options' names."""
        if self.kind not in RULES:
            return {"rule": f"there is no rule {self.kind!r}; choose one of {', '.join(RULES)}"}
        found, wants = {}, RULES[self.kind]
        if self.dim is not None and self.dim < 1:
            found[f"{prefix}dim"] = f"{prefix}dim is {self.dim}, the least is 1"
        if self.kind == "dim" and self.dim is None:
            found[f"{prefix}dim"] = f"the rule dim needs {prefix}dim: the rank of every layer"
        if wants and (self.value is None or not self._allows(self.value)):
            given = "is not given" if self.value is None else f"is {self.value:g}"
            found[f"{prefix}value"] = f"{prefix}value {given}; for {self.kind} it must be {wants}"
        if not wants and self.value is not None:
            found[f"{prefix}value"] = f"the rule {self.kind} takes no {prefix}value"
        return found

    def _allows(self, value: float) -> bool:
        if self.kind == "sv_ratio":
            return 1 < value < float("inf")
        return 0 < value < float("inf") if self.kind == "threshold" else 0 < value <= 1

    def rank(self, values: Tensor) -> int:
        """Of singular values (k,), the largest first; at least 1 and at most k."""
        most = min(self.dim or len(values), len(values))
        bound = self.value or 0.0
        if self.kind == "dim":
            return most
        if self.kind == "sv_fro":
            rank = _reaching(values.square(), bound**2)
        elif self.kind == "sv_cumulative":
            rank = _reaching(values, bound)
        else:
            least = {"lossless": NOTHING * values[0].item(), "threshold": bound,
                     "sv_ratio": values[0].item() / max(bound, 1.0)}[self.kind]
            rank = int((values > least).sum())
        return max(1, min(rank, most))

    @property
    def text(self) -> str:
        if self.kind == "dim":
            return f"dim {self.dim}"
        most = f", at most dim {self.dim}" if self.dim else ""
        return self.kind + ("" if self.value is None else f" {self.value:g}") + most


@dataclass(frozen=True)
class Rules:
    """The rule of linear layers and 1x1 convolutions, and that of larger ones."""

    plain: Rule
    conv: Rule

    @classmethod
    def of(cls, kind: str, dim: int | None = None, value: float | None = None,
           conv_dim: int | None = None, conv_value: float | None = None) -> Rules:
        """What is not said of convolutions is as for the others; ConfigError lists all mistakes."""
        plain = Rule(kind, dim, value)
        conv = Rule(kind, dim if conv_dim is None else conv_dim,
                    value if conv_value is None else conv_value)
        problems = plain.problems()
        own = conv.problems("conv_")
        problems |= {key: text for key, text in own.items()
                     if key.removeprefix("conv_") not in problems}
        if problems:
            raise ConfigError(problems)
        return cls(plain, conv)

    @property
    def text(self) -> str:
        """ "dim 8", "sv_fro 0.9, on convolutions sv_fro 0.8" """
        return (self.plain.text if self.conv == self.plain
                else f"{self.plain.text}, on convolutions {self.conv.text}")


@dataclass(frozen=True)
class Spectrum:
    """Singular values (k,) of a matrix, the largest first, and `take(r)`: up (m, r) and down (r, n)
    of its best approximation of rank r, of equal lengths. Values that are left out are zero, or
    smaller than what was asked for."""

    values: Tensor
    take: Callable[[int], tuple[Tensor, Tensor]]

    def kept(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """What the rule keeps, as `take` gives it, in fp32."""
        up, down = self.take(rule.rank(self.values))
        return up.float().contiguous(), down.float().contiguous()


def spectrum(rule: Rule, dense: Callable[[], Tensor],
             factors: tuple[Tensor, Tensor] | None = None) -> Spectrum:
    """The singular values that the rule may keep at least, of `dense()` (o, i, ..), taken as the
    matrix (o, i K); from its factors, where they are thin."""
    if factors is not None and is_thin(*factors):
        return of_product(*factors)
    matrix = dense().flatten(1)
    return leading(matrix, rule.dim) if rule.kind == "dim" and rule.dim else of_matrix(matrix)


def is_thin(up: Tensor, down: Tensor) -> bool:
    """Is it less work to go on with the factors (o, r) and (r, n) than with their product?"""
    return 2 * up.shape[1] <= min(up.shape[0], down.shape[1])


def of_matrix(matrix: Tensor) -> Spectrum:
    """All singular values of (m, n). On large sides from the eigenvalues of the smaller square, in
    which a value is exact to about 1e-8 of the largest."""
    m = matrix.double()
    if m.shape[0] > m.shape[1]:
        return _turned(of_matrix(m.T))
    if m.shape[0] <= SMALL:
        u, values, _ = torch.linalg.svd(m, full_matrices=False)
    else:
        squares, u = torch.linalg.eigh(m @ m.T)
        values, u = squares.flip(0).clamp_min(0).sqrt(), u.flip(1)
    return _projected(u, values, m)


def of_product(up: Tensor, down: Tensor) -> Spectrum:
    """Of up (m, r) @ down (r, n), without forming it."""
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = values.sqrt()
    return Spectrum(values, lambda r: ((left @ u[:, :r]) * root[:r],
                                       root[:r, None] * (v[:r] @ right.T)))


def of_kronecker(small: Tensor, large: Tensor) -> Spectrum:
    """Of kron(small, large), whose singular values are the products of both's."""
    first, second = of_matrix(small), of_matrix(large)
    values, order = torch.outer(first.values, second.values).flatten().sort(descending=True)
    count = len(second.values)

    def take(rank: int) -> tuple[Tensor, Tensor]:
        i, j = order[:rank] // count, order[:rank] % count
        (up1, down1), (up2, down2) = first.take(len(first.values)), second.take(count)
        up = (up1[:, None, i] * up2[None, :, j]).reshape(-1, rank)
        down = (down1[i][:, :, None] * down2[j][:, None, :]).reshape(rank, -1)
        return up, down

    return Spectrum(values, take)


def leading(matrix: Tensor, rank: int) -> Spectrum:
    """At least the `rank` leading singular values of (m, n), by block power iteration from a random
    start (Halko et al. 2011, arXiv 0909.4061, alg. 4.4).

    The passes end when one more lowers the squared error of that rank by less than a thousandth;
    where they do not settle, and where the rank is a large part of the matrix, all values are
    computed.
    """
    side = min(matrix.shape)
    if side <= SMALL or 3 * rank > side:
        return of_matrix(matrix)
    m = matrix.double()
    if m.shape[0] > m.shape[1]:
        return _turned(leading(m.T, rank))
    generator = torch.Generator().manual_seed(0)
    width = min(side, rank + max(10, rank // 2))
    start = torch.randn(m.shape[1], width, generator=generator, dtype=m.dtype).to(m.device)
    energy = m.square().sum().item()
    block, held = torch.linalg.qr(m @ start)[0], 0.0
    for _ in range(PASSES):
        block = torch.linalg.qr(m @ (m.T @ block))[0]
        inner, values, _ = torch.linalg.svd(block.T @ m, full_matrices=False)
        before, held = held, values[:rank].square().sum().item()
        if held - before <= GAIN * (energy - held) + 1e-12 * energy:
            return _projected(block @ inner, values, m)
    return of_matrix(matrix)


def nearest_kronecker(matrix: Tensor, outs: tuple[int, int],
                      ins: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(w1 (o_l, i_m), w2 (o_k, i_n)) whose Kronecker product is nearest to (o_l o_k, i_m i_n): the
    leading singular pair of the matrix rearranged so that each block is a row (Van Loan and
    Pitsianis 1993)."""
    (out_l, out_k), (in_m, in_n) = outs, ins
    rows = matrix.reshape(out_l, out_k, in_m, in_n).transpose(1, 2).reshape(
        out_l * in_m, out_k * in_n)
    w1, w2 = leading(rows, 1).kept(Rule("dim", 1))
    return w1.reshape(out_l, in_m), w2.reshape(out_k, in_n)


def _reaching(parts: Tensor, share: float) -> int:
    """How many of the parts, from the first on, are that share of their sum."""
    sums = parts.cumsum(0)
    return int((sums < share * sums[-1] * (1 - 1e-12)).sum()) + 1


def _projected(u: Tensor, values: Tensor, matrix: Tensor) -> Spectrum:
    """u (m, k) has orthonormal columns: the approximation is u u^T matrix."""
    root = values.sqrt()
    root = torch.where(root > 0, root, torch.ones_like(root))
    return Spectrum(values, lambda r: (u[:, :r] * root[:r],
                                       (u[:, :r].T @ matrix) / root[:r, None]))


def _turned(found: Spectrum) -> Spectrum:
    def take(rank: int) -> tuple[Tensor, Tensor]:
        up, down = found.take(rank)
        return down.T, up.T

    return Spectrum(found.values, take)
