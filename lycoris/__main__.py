"""python -m lycoris VERB ... : everything the app can do, without a screen.

Exit codes: 0 done, 2 the user's mistake, 1 ours, 128 and the signal's number after SIGINT, SIGTERM
and SIGHUP, having saved.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve others

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import (
    choices,
    config,
    durable,
    estimate,
    events,
    hub,
    readers,
    resuming,
    runs,
    survey,
    tools,
)
from .arguments import parse
from .errors import ConfigError, LycorisError, OutOfMemory, RunError
from .follow import BEGAN, Followed, Signals, bug, failed, own_log
from .progress import Progress, Stopped
from .runs import RunFolder
from .settings import Config
from .terminal import Terminal, mebibytes

if TYPE_CHECKING:
    from .crew import Crew, Gone
    from .plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__.split("\n")[0])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels and casts, at every step
    with Terminal(options.json) as terminal, Signals() as signals:
        try:
            return VERBS[options.verb](options, terminal, signals)
        except LycorisError as error:
            terminal.error(error)
            return 2
        except Stopped:
            terminal.document({"reason": "stopped"}, "Stopped; what has come whole is kept.")
            return signals.exit_code
        except BrokenPipeError:
            return 1
        except Exception:
            sys.stderr.write("This is a bug in lycogui; please report it with these lines:\n")
            traceback.print_exc()
            return 1


def train(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from .crew import join

    crew = join()
    signals.patience = 2 if crew.size > 1 else 1
    with ExitStack() as held, crew:
        where, run = crew.meet(_opened(options, held, Progress(terminal.event, signals.asked))
                              if crew.first else None)[0]
        folder = RunFolder(where)
        ended = train_in(folder, run, terminal, signals, crew)
    if ended.path and crew.first:
        terminal.document(events.to_dict(ended), f"{ended.reason.capitalize()} at step "
                          f"{ended.step}: {folder.path / ended.path}")
    return signals.exit_code


def _opened(options: argparse.Namespace, held: ExitStack,
            progress: Progress) -> tuple[Path, Config]:
    """The folder and settings of the run that is asked for, old or new; it is locked as long as
    `held` holds. A new one's base is downloaded where it has to be."""
    target, settings = config.target(options.settings)
    if target and target.is_dir():
        folder = runs.open_run(target.resolve())
        held.enter_context(folder.locked())
        return folder.path, _resumed(folder, settings)
    wanted = config.load(target, settings)
    hub.require(wanted.model, progress)
    folder, run = _fresh(wanted)
    held.enter_context(folder.locked())
    return folder.path, run


def train_in(folder: RunFolder, run: Config, terminal: Terminal, signals: Signals,
             crew: Crew | None = None) -> events.Finished:
    """Train in a run folder, with every event in its file and on the terminal."""
    from . import devices, plan
    from .crew import ALONE

    crew = crew or ALONE
    if not crew.first:
        return _train(folder, plan.make(run), lambda event: None, signals.asked, crew)
    own_log(folder)

    def emit(event: events.Event) -> None:
        folder.append(event)
        if not (terminal.as_json and isinstance(event, events.Finished)):
            terminal.event(event)

    def asked() -> set[str]:
        wanted = folder.requests() - {"start"}
        folder.clear(wanted)
        return wanted | signals.asked()

    me = runs.Process.this()
    folder.clear_before(BEGAN)
    emit(events.Started(me.pid, me.born, "", run.train.steps))
    try:
        device = devices.choose(run.train.device)
        name = devices.look(device).name
        emit(events.Started(me.pid, me.born, f"{crew.size} x {name}" if crew.size > 1 else name,
                            run.train.steps))
        made = plan.make(run)
        for warning in made.warnings:
            emit(warning)
        return _train(folder, made, emit, asked, crew)
    except LycorisError as error:
        emit(failed(error))
        raise
    except Exception as error:
        logging.getLogger("lycoris").exception("unexpected")
        emit(bug(error))
        raise


def _train(folder: RunFolder, made: Plan, emit: Callable[[events.Event], None],
           asked: Callable[[], set[str]], crew: Crew) -> events.Finished:
    """Train; where memory runs out, in any of the processes, all go on with less if that is wanted.
    """
    from . import devices, knobs, plan, trainer
    from .crew import Gone

    while True:
        try:
            return trainer.run(made, folder.path, emit, asked, crew)
        except (OutOfMemory, Gone) as error:
            changes = _smaller(made, error, crew)
            if crew.first:
                _go_on_with(folder, changes, error.message, emit)
        devices.release()  # now that the error no longer holds what was in memory
        made = plan.make(knobs.replace(made.config, changes))


def _smaller(made: Plan, error: OutOfMemory | Gone, crew: Crew) -> dict[str, Any]:
    """The next change of settings that saves memory and leaves the result the same, agreed upon;
    raises the error where there is none, or none is wanted."""
    from . import relief

    train = made.config.train
    sharing, _ = crew.pieces(train.batch_size, train.accumulate)
    changes = relief.same_result(made.config, sharing)
    if not (changes and train.retry_smaller and error.stage == "training"):
        raise error
    crew.again(changes)
    return changes


def _go_on_with(folder: RunFolder, changes: dict[str, Any], why: str,
                emit: Callable[[events.Event], None]) -> None:
    """Say so, and write it into the run's config.toml."""
    from . import relief

    written = relief.written(changes)
    emit(events.Warned(why, "It goes on from the last checkpoint with "
                            f"{' and '.join(written)}; the result is the same."))
    durable.write_text(folder.config_file, config.dump(config.load(folder.config_file, written)))


