"""Captions in sidecar files: read, edited as a whole, written so that none is ever lost.

A bulk edit is a list of `Edit`s made first and looked at, then applied; reverting is applying the
edits the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import durable
from ..errors import ConfigError, DatasetError

# The first that is there counts. The second is what sd-scripts' dataset configs mean by default.
EXTENSIONS = (".txt", ".caption")


@dataclass(frozen=True)
class Edit:
    """One caption before and after; None means that there is no caption file."""

    picture: Path
    before: str | None
    after: str | None


def file_of(picture: Path) -> Path:
    """The file that a picture's caption is read from and saved to; a .txt where there is none."""
    files = [picture.with_suffix(each) for each in EXTENSIONS]
    return next((file for file in files if file.exists()), files[0])


def read(picture: Path) -> tuple[str | None, str]:
    """(caption, problem): None without a file or where it is not text; the text is not changed."""
    file = file_of(picture)
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").strip("\n"), ""
    except FileNotFoundError:
        return None, ""
    except UnicodeDecodeError as error:
        return None, f"{file.name} is not UTF-8 text (byte {error.start})"
    except OSError as error:
        return None, f"{file.name} cannot be read: {error.strerror}"


def as_prompt(caption: str) -> str:
    """A caption as the text encoder gets it: its lines joined to one."""
    return " ".join(line.strip() for line in caption.splitlines() if line.strip())


def has_lines(caption: str) -> bool:
    """Has it several?"""
    return "\n" in caption.strip()


def write(picture: Path, caption: str) -> None:
    """Save one caption; a file that is not UTF-8 is first kept beside it, as .txt.bak."""
    file = file_of(picture)
    _, problem = read(picture)
    if problem and file.is_file():
        backup = file.with_suffix(f"{file.suffix}.bak")
        if not backup.exists():
            durable.write_bytes(backup, file.read_bytes())
    durable.write_text(file, caption.rstrip("\n") + "\n")


def prepend(trigger: str) -> Callable[[str | None], str]:
    """Put a trigger word in front of a caption that does not begin with it."""
    word = trigger.strip().rstrip(",")

    def change(caption: str | None) -> str:
        text = caption or ""
        if text == word or text.startswith((f"{word},", f"{word} ")):
            return text
        return f"{word}, {text}" if text.strip() else word

    return change


def replace(find: str, by: str) -> Callable[[str | None], str | None]:
    """Replace every occurrence of a text, as it stands."""

    def change(caption: str | None) -> str | None:
        return None if caption is None else caption.replace(find, by)

    return change


def plan(captions: Iterable[tuple[Path, str | None]],
         change: Callable[[str | None], str | None]) -> list[Edit]:
    """The edits that a change would make, without making them."""
    found = []
    for picture, caption in captions:
        after = change(caption)
        if after != caption:
            found.append(Edit(picture, caption, after))
    return found


def by_rules(pictures: Iterable[tuple[Path, str | None]], *, trigger: str = "", find: str = "",
             by: str = "") -> list[Edit]:
    """The edits of find-and-replace, then of a trigger word, over all captions; none is written.

    Raises ConfigError where there is nothing to do.
    """
    if not (trigger or find):
        raise ConfigError({"": "nothing to do: give a trigger word, or a text to find"})

    def change(caption: str | None) -> str | None:
        if find:
            caption = replace(find, by)(caption)
        return prepend(trigger)(caption) if trigger else caption

    return plan(pictures, change)


def apply(edits: Sequence[Edit]) -> None:
    """Make the edits; refuses all of them where a caption has changed since they were planned."""
    stale = [edit.picture for edit in edits if read(edit.picture)[0] != edit.before]
    if stale:
        raise DatasetError(
            f"{len(stale)} captions have changed on disk meanwhile, the first is "
            f"{file_of(stale[0]).name}.", "Load the folder again and repeat the change.", stale)
    for edit in edits:
        if edit.after is None:
            durable.remove(file_of(edit.picture))
        else:
            write(edit.picture, edit.after)


def reverted(edits: Sequence[Edit]) -> list[Edit]:
    """The edits that undo these."""
    return [Edit(edit.picture, edit.after, edit.before) for edit in reversed(edits)]
