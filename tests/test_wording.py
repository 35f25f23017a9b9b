"""What the engine says is shown with the labels of fields, not with their paths."""

from __future__ import annotations

import pytest

from lycogui import wording
from lycogui.guard import as_data
from lycoris import events
from lycoris.errors import ConfigError, Diverged
from lycoris.runs import History


@pytest.mark.parametrize(("said", "shown"), [
    ("train.steps is -5; the least is 1", "Steps is -5; the least is 1"),
    ("Use larger ones, or lower dataset.resolution.", "Use larger ones, or lower “Resolution”."),
    ("start a new run with train.max_norm=1.", "start a new run with “Max norm” at 1."),
    ("resume with train.gradient_checkpointing=true or a higher train.split; resume goes on",
     "resume with “Gradient checkpointing” on or a higher “Batch in parts”; resume goes on"),
    ("or leave network.weights empty", "or leave “Continue from” empty"),
    ("network.options.decompose_both is 3", "Decompose both is 3"),
    ("a file models/model.base or x.train.steps", "a file models/model.base or x.train.steps")])
def test_paths_become_labels(said: str, shown: str) -> None:
    assert wording.on_screen(said) == shown


def test_errors_and_warnings_come_in_words() -> None:
    found = as_data(ConfigError({"train.steps": "train.steps is 0"}, "Raise train.steps."))
    assert (found["message"], found["fix"]) == ("Steps is 0", "Raise “Steps”.")
    assert found["problems"] == {"train.steps": "Steps is 0"}
    history = History()
    history.add(0.0, events.Warned("The batch is small.", "Lower train.batch_size."))
    assert wording.warnings(history) == ["The batch is small. Lower “Batch size”."]


def test_a_loss_that_left_all_bounds_asks_for_a_lower_rate() -> None:
    error = Diverged(7, float("nan"))
    failed = events.Failed(error.kind, error.message, error.fix, error.field)
    shown = wording.failure(failed)
    assert shown and shown["lower_rate"] and "“Learning rate”" in shown["fix"]
    other = wording.failure(events.Failed("memory", "No memory.", "Lower train.batch_size."))
    assert other and not other["lower_rate"] and wording.failure(None) is None
