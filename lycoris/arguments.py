"""The words of the command line: verbs, options, settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
    verb("estimate", "Exact parameters and bytes of an adapter, before training.", settings)
    look = verb("inspect", "What a file, a run or the catalogues hold.")
    look.add_argument("what", help="an adapter file, a run folder, or catalogues")
    story = verb("demo", "LoRA and LoHa on the embedded model, then both compared.", settings)
    story.add_argument("--out", help="folder for the runs and the comparison")
    return parser
