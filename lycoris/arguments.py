"""The words of the command line: verbs, options, settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """As argparse does, but settings may stand before, between and after the options."""
    parser = _parser(description)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "settings") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings = [*options.settings, *rest]
    return options


def _parser(description: str) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true",
                        help="JSON on standard output and nothing else")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("settings", nargs="*", metavar="run.toml | path=value",
                          help="a settings file or a run folder, then settings, "
                               "e.g. network.algo=loha network.dim=4")
    parser = argparse.ArgumentParser(prog="python -m lycoris", description=description)
    parser.add_argument("--version", action="version", version=f"lycogui {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[common, *parents])

    verb("train", "Train an adapter, or go on with a run folder.", settings)
    one = verb("sample", "Paint prompts with the base or one adapter.", settings)
    one.add_argument("--adapter", default="base", help="a file, a run, or base; :0.8 for a weight")
    one.add_argument("--out", help="folder for the pictures")
    many = verb("compare", "Paint the same prompts and seeds with several.", settings)
    many.add_argument("--adapter", action="append", help="a contestant; give it several times")
    many.add_argument("--out", help="folder for the pictures and the grid")
    write = verb("caption", "Write captions for a folder of pictures.", settings)
    write.add_argument("--trigger", default="", help="word put in front of every caption")
    write.add_argument("--find", default="", help="text to replace in every caption")
    write.add_argument("--replace", default="", help="what it is replaced by")
    write.add_argument("--captioner", help="file-name or blip")
    write.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                       help="an option of the captioner")
    write.add_argument("--write", choices=("missing", "append", "replace"), default="missing")
    write.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    verb("dataset", "What is in a folder of pictures, and what is wrong with it.", settings)
    kept = verb("cache", "How much is kept of encoded pictures and captions, and where.", settings)
    kept.add_argument("--clear", action="store_true", help="delete it")
    count = verb("estimate", "Exact parameters and bytes of an adapter, before training; or table, "
                 "the guideline's sizes beside ours.", settings)
    count.add_argument("--batch", metavar="FILE", help="answer a line of JSON, {path: value}, with "
                       "a line; - for standard input")
    _choices(verb, count, settings)
    _tools(verb)
    _download(verb)
    speed = verb("calibrate", "A few real steps on this machine: how long will the run take?",
                 settings)
    speed.add_argument("--follow", help="folder for events.jsonl and result.json, to be followed "
                                        "by others")
    told = verb("report", "One run, or two, as one HTML file: settings, curves, samples, size, "
                "time, memory.")
    told.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; two are compared")
    told.add_argument("--out", help="the file; default: report.html in the first run's folder")
    board = verb("tensorboard", "The curves and samples of runs as files that TensorBoard reads.")
    board.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    board.add_argument("--out", required=True, help="the log folder; each run gets one in it")
    story = verb("demo", "LoRA and LoHa on the embedded model, then both compared.", settings)
    story.add_argument("--out", help="folder for the runs and the comparison")
    return parser


def _choices(verb: Callable[..., argparse.ArgumentParser], count: argparse.ArgumentParser,
             settings: argparse.ArgumentParser) -> None:
    """What the estimate says of choices, and the verbs for them."""
    form = _options(("--as", "toml (what is not a default), whole, command or kohya",
                     {"dest": "form", "metavar": "FORM"}))
    for name, text, more in (
            ("--match", "another algorithm at the size of this one", {"metavar": "ALGO"}),
            ("--budget", "every algorithm's largest file of at most so much, e.g. 40MiB",
             {"metavar": "SIZE"}),
            ("--curves", "how size grows with dim", {"action": "store_true"}),
            ("--as", "the settings as toml (what is not a default), whole, command or kohya",
             {"dest": "form", "metavar": "FORM"})):
        count.add_argument(name, help=text, **more)
    goal = _options(("goal", "faithful, flexible, diverse, small, fast, learns-too-little or "
                     "learns-too-much", {}))
    verb("advise", "What to change for a goal, and why.", goal, settings)
    ready = _options(("--diff", "only what it changes, beside what these settings have now",
                      {"action": "store_true"}))
    verb("presets", "The presets of whole runs; with a name, what one says.", ready, settings)
    said = verb("recipe", "The settings in a configuration of ours, of kohya's, or in an adapter "
                "file.", form)
    said.add_argument("source", help="a file, or - for standard input")


def _tools(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The verbs for adapter files."""
    common = _options(
        ("--base", "the base model's folder", {}),
        ("--follow", "folder for events.jsonl and result.json, to be followed by others", {}))
    out = _options(
        ("--out", "what is written", {"required": True}),
        ("--dtype", "keep, fp16, bf16 or fp32", {}),
        ("--overwrite", "replace the file if it exists", {"action": "store_true"}))
    ranks = _options(
        ("--rule", "dim, sv_ratio, sv_fro, sv_cumulative or threshold", {}),
        ("--dim", "the rank, or with another rule than dim the most", {"type": int}),
        ("--value", "the rule's own number", {"type": float}),
        ("--conv-dim", "--dim of convolutions larger than 1x1", {"type": int}),
        ("--conv-value", "--value of convolutions larger than 1x1", {"type": float}))
    keys = _options(("--dialect", "keep, kohya, lycoris, diffusers, "
                      "onetrainer or ai-toolkit; convert also peft", {}))

    look = verb("inspect", "What a file, a run or the catalogues hold.", common)
    look.add_argument("what", help="an adapter file, a run folder, or catalogues")
    small = verb("resize", "Make a smaller LoRA of any adapter.", common, out, ranks)
    small.add_argument("adapter", help="a run or a file; --rule may also be first (DyLoRA)")
    other = verb("convert", "Write an adapter in other keys or as another algorithm.",
                 common, out, ranks, keys)
    other.add_argument("adapter", help="a run or a file; --rule may also be lossless")
    other.add_argument("--algo", help="keep, lora or full")
    both = verb("merge", "Merge adapters into a base model or into each other.",
                common, out, ranks, keys)
    both.add_argument("adapters", nargs="+", metavar="ADAPTER[:WEIGHT]", help="a run or a file")
    both.add_argument("--into", help="model, exact, full or lora; default: as --out ends")
    both.add_argument("--block", action="append", default=[], metavar="[N:]PATTERN=FACTOR",
                      help="weight of the layers that fit, of all or of the Nth adapter")
    both.add_argument("--no-vae", action="store_true",
                      help="leave the autoencoder out of a model of one file")
    take = verb("extract", "What a fine-tuned model has more than its base, as an adapter.",
                common, out, ranks)
    take.add_argument("--tuned", required=True, help="the fine-tuned model's folder")
    take.add_argument("--algo", help="lora, lokr or full")
    take.add_argument("--factor", type=int, help="LoKr's; -1 for the most even split")
    take.add_argument("--sparsity", type=float,
                      help="keep so little of what the LoRA leaves, e.g. 0.98")
    take.add_argument("--preset", help="take these layers only")
    take.add_argument("--min-diff", type=float, help="leave out layers that differ by less")


def _download(verb: Callable[..., argparse.ArgumentParser]) -> None:
    bring = verb("download", "Bring a base model that is named on Hugging Face into its cache; of "
                 "openai/clip-vit-large-patch14, the tokenizer for models of one file.")
    bring.add_argument("name", help="owner/name")
    bring.add_argument("--whole", action="store_true",
                       help="weights in whole precision where there are both; else in half")
    bring.add_argument("--follow", help="folder for events.jsonl and result.json, to be followed "
                                        "by others")


def _options(*described: tuple[str, str, dict[str, Any]]) -> argparse.ArgumentParser:
    """Options that several verbs have."""
    parent = argparse.ArgumentParser(add_help=False)
    for name, text, more in described:
        parent.add_argument(name, help=text, **more)
    return parent