def sample(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from . import contestants
    from . import sample as verb

    run = config.settings(options.settings)
    hub.require(run.model, Progress(terminal.event, signals.asked))
    where = Path(options.out or Path(run.output.folder) / "pictures" / _stamp())
    taker = contestants.parse(options.adapter, Path(run.output.folder))
    written = verb.run(run, taker, where, terminal.event, signals.asked)
    terminal.document({"pictures": written}, "\n".join(map(str, written)))
    return signals.exit_code


def compare(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    run = config.settings(options.settings)
    hub.require(run.model, Progress(terminal.event, signals.asked))
    where = Path(options.out or Path(run.output.folder) / "comparisons" / _stamp())
    names = options.adapter or ["base"]
    return compare_in(run, names, where, terminal, signals)


def compare_in(run: Config, names: Sequence[str], where: Path, terminal: Terminal,
               signals: Signals) -> int:
    """Compare into a folder that is followed like a run's: events, requests, log."""
    from . import compare as verb
    from . import contestants

    with Followed(where, terminal, signals) as followed:
        takers = [contestants.parse(name, Path(run.output.folder)) for name in names]
        result = verb.run(run, takers, where, followed.emit, followed.asked)
    terminal.document({"grid": result.grid, "pictures": result.pictures, "reason": result.reason},
                      f"{result.pictures} pictures: {result.grid}")
    return signals.exit_code


def caption(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from . import caption as verb
    from .data import captions, folder

    run = config.settings(options.settings)
    dataset = folder.scan(config.find(run.dataset.folder))
    if options.captioner:
        pairs = dict(text.partition("=")[::2] for text in options.option)
        made = verb.make(options.captioner, pairs)
        edits = verb.run(dataset, made, options.write, dry=options.dry_run, emit=terminal.event,
                         asked=signals.asked)
    else:
        edits = captions.by_rules(dataset.captions(), trigger=options.trigger,
                                  find=options.find, by=options.replace)
        if not options.dry_run:
            captions.apply(edits)
    done = "would change" if options.dry_run else "changed"
    lines = [f"{e.picture.name}: {e.before or '(none)'} -> {e.after}" for e in edits]
    terminal.document({"dry_run": options.dry_run, "edits": [
        {"picture": e.picture.name, "before": e.before, "after": e.after} for e in edits]},
                      "\n".join([*lines, f"{len(edits)} of {len(dataset)} captions {done}."]))
    return signals.exit_code


def cache(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from .data import store

    kept = store.of(config.settings(options.settings))
    size = kept.clear() if options.clear else kept.size()
    terminal.document({"folder": kept.folder, "files": size.files, "bytes": size.bytes,
                       "limit": kept.limit, "cleared": options.clear},
                      f"{kept.folder}: {size.files} files, {mebibytes(size.bytes)}"
                      f"{', deleted' if options.clear else ''}.")
    return 0


def calibrate(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from . import calibration

    return calibration.verb(options, terminal, signals, config.settings(options.settings))


def demo(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """The whole story: LoRA, a LoHa of the same size, and both beside the base."""
    from . import choose, families

    folder = Path(options.out or Path("runs") / f"demo-{_stamp()}")
    run = config.load(None, [f"output.folder={folder}", *options.settings])
    family = families.open_chosen(run.model)
    pair = [replace(run, network=replace(run.network, algo="lora"))]
    pair.append(choose.match(pair[0], "loha", family).run)
    for each in pair:
        made, settings = _fresh(each)
        terminal.say(f"Training {made.name}.")
        with made.locked():
            train_in(made, settings, terminal, signals)
        if signals.received:
            return signals.exit_code
    names = ["base", *(config.run_name(each) for each in pair)]
    return compare_in(run, names, folder / "comparison", terminal, signals)


def _fresh(run: Config) -> tuple[RunFolder, Config]:
    from . import plan

    named = plan.named(run)
    return plan.create(plan.make(named)), named


def _resumed(folder: RunFolder, settings: Sequence[str]) -> Config:
    """The settings of an existing run; only those that keep it the same run may change."""
    process = folder.process
    if folder.state() == "running" and process != runs.Process.this():
        raise RunError(f"The run {folder.name} is going on already, as process "
                       f"{process.pid if process else 0}.", "Stop it first, or wait for its end.")
    resuming.refuse_others(text.partition("=")[0] for text in settings)
    try:
        run = config.load(folder.config_file, settings)
    except ConfigError as error:
        folder.append(failed(error))  # whoever follows the run has no other way to know
        raise
    run = replace(run, output=replace(run.output, folder=str(folder.path.parent),
                                      name=folder.name))
    if settings:
        durable.write_text(folder.config_file, config.dump(run))
    return _with_its_preset(folder, run)


def _with_its_preset(folder: RunFolder, run: Config) -> Config:
    """With the folder's copy in place of an own preset that has changed since the run was made: the
    layers of a run stay what they are."""
    from . import presets

    copy = folder.preset_file
    if not copy.is_file() or presets.source(run.network.preset) == copy.read_text("utf-8"):
        return run
    return replace(run, network=replace(run.network, preset=str(copy)))


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


VERBS: dict[str, Callable[[argparse.Namespace, Terminal, Signals], int]] = {
    "train": train, "sample": sample, "compare": compare, "caption": caption, "dataset": survey.run,
    "cache": cache,
    "estimate": estimate.run, "advise": choices.advise, "recipe": choices.recipe,
    "presets": choices.presets,
    "calibrate": calibrate, "demo": demo, "inspect": tools.inspect, "merge": tools.merge,
    "download": tools.download,
    "extract": tools.extract, "resize": tools.resize, "convert": tools.convert,
    "report": readers.write_report, "tensorboard": readers.tensorboard}


if __name__ == "__main__":
    sys.exit(main())
