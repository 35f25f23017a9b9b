"""BLIP (Li et al. 2022, arXiv 2201.12086): one sentence a picture, from a model folder on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image

from .. import config
from ..errors import ModelFileError
from ..knobs import Knob
from . import Captioner

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # older, newer folders


@dataclass(frozen=True)
class BlipOptions:
    model: Annotated[str, Knob("Folder of a BLIP captioning model (config.json, model.safetensors, "
                               "tokenizer files).", file=True)] = ""
    prompt: Annotated[str, Knob("Words the caption begins with.")] = ""
    max_tokens: Annotated[int, Knob("Longest caption.", 1, 200, unit="tokens")] = 40


class Blip(Captioner):
    name = "blip"
    label = "BLIP"
    order = 2
    Options = BlipOptions

    def check(self) -> str:
        folder = config.find(self.options.model)
        if not self.options.model:
            return ("BLIP needs its model: give the folder of a BLIP captioning model, for example "
                    "a download of Salesforce/blip-image-captioning-base.")
        missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]
        if not any((folder / f).is_file() for f in PROCESSOR_FILES):
            missing.append(PROCESSOR_FILES[0])
        if missing:
            return f"{folder} is no BLIP model in safetensors form: it lacks {', '.join(missing)}."
        return ""

    def load(self, device: torch.device) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        folder = str(config.find(self.options.model))
        try:
            self.processor: Any = transformers.BlipProcessor.from_pretrained(
                folder, local_files_only=True)
            model = transformers.BlipForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"The BLIP model in {folder} cannot be loaded: {error}.",
                                 "Take another copy of it.") from error
        self.device = device
        self.model = model.to(device).eval()

    @torch.no_grad()
    def caption(self, image: Image.Image | None, path: Path) -> str:
        text = {"text": self.options.prompt} if self.options.prompt else {}
        inputs = self.processor(images=image, return_tensors="pt", **text).to(self.device)
        tokens = self.model.generate(**inputs, max_new_tokens=self.options.max_tokens)
        return self.processor.decode(tokens[0], skip_special_tokens=True).strip()
