"""One or two runs as a page that needs nothing else: no script, no address, pictures inside.

It reads the run folder only. All text is escaped; a run's names and captions are other people's.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from . import __version__, algorithms, config, durable, knobs
from .config import LEAVES
from .curves import Curve, difference, plot
from .errors import LycorisError
from .events import Sampled
from .runs import History, RunFolder
from .settings import Config

SIDE = 192  # pixels of a sample picture's longer side
COLUMNS = 9  # steps of which samples are shown, evenly spread
BASE = "base"  # the contestant that is the base model alone
COLOURS = ("a", "b")  # blue is A, orange is B
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #18181b; --faint: #5f5f68; --line: #e4e4e7;
  --paper: #fff; --a: #2563eb; --b: #d9480f; --warn: #a15c00 }
@media (prefers-color-scheme: dark) { :root { --ink: #f4f4f5; --faint: #a1a1aa; --line: #3f3f46;
  --paper: #18181b; --a: #6ea8fe; --b: #ff9a5c; --warn: #f5b942 } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 24px auto; padding: 0 20px; font-variant-numeric: tabular-nums }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 15px; margin: 28px 0 8px }
p { margin: 4px 0 } .faint, small { color: var(--faint) } .warn { color: var(--warn) }
.a { color: var(--a) } .b { color: var(--b) }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600 }
th, td { border-top: 1px solid var(--line); padding: 4px 12px 4px 0; vertical-align: top;
  overflow-wrap: anywhere } td.n { white-space: nowrap }
.looks .n { text-align: right; padding: 4px 0 4px 12px }
.wide { overflow-x: auto } svg { width: 100%; height: auto; display: block }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint) }
.samples td { border: 0; padding: 0 8px 10px 0; overflow-wrap: normal } .samples img { display:
  block; border-radius: 4px; width: 100%; min-width: 96px; max-width: 256px; height: auto }
.samples th { border: 0 } details summary { cursor: pointer;
  color: var(--faint); margin: 8px 0 }
@media print { details { display: block } body { margin: 0 } }
"""


@dataclass(frozen=True)
class Subject:
    """One run as the report knows it."""

    run: RunFolder
    history: History
    made: Mapping[str, Any]
    settings: Config | None
    colour: str

    @property
    def name(self) -> str:
        return self.run.name


def of(runs: Sequence[RunFolder]) -> str:
    """The page of one run, or of two side by side with the difference of their curves."""
    subjects = [_subject(run, colour) for run, colour in zip(runs, COLOURS, strict=False)]
    title = " and ".join(each.name for each in subjects)
    parts = [_head(subjects), _facts(subjects), _warnings(subjects), _curves(subjects),
             _looks(subjects), *(_samples(each, len(subjects) > 1) for each in subjects),
             _settings(subjects)]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(part for part in parts if part)
            + f'\n<p class="faint">lycogui {escape(__version__)}</p></body></html>\n')


def write(runs: Sequence[RunFolder], out: Path | None = None) -> Path:
    """The page as a file: `out`, or report.html in the first run's folder."""
    return durable.write_text(out or runs[0].path / "report.html", of(runs))


def _subject(run: RunFolder, colour: str) -> Subject:
    try:
        made = json.loads((run.path / "plan.json").read_text("utf-8"))
    except (OSError, ValueError):
        made = {}
    try:
        settings = config.load(run.config_file)
    except LycorisError:
        settings = None
    return Subject(run, run.history(), made if isinstance(made, dict) else {}, settings, colour)


def _head(subjects: Sequence[Subject]) -> str:
    names = " and ".join(f'<span class="{each.colour if len(subjects) > 1 else ""}">'
                         f"{escape(each.name)}</span>" for each in subjects)
    return f"<h1>{names}</h1>"


def _facts(subjects: Sequence[Subject]) -> str:
    rows: list[tuple[str, Callable[[Subject], str]]] = [
        ("Begun", _begun), ("Base model", _base), ("Pictures", _pictures),
        ("Adapter", _about), ("State", _state), ("Steps done", _steps),
        ("Loss, moving mean", lambda s: f"{s.history.steps[-1].loss_avg:.4f}"
         if s.history.steps else ""),
        ("Loss on pictures held out", _held_out),
        ("Training time", lambda s: _clock(sum(step.sec for step in s.history.steps))),
        ("Speed", _speed), ("File", _size),
        ("Parameters", lambda s: f"{s.made['parameters']:,}" if "parameters" in s.made else ""),
        ("Memory predicted", _predicted),
        ("Memory measured", _memory), ("Device", lambda s: s.history.started.device
                                       if s.history.started else "")]
    return _table(subjects, [(escape(label), [escape(told(each)) for each in subjects])
                             for label, told in rows])


