"""Randomness as a function of (seed, keys): no state to save, nothing else can shift it.

A stream is keyed by what it is for, so order, captions, timesteps and noise of step 173 are the
same after a resume, and the same for LoRA and for LoHa of any size.
"""

from __future__ import annotations

import hashlib

import torch


def number(seed: int, *keys: int | str) -> int:
    """63 well-mixed bits of the seed and the keys."""
    text = "\0".join([str(seed), *(str(key) for key in keys)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A fresh CPU generator; draw on the CPU and move, so that every device sees the same."""
    return torch.Generator().manual_seed(number(seed, *keys))


def seed_globals(device: torch.device, seed: int, *keys: int | str) -> None:
    """For what draws from the global generators, such as dropout: the CPU's and the device's.

    torch.manual_seed also leaves word, with the whole stack as text, for every kind of device that
    has not been used yet: milliseconds each time.
    """
    state = number(seed, *keys)
    if device.type == "cpu":
        torch.default_generator.manual_seed(state)
    else:
        torch.manual_seed(state)


def uniform(seed: int, *keys: int | str) -> float:
    """One number in [0, 1)."""
    return number(seed, *keys) / 2**63


def permutation(count: int, seed: int, *keys: int | str) -> list[int]:
    return torch.randperm(count, generator=generator(seed, *keys)).tolist()
