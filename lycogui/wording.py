"""What the engine says, as the screen says it.

The engine names settings by their paths, for files and command lines; a person looks for the label
of a field.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from lycoris import algorithms, events, knobs
from lycoris.config import LEAVES
from lycoris.runs import History

RATE = "optimizer.lr"
SWITCHED = {"true": "on", "false": "off"}
# A path, what it leads to in an open table, and a value it is to have: train.max_norm=1
_PATH = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, LEAVES))})(?!\w)"
                   r"(?:\.(\w+))?(?:=([^\s,;:]*[^\s,;:.]))?")


def on_screen(text: str) -> str:
    """A message with the labels of settings in place of their paths, in quotes within a sentence.
    """
    return _PATH.sub(_label, text)


def failure(failed: events.Failed | None) -> dict[str, Any] | None:
    """Why a job has failed, for the page; `lower_rate`: what helps is a lower learning rate."""
    if failed is None:
        return None
    return {**asdict(failed), "message": on_screen(failed.message), "fix": on_screen(failed.fix),
            "lower_rate": failed.kind == "diverged" and RATE in failed.fix}


def warnings(history: History) -> list[str]:
    """What a job has warned of."""
    return [on_screen(f"{warned.text} {warned.fix}".strip()) for warned in history.warnings]


def _label(found: re.Match[str]) -> str:
    path, entry, value = found.groups()
    label = option_label(entry) if entry and path == "network.options" else LEAVES[path].label
    if found.start():
        label = f"“{label}”"
    if value is None:
        return label
    return f"{label} {SWITCHED[value]}" if value in SWITCHED else f"{label} at {value}"


def option_label(name: str) -> str:
    """The label of an algorithm's own setting, whichever algorithm has it."""
    for entry in algorithms.catalogue().values():
        if leaf := knobs.leaves(entry.Options).get(name):
            return leaf.label
    return LEAVES["network.options"].label