def _table(subjects: Sequence[Subject], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows of ready markup; a column a run."""
    head = "".join(f'<th class="{each.colour}">{escape(each.name)}</th>' for each in subjects)
    head = f"<tr><th></th>{head}</tr>" if len(subjects) > 1 else ""
    body = "".join(f"<tr><td>{label}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
                   for label, cells in rows if any(cells))
    return f"<table>{head}{body}</table>" if body else ""


def _begun(subject: Subject) -> str:
    at = subject.history.started_at
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else ""


def _base(subject: Subject) -> str:
    return subject.settings.model.base if subject.settings else ""


def _pictures(subject: Subject) -> str:
    """How many, and where from."""
    count = str(subject.made.get("pictures", ""))
    if subject.settings is None:
        return count
    return f"{count} in {subject.settings.dataset.folder}".removeprefix(" in ")


def _about(subject: Subject) -> str:
    if subject.settings is None:
        return ""
    network = subject.settings.network
    entry = algorithms.catalogue().get(network.algo)
    label = entry.label if entry else network.algo
    dim = f", dim {network.dim}, alpha {network.alpha:g}" if not entry or entry.has_dim else ""
    return f"{label}{dim}, {network.preset}"


def _state(subject: Subject) -> str:
    failed = subject.history.failed
    return f"failed: {failed.message}" if failed else subject.run.state()


def _steps(subject: Subject) -> str:
    started = subject.history.started
    total = started.total_steps if started else subject.made.get("steps", 0)
    return f"{subject.history.step:,} of {total:,}"


def _held_out(subject: Subject) -> str:
    looks = subject.history.looks
    return f"{looks[-1].loss:.4f}, at step {looks[-1].step:,}" if looks else ""


def _speed(subject: Subject) -> str:
    measured = subject.history.measured
    if measured and measured.steps_per_second:
        return f"{measured.steps_per_second:.3g} steps/s"
    return ""


def _size(subject: Subject) -> str:
    file = subject.run.adapter_file
    if not file.is_file():
        return ""
    size = file.stat().st_size
    return f"{size / 2**20:.2f} MiB, {size:,} bytes"


def _predicted(subject: Subject) -> str:
    """As it was shown before the run, with what earlier runs had taught."""
    measured = subject.history.measured
    if measured is None:
        return ""
    return _bytes(subject.made.get("memory", {}).get("peak", measured.predicted))


def _memory(subject: Subject) -> str:
    """With a card's context where the prediction has it."""
    history, shown = subject.history, subject.made.get("memory", {})
    if history.measured:
        return _bytes(history.measured.memory + shown.get("peak", 0) - shown.get("counted", 0))
    return _bytes(history.steps[-1].memory) if history.steps else ""


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _warnings(subjects: Sequence[Subject]) -> str:
    named = len(subjects) > 1
    told = dict.fromkeys((f"{each.name}: " if named else "") + f"{warned.text} {warned.fix}".strip()
                         for each in subjects for warned in each.history.warnings)
    listed = "".join(f'<p class="warn">{escape(text)}</p>' for text in told)
    return f"<h2>Warnings</h2>{listed}" if listed else ""


def _curves(subjects: Sequence[Subject]) -> str:
    curves = [Curve(each.name, each.colour, [(s.step, s.loss, s.loss_avg, s.lr)
                                             for s in each.history.steps],
                    [(look.step, look.loss) for look in each.history.validations])
              for each in subjects if each.history.steps]
    if not curves:
        return ""
    dashed = ", dashed: val/loss, on the pictures held out" * any(curve.looks for curve in curves)
    found = (f"<h2>Loss</h2><p class='faint'>Faint: each step, bold: its moving mean{dashed}. "
             "Below: the learning rate.</p>" + plot(curves))
    if len(curves) == 2:
        found += (f"<h2>Difference of the means</h2><p class='faint'>{escape(curves[0].name)} minus"
                  f" {escape(curves[1].name)}, at the same steps.</p>" + difference(*curves))
    return found


def _looks(subjects: Sequence[Subject]) -> str:
    """The first and the last look at what is held out, by timestep, and what changed."""
    times = sorted({t for each in subjects for look in each.history.looks for t in look.timesteps},
                   key=lambda t: (len(t), t))
    rows = []
    for each in subjects:
        whose = f'<span class="{each.colour}">{escape(each.name)}</span>, '
        losses = [[*(look.timesteps.get(t, math.nan) for t in times), look.loss]
                  for look in each.history.looks]
        lines = [(f"step {look.step:,}", [f"{loss:.4f}" for loss in found])
                 for look, found in zip(each.history.looks, losses, strict=True)]
        if len(losses) == 2:
            lines.append(("change", [f"{100 * (last / (first or math.nan) - 1):+.1f} %"
                                     for first, last in zip(*losses, strict=True)]))
        rows += [f"<tr><th>{whose * (len(subjects) > 1)}{what}</th>" + "".join(
            f"<td class='n'>{'–' if 'nan' in cell else cell}</td>" for cell in cells) + "</tr>"
                 for what, cells in lines]
    if not rows:
        return ""
    head = "".join(f"<th class='n'>{escape(each)}</th>" for each in (*times, "mean"))
    return ("<h2>Loss by timestep</h2><p class='faint'>On the pictures held out, at the first look "
            "and the last. A low timestep is nearly clean, a high one nearly noise.</p>"
            "<div class='wide'><table class='looks'><tr><th>timestep</th>"
            f"{head}</tr>{''.join(rows)}</table></div>")


def _samples(subject: Subject, named: bool) -> str:
    samples = subject.history.samples
    own = [s for s in samples if s.contestant != BASE]
    steps = sorted({s.step for s in own})
    if len(steps) > COLUMNS:  # the first, the last, and some between
        steps = [steps[round(i * (len(steps) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    at = {(s.step, s.index): s for s in own}
    base = {s.index: s for s in samples if s.contestant == BASE}
    if not samples:
        return ""
    head = "<th>base</th>" * bool(base) + "".join(
        f"<th>{f'step {step:,}' if step else 'before'}</th>" for step in steps)
    rows = []
    for index in sorted({s.index for s in samples}):
        shown = [base.get(index)] * bool(base) + [at.get((step, index)) for step in steps]
        first = next((s for s in shown if s), None)
        if first is None:
            continue
        rows.append(f'<tr><td colspan="{len(shown)}">{escape(first.prompt)} <small>seed '
                    f"{first.seed}</small></td></tr><tr>"
                    + "".join(f"<td>{_picture(subject.run, s)}</td>" for s in shown) + "</tr>")
    whose = f' of <span class="{subject.colour}">{escape(subject.name)}</span>' if named else ""
    return (f"<h2>Samples{whose}</h2><div class='wide'><table class='samples'>"
            f"<tr>{head}</tr>{''.join(rows)}</table></div>")


def _picture(run: RunFolder, sampled: Sampled | None) -> str:
    """The picture, smaller, as a data URI; a place kept empty where its file is gone."""
    if sampled is None:
        return ""
    file = (run.path / sampled.path).resolve()
    if not file.is_relative_to(run.path.resolve()):
        return ""  # an event may say anything
    try:
        with Image.open(file) as image:
            small = image.convert("RGB")
    except OSError:
        return "<small>gone</small>"
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (f'<img width="{small.width}" height="{small.height}" alt="{escape(sampled.prompt)}" '
            f'src="data:image/webp;base64,{data}">')


def _settings(subjects: Sequence[Subject]) -> str:
    """What differs from the defaults, or between the two, first; the others folded."""
    known = [each for each in subjects if each.settings is not None]
    if not known:
        return ""
    first: list[tuple[str, list[str]]] = []
    rest: list[tuple[str, list[str]]] = []
    for path, leaf in LEAVES.items():
        values = [knobs.get(each.settings, path) for each in known]
        changed = any(value != leaf.default for value in values)
        differ = len(set(map(repr, values))) > 1
        label = f"{escape(leaf.label)} <small>{escape(path)}</small>"
        row = (f"<b>{label}</b>" if differ else label, [escape(_text(value)) for value in values])
        if differ:
            first.insert(sum("<b>" in each[0] for each in first), row)
        else:
            (first if changed else rest).append(row)
    return ("<h2>Settings that are not the defaults</h2>" + _table(known, first)
            + f"<details><summary>The other {len(rest)} settings</summary>"
            + _table(known, [(label, [cell or "–" for cell in cells]) for label, cells in rest])
            + "</details>")


def _text(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return config.toml_value(value)
