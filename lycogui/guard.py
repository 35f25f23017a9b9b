"""From an error to what the user sees: on the field it belongs to, or as a message."""

from __future__ import annotations

import contextlib
import functools
import html
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from lycogui.wording import on_screen
from lycoris.errors import LycorisError

Handler = TypeVar("Handler", bound=Callable[..., Any])
log = logging.getLogger("lycogui")


def shown(handler: Handler) -> Handler:
    """A handler whose errors become messages: ours say what to do, others say that it is a bug."""

    @functools.wraps(handler)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except gr.Error:
            raise
        except LycorisError as error:
            raise gr.Error(html.escape(on_screen(str(error))), title=error.kind.capitalize(),
                           print_exception=False) from error
        except Exception as error:
            log.exception("unexpected")
            raise gr.Error(
                html.escape(f"{type(error).__name__}: {error}. The terminal shows the details."),
                title="This is a bug in lycogui", print_exception=False) from error

    return guarded  # type: ignore[return-value]


def tell(text: str) -> None:
    """A short message at the edge of the page; Gradio would take markup in it for markup."""
    gr.Info(html.escape(on_screen(text)), duration=6)


@contextlib.contextmanager
def logged(doing: str) -> Iterator[None]:
    """For a thread that must outlive a folder that vanished or a full disk: write it to the log.
    """
    try:
        yield
    except Exception:
        log.exception(doing)


def as_data(error: Exception) -> dict[str, Any]:
    """The same for the page's own requests."""
    if isinstance(error, LycorisError):
        return {"kind": error.kind, "message": on_screen(error.message),
                "fix": on_screen(error.fix),
                "problems": {path: on_screen(text) for path, text in error.problems.items()}}
    log.exception("unexpected", exc_info=error)
    return {"kind": "bug", "message": f"{type(error).__name__}: {error}",
            "fix": "This is a bug in lycogui; the terminal shows the details.", "problems": {}}
