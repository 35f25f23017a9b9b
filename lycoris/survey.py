"""The verb dataset on the command line: what a run will learn from, and what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from . import config
from .errors import ModelFileError
from .follow import Signals
from .settings import Config
from .terminal import Terminal, table


def run(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """Every folder of the settings, its pictures, captions and problems, and the epoch they make.
    """
    from . import plan
    from .data import epoch, gather

    settings = config.settings(options.settings)
    found = gather.gather(settings.dataset)
    counts, limit, unknown = _tokens(settings, [picture.words for picture in found.pictures])
    kinds = found.problems(settings.dataset.resolution)
    long = [p for p, count in zip(found.pictures, counts, strict=True)
            if count is not None and limit is not None and count > limit]
    kinds |= {f"longer than {limit} tokens": long} if long else {}
    counted = epoch.of(found, plan.buckets_of(settings, found.learned), settings.train)
    left_out = epoch.left_out(found)
    data: dict[str, Any] = {
        "folder": found.folder, "pictures": len(found),
        "problems": {kind: [p.name for p in pictures] for kind, pictures in kinds.items()},
        "left_out": [{"path": each.path, "why": each.why} for each in found.left_out],
        "tokens_unknown": unknown,
        "epoch": counted.data(),
        "items": [{"name": p.name, "folder": p.path.parent, "size": p.size, "caption": p.caption,
                   "tokens": count, "repeats": p.repeats, "weight": p.weight,
                   "regularisation": p.prior, "held_out": p.held, "mask": p.mask}
                  for p, count in zip(found.pictures, counts, strict=True)]}
    written = sum(bool((p.caption or "").strip()) for p in found.pictures)
    further = " and further folders" * bool(settings.dataset.more)
    rows = [("Pictures", f"{len(found):,} in {found.folder}{further}, {written:,} with captions")]
    rows += [(kind.capitalize(), _listed([p.name for p in pictures], len(pictures)))
             for kind, pictures in kinds.items()]
    rows += [("Tokens", f"not counted. {unknown}")] if unknown else []
    rows += [("Not used", f"{_listed(each['names'], each['count'])}: {each['why']}")
             for each in left_out]
    terminal.document(data, table([*rows, *epoch.sentences(counted)]))
    return 0


def _tokens(settings: Config, captions: list[str],
            ) -> tuple[Sequence[int | None], int | None, str]:
    """(tokens of each caption, how many are read, why they are unknown): all but them can be told
    of pictures whose base model, or its tokenizer, is not here yet."""
    from . import families

    try:
        family = families.open_chosen(settings.model)
        limit = family.max_tokens * settings.dataset.caption_chunks
        return family.count_tokens(captions), limit, ""
    except ModelFileError as error:
        return [None] * len(captions), None, str(error)


def _listed(names: list[str], count: int) -> str:
    from .data.epoch import NAMED

    return ", ".join(names[:NAMED]) + (f" and {count - NAMED:,} more" if count > NAMED else "")
