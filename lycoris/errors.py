"""What can go wrong for a person, said so that they can go on.

Every error says what was asked and what was found (`message`), what to do (`fix`), and, where one
setting is to blame, which one (`field`, a config path such as ``dataset.folder``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


class LycorisError(Exception):
    """A mistake or a condition that a person can act on; anything else is a bug of ours."""

    kind = "error"

    def __init__(self, message: str, fix: str = "", field: str = ""):
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.field = field

    @property
    def problems(self) -> dict[str, str]:
        """{config path: text} for the form; an empty path where no one setting is to blame."""
        return {self.field: str(self)}

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class ConfigError(LycorisError):
    """Settings that cannot be used; holds all of them, not the first."""

    kind = "settings"

    def __init__(self, problems: Mapping[str, str], fix: str = ""):
        listed = "; ".join(
            text if not path or text.startswith(path) else f"{path}: {text}"
            for path, text in problems.items()
        )
        super().__init__(listed, fix, field=next(iter(problems), ""))
        self._problems = dict(problems)

    @property
    def problems(self) -> dict[str, str]:
        return dict(self._problems)


class DatasetError(LycorisError):
    kind = "dataset"

    def __init__(self, message: str, fix: str = "", paths: Iterable[Path] = ()):
        super().__init__(message, fix, field="dataset.folder")
        self.paths = tuple(paths)


class ModelFileError(LycorisError):
    kind = "model"

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message, fix, field="model.base")


class NotDownloaded(ModelFileError):
    """`name` on Hugging Face is needed and not here; `otherwise` is what to do instead of
    downloading it."""

    def __init__(self, message: str, name: str, otherwise: str):
        super().__init__(
            message, "Once, with a network: Download in the panel behind the base model's name in "
            f"the page's header, or python -m lycoris download {name}; or {otherwise}")
        self.name = name
        self.otherwise = otherwise


class AdapterError(LycorisError):
    """An adapter file that cannot be read or does not fit; `keys` are the tensors in question."""

    kind = "adapter"

    def __init__(self, message: str, fix: str = "", keys: Iterable[str] = ()):
        super().__init__(message, fix)
        self.keys = tuple(keys)


class EmbeddingError(LycorisError):
    """A textual-inversion embedding that a prompt names and this base cannot take."""

    kind = "embedding"

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message, fix, field="sample.embeddings")


class RunError(LycorisError):
    """A run folder that is busy, missing or not what was expected."""

    kind = "run"


class DiskError(LycorisError):
    """A file could not be written; what was there before is untouched."""

    kind = "disk"

    def __init__(self, message: str, fix: str, path: Path, field: str = ""):
        super().__init__(message, fix, field)
        self.path = path


class MissingPackage(LycorisError):
    kind = "package"

    def __init__(self, name: str, pip: str, field: str = ""):
        super().__init__(f"This needs the package {name}, which is not installed.", pip, field)


class OutOfMemory(LycorisError):
    kind = "memory"

    def __init__(self, stage: str, suggestions: Iterable[str] = ()):
        found = list(suggestions)
        fix = "Try, in this order: " + "; ".join(found) + "." if found else ""
        super().__init__(f"The device ran out of memory while {stage}.", fix)
        self.stage = stage


class Diverged(LycorisError):
    """The loss or its gradient is no number any more; raised before the optimiser spreads it."""

    kind = "diverged"

    def __init__(self, step: int, value: float, pictures: Iterable[str] = (), what: str = "loss",
                 began: str = "", changes: Iterable[str] = ("resume with a lower optimizer.lr",)):
        """`began` is the first thing that was not finite; `changes` are what may help."""
        names = ", ".join(pictures)
        seen = f" (pictures: {names})" if names else ""
        first = f" The first that was not finite: {began}." if began else ""
        super().__init__(
            f"The {what} became {value} at step {step}{seen}.{first}",
            f"What was saved before is intact: {'; or '.join(changes)}.",
            field="optimizer.lr",
        )
        self.step = step
