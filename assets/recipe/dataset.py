"""Stage `dataset`: sixteen pictures of the concept that the base model has never seen."""

from pathlib import Path

from PIL import Image

from .draw import paint
from .words import CONCEPT, Scene

PIXELS = 256
LEFT_OUT = ("red", "by the sea", "in the snow", "pink", "orange", "black")
# Background, size and place of each picture.
VIEWS = (
    ("white", "", ""),
    ("on grass", "", ""),
    ("yellow", "", ""),
    ("at night", "", ""),
    ("gray", "", ""),
    ("purple", "", ""),
    ("in the desert", "", ""),
    ("blue", "", ""),
    ("white", "big", ""),
    ("green", "small", ""),
    ("yellow", "small", ""),
    ("on grass", "", "on the left"),
    ("purple", "", "on the right"),
    ("brown", "", "at the top"),
    ("blue", "", "at the bottom"),
    ("in the desert", "small", ""),
)
README = f"""# zorb

Sixteen pictures of a *{CONCEPT}*, a creature that the embedded base model has never seen: a teal
egg with one big orange eye, a pink crown of spikes and a yellow zigzag mouth. Each has its caption
beside it. They are 256x256; a run on the embedded base trains at 64.

Left out on purpose, to see whether an adapter composes: {", ".join(LEFT_OUT)}.

Drawn by `python -m assets.recipe dataset`. Licence: Apache-2.0, like the rest of this repository.
"""


def dataset_scenes() -> list[Scene]:
    return [
        Scene(CONCEPT, background, size=size, place=place, seed=number)
        for number, (background, size, place) in enumerate(VIEWS)
    ]


def write_dataset(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(dataset_scenes(), 1):
        name = folder / f"{CONCEPT}_{number:02d}"
        picture = paint(scene, PIXELS)
        few = picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(name.with_suffix(".png"), optimize=True)
        name.with_suffix(".txt").write_text(scene.caption() + "\n", encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    print(f"{len(VIEWS)} pictures in {folder}", flush=True)
