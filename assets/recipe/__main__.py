"""`python -m assets.recipe STAGE`: one stage, or all of them one after the other."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from . import checker, dataset, diffusion, evaluate, pictures, tokenizer, vae
from .fast import default_precision
from .training import finish, finished

# What a stage leaves in the work folder besides its note; `--again` removes it.
LEFTOVERS = {"vae": ["vae.pt"], "diffusion": ["diffusion.pt", "latents.npy"]}


def make_tokenizer(options: argparse.Namespace) -> None:
    _, captions = pictures.load_pictures(options.work)
    tokenizer.make_tokenizer(captions, options.out / "tokenizer")
    finish(options.work, "tokenizer")


def train_vae(options: argparse.Namespace) -> None:
    settings = vae.VaeSettings(seed=options.seed, precision=options.precision)
    steps = options.vae_steps or settings.steps
    vae.train_vae(options.work, options.out, replace(settings, steps=steps))


def train_diffusion(options: argparse.Namespace) -> None:
    settings = diffusion.DiffusionSettings(seed=options.seed, precision=options.precision)
    steps = options.steps or settings.steps
    diffusion.train_diffusion(options.work, options.out, replace(settings, steps=steps))


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "pictures": lambda o: pictures.draw_pictures(o.work, o.pictures, o.seed, o.threads),
    "tokenizer": make_tokenizer,
    "vae": train_vae,
    "diffusion": train_diffusion,
    "checker": lambda o: checker.train_checker(o.work, o.out, seed=o.seed),
    "dataset": lambda o: dataset.write_dataset(o.datasets / "zorb"),
    "evaluate": lambda o: evaluate.evaluate(o.out, o.docs, o.prompts) and None,
}
CHEAP = ("dataset", "evaluate")  # always done when asked for


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m assets.recipe", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--work", type=Path, default=Path("runs/recipe"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-sd"), help="the model")
    parser.add_argument("--docs", type=Path, default=Path("docs/tiny-sd"), help="results")
    parser.add_argument("--datasets", type=Path, default=Path("assets/datasets"))
    parser.add_argument("--pictures", type=int, default=100_000, help="size of the training set")
    parser.add_argument("--vae-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--steps", type=int, help="of the diffusion, instead of the recipe's")
    parser.add_argument("--prompts", type=int, default=96, help="of each kind, to evaluate")
    parser.add_argument("--threads", type=int, default=2, help="part of what a seed decides")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=default_precision())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="redo a finished stage")
    return parser.parse_args(arguments)


def forget(work: Path, stage: str) -> None:
    for name in [f"{stage}.json", *LEFTOVERS.get(stage, [])]:
        (work / name).unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else [options.stage]:
        if options.again:
            forget(options.work, stage)
        if stage not in CHEAP and finished(options.work, stage):
            print(f"{stage}: finished before", flush=True)
            continue
        STAGES[stage](options)


if __name__ == "__main__":
    main()
