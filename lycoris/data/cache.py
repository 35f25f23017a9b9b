"""Latents of all pictures, taken from the disk or encoded once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import DatasetError
from ..families import Model
from . import fingerprint, folder, store
from .store import Store

GROUP = 8  # the most pictures that are encoded together,
GROUP_PIXELS = 2**20  # and the most pixels: four of 512 x 512, one of 1024 x 1024
SKEW = 0.02  # by which a mask's sides may be in another proportion than its picture's: rounding
NOWHERE = Store(Path(), 0)


@dataclass(frozen=True)
class Wanted:
    """One picture as it is to be encoded, `size` being (width, height). With `masked` the `mask`
    comes too, or how opaque the picture is where there is none."""

    path: Path
    size: tuple[int, int]
    flip: bool = False
    masked: bool = False
    mask: Path | None = None

    def key(self, made_by: str) -> str:
        """What its latents and its mask depend on."""
        return store.key("latents", made_by, store.of_file(self.path), *self.size, self.flip,
                         self.masked, store.of_file(self.mask) if self.mask else "")


@dataclass(frozen=True)
class Encoded:
    """Latents (c, h, w) and mask (1, h, w) in 0..1, both fp32 on the CPU."""

    latents: Tensor
    mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {"latents": self.latents} | ({} if self.mask is None else {"mask": self.mask})


def encode(model: Model, wanted: Sequence[Wanted],
           progress: Callable[[int, int, int], None], kept: Store = NOWHERE) -> list[Encoded]:
    """Each picture encoded, in the order given; `progress(done, of, taken from the store)`.

    Raises DatasetError naming every damaged picture, and every one of which the autoencoder makes
    numbers that are not finite. Groups are the same on every run, so the latents are too; for that
    reason a group of which one is missing in the store is made anew.
    """
    names = _names(model, wanted, kept)
    found: list[Encoded | None] = [None] * len(wanted)
    damaged: list[DatasetError] = []
    broken: list[Path] = []
    done = taken = 0
    for group in _groups(wanted):
        known = [_held(kept, names[i]) for i in group] if names else [None]
        held = all(known)
        if held:
            taken += len(group)
        else:
            known = _made(model, [wanted[i] for i in group], damaged)
        for index, one in zip(group, known, strict=False):
            found[index] = one
            if not one.latents.isfinite().all():
                broken.append(wanted[index].path)
            elif names and not held:
                kept.put(names[index], one.tensors())
        done += len(group)
        progress(done, len(wanted), taken)
    if damaged:
        raise DatasetError(f"{len(damaged)} picture{'s' * (len(damaged) > 1)} cannot be used: "
                           + " ".join(error.message for error in damaged[:10]),
                           damaged[0].fix, [path for error in damaged for path in error.paths])
    if broken:
        raise _no_latents(broken, len(wanted))
    return [one for one in found if one is not None]


def _made(model: Model, group: Sequence[Wanted], damaged: list[DatasetError]) -> list[Encoded]:
    """The pictures of a group, encoded; none once one of any group is damaged, which goes there."""
    pixels, masks = [], []
    for one in group:
        try:
            image = folder.decode(one.path)
            pixels.append(_pixels(image, one))
            masks.append(_mask(one, model, image.size))
        except DatasetError as error:
            damaged.append(error)
    if damaged:
        return []
    return [Encoded(latents, mask)
            for latents, mask in zip(_together(model, pixels), masks, strict=True)]


def _no_latents(paths: Sequence[Path], total: int) -> DatasetError:
    names = ", ".join(dict.fromkeys(path.name for path in paths[:10]))
    return DatasetError(
        f"The autoencoder makes numbers that are not finite of {len(paths)} of {total} pictures: "
        f"{names}.", "Choose another autoencoder (model.vae) or hold it in fp32 "
        "(model.vae_dtype=fp32)" + ("." if len(paths) == total else "; or leave these out."), paths)


def _groups(wanted: Sequence[Wanted]) -> list[list[int]]:
    """The numbers of what is encoded together: of one size, mirrored or not."""
    found = []
    for kind in sorted({(one.flip, one.size) for one in wanted}):
        members = [i for i, one in enumerate(wanted) if (one.flip, one.size) == kind]
        width, height = kind[1]
        size = max(1, min(GROUP, GROUP_PIXELS // (width * height)))
        found += [members[start:start + size] for start in range(0, len(members), size)]
    return found


def _names(model: Model, wanted: Sequence[Wanted], kept: Store) -> list[str]:
    """What each is called in the store; none where nothing is kept."""
    if not kept.limit or not wanted:
        return []
    made_by = fingerprint.of_pictures(model)
    return [one.key(made_by) for one in wanted]


def _held(kept: Store, name: str) -> Encoded | None:
    tensors = kept.get(name)
    return Encoded(tensors["latents"], tensors.get("mask")) if tensors else None


def _pixels(image: folder.Image.Image, wanted: Wanted) -> Tensor:
    """(3, h, w) in -1..1"""
    pixels = folder.fit(image, wanted.size)
    return pixels.flip(2) if wanted.flip else pixels


def _mask(wanted: Wanted, model: Model, size: tuple[int, int]) -> Tensor | None:
    """(1, h, w) at the latents' size, each number the mean over the pixels behind it. `size` is the
    picture's (width, height); DatasetError where its mask has another shape."""
    if not wanted.masked:
        return None
    shown = (folder.decode_mask(wanted.mask) if wanted.mask else folder.opacity(wanted.path))
    if abs(shown.width * size[1] / (shown.height * size[0]) - 1) > SKEW:
        raise DatasetError(
            f"The mask {shown.width} x {shown.height} of {wanted.path.name} has not the shape of "
            f"the picture, {size[0]} x {size[1]}.", "Save it at the picture's size.",
            [wanted.mask or wanted.path])
    pixels = folder.fit_mask(shown, wanted.size)
    pixels = pixels.flip(2) if wanted.flip else pixels
    return nn.functional.avg_pool2d(pixels, model.latent_scale)


def _together(model: Model, pixels: list[Tensor]) -> Tensor:
    """The latents of pictures of one size, one by one where memory is short."""
    try:
        return model.encode_image(torch.stack(pixels)).cpu()
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    return torch.cat([_together(model, [each]) for each in pixels])
