"""The peers' own process: runs lycoris-lora and PEFT on the jobs of a folder.

    python worker.py FOLDER        with PYTHONPATH = the folder the peers are installed in

FOLDER/jobs.json is a list of jobs, each {"do": one of JOBS, ...its arguments}. What the layers give
under the adapter goes to FOLDER/answers.safetensors as <job>/<multiplier>/<layer>, what went wrong
to FOLDER/answers.json. lycoris-lora's package is called lycoris like ours, so ours must be out of
sight here.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import specimens
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Outputs = dict[str, Tensor]  # {"<multiplier>/<layer>": output}


def attached(network: Any, root: nn.Module, layers: Sequence[str],
             multipliers: Sequence[float]) -> Outputs:
    """lycoris-lora's forward, attached: its merge scales LoHa and LoKr twice."""
    found = {}
    network.eval()
    for multiplier in multipliers:
        network.set_multiplier(multiplier)
        for name, value in specimens.outputs(root, layers).items():
            found[f"{multiplier}/{name}"] = value
    return found


def read_lycoris(file: str, layers: Sequence[str], multipliers: Sequence[float]) -> Outputs:
    """A file by lycoris-lora's own loader."""
    from lycoris import create_lycoris_from_weights

    root = specimens.model(layers)
    network, _ = create_lycoris_from_weights(1.0, file, root)
    found = {lora.lora_name for lora in network.loras}
    wanted = {lycoris_name(name) for name in layers}
    assert found == wanted, f"not loaded: {sorted(wanted - found)}"
    network.apply_to()
    return attached(network, root, layers, multipliers)


def build_lycoris(file: str, layers: Sequence[str], multipliers: Sequence[float],
                  settings: Mapping[str, Any]) -> Outputs:
    """A file into lycoris-lora's modules as they are made for training, where its loader fails."""
    root = specimens.model(layers)
    network = lycoris_network(root, settings)
    network.apply_to()
    state = load_file(file)
    for lora in network.loras:
        start = f"{lora.lora_name}."
        own = {key.removeprefix(start): t for key, t in state.items() if key.startswith(start)}
        known = {name for name, _ in (*lora.named_parameters(), *lora.named_buffers())}
        if "lambda_layer" in own:  # T-LoRA makes its start anew, and knows no schedule
            own.pop("rank_schedule")
            known -= {"base_q", "base_p", "base_lambda"}
        known -= {"scalar", "dtype_tensor"}
        assert known == set(own), f"{lora.lora_name}: {sorted(known ^ set(own))}"
        lora.load_state_dict(own, strict=False)
        if "alpha" in own:  # the constructor's own scale is from its alpha
            assert torch.equal(lora.alpha.float(), own["alpha"].float())
    return attached(network, root, layers, multipliers)


def write_lycoris(file: str, layers: Sequence[str], multipliers: Sequence[float],
                  settings: Mapping[str, Any], seed: int, reload: bool = False,
                  dtype: str = "") -> Outputs:
    """lycoris-lora's own file of a network with random weights, and its forward; with `reload`
    that of its loader, where what it computes while training is not what it writes down."""
    root = specimens.model(layers)
    network = lycoris_network(root, settings)
    network.apply_to()
    specimens.stir(network.parameters(), seed)
    network.save_weights(file, getattr(torch, dtype) if dtype else None, {})
    if not reload and not dtype:
        return attached(network, root, layers, multipliers)
    state = load_file(file)
    for name in layers:  # DyLoRA writes a convolution's up as a matrix, which its loader refuses
        up, down = (f"{lycoris_name(name)}.lora_{end}.weight" for end in ("up", "down"))
        if up in state and state[up].ndim < state[down].ndim:
            state[up] = state[up].reshape(*state[up].shape, *[1] * (state[down].ndim - 2))
    again = f"{file}.again.safetensors"
    save_file(state, again)
    return read_lycoris(again, layers, multipliers)


def lycoris_network(root: nn.Module, settings: Mapping[str, Any]) -> Any:
    """The network over all layers; made directly, since create_lycoris drops some options."""
    from lycoris import LycorisNetwork

    return LycorisNetwork(root, **settings)


def lycoris_name(layer: str) -> str:
    return f"lycoris_{layer.replace('.', '_')}"


def write_peft(folder: str, layers: Sequence[str], kind: str, settings: Mapping[str, Any],
               seed: int) -> Outputs:
    """PEFT's own folder of an adapter with random weights, and its forward."""
    import peft

    root = specimens.model(layers)
    wrapped = peft.get_peft_model(root, getattr(peft, kind)(target_modules=list(layers),
                                                            **settings)).eval()
    specimens.stir([p for p in wrapped.parameters() if p.requires_grad], seed, 0.3)
    wrapped.save_pretrained(folder)
    return {f"1.0/{name}": value for name, value in specimens.outputs(root, layers).items()}


def read_peft(folder: str, layers: Sequence[str]) -> Outputs:
    """A folder by PEFT's own loader."""
    import peft

    root = specimens.model(layers)
    peft.PeftModel.from_pretrained(root, folder).eval()
    return {f"1.0/{name}": value for name, value in specimens.outputs(root, layers).items()}


def read_model(base: str, file: str) -> Outputs:
    """Our file of a Stable Diffusion model by lycoris-lora's loader, kohya's names and all."""
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    unet, text_encoder = parts(base)
    holder = nn.Module()  # transformers 5 has no text_model level, which names in files keep
    holder.text_model = text_encoder
    count = 0
    for prefix, module in (("lora_unet", unet), ("lora_te", holder)):
        LycorisNetwork.apply_preset({"lora_prefix": prefix})
        network, _ = create_lycoris_from_weights(1.0, file, module)
        network.apply_to()
        network.eval()
        count += len(network.loras)
    LycorisNetwork.apply_preset({"lora_prefix": "lycoris"})
    assert count == len({key.partition(".")[0] for key in load_file(file)}), count
    return {f"1.0/{name}": t for name, t in specimens.painted(unet, text_encoder).items()}


def write_model(base: str, file: str, settings: Mapping[str, Any], seed: int) -> Outputs:
    """A file as trainers make it with lycoris.kohya, and the model's outputs under it."""
    from lycoris.kohya import create_network

    unet, text_encoder = parts(base)
    settings = {"network_dim": 4, "network_alpha": 2, "preset": "attn-mlp", **settings}
    network = create_network(1.0, vae=None, text_encoder=text_encoder, unet=unet,
                             warn_on_unmatched=False, **settings)
    network.apply_to(text_encoder, unet, True, True)
    specimens.stir(network.parameters(), seed)
    network.eval()
    network.save_weights(file, None, {})
    return {f"1.0/{name}": t for name, t in specimens.painted(unet, text_encoder).items()}


def write_sizes(base: str, file: str, settings: Mapping[str, Any]) -> Outputs:
    """What a file of lycoris.kohya's holds and weighs, for networks of any kind: layers, trained
    numbers, tensors, bytes in fp16 without metadata."""
    from lycoris.kohya import create_network

    unet, text_encoder = parts(base)
    whole = nn.Module()
    whole.text_model = text_encoder  # transformers 5 dropped that level, files keep it
    network = create_network(1.0, vae=None, text_encoder=whole, unet=unet,
                             warn_on_unmatched=False, **settings)
    network.apply_to(whole, unet, True, True)
    network.save_weights(file, torch.float16, None)
    found = load_file(file)
    save_file(found, file)  # without the metadata that it adds
    loras = [*network.text_encoder_loras, *network.unet_loras]
    trained = sum(p.numel() for lora in loras for p in lora.parameters())
    return {"1.0/sizes": torch.tensor([len(loras), trained, len(found),
                                       Path(file).stat().st_size])}


def parts(base: str) -> tuple[nn.Module, nn.Module]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    return tuple(kind.from_pretrained(base, subfolder=name, local_files_only=True).float().eval()
                 for kind, name in ((UNet2DConditionModel, "unet"), (CLIPTextModel,
                                                                     "text_encoder")))


def read_peft_model(base: str, folder: str) -> Outputs:
    """A folder of each part of a Stable Diffusion model by PEFT's own loader."""
    import peft

    made = [peft.PeftModel.from_pretrained(part, str(Path(folder) / name)).eval()
            for part, name in zip(parts(base), ("unet", "text_encoder"), strict=True)]
    return {f"1.0/{name}": t for name, t in specimens.painted(*made).items()}


def paint(base: str, file: str, prompt: str, seed: int, steps: int, guidance: float,
          side: int) -> Outputs:
    """A picture (3, h, w) in 0..255 by diffusers' own pipeline, the file loaded by it."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None,
                                                   local_files_only=True).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(Path.cwd()), weight_name=file)
    done = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, height=side,
                width=side, generator=torch.Generator().manual_seed(seed), output_type="pt")
    return {"1.0/picture": done.images[0] * 255}


JOBS: dict[str, Callable[..., Outputs]] = {
    job.__name__: job for job in (read_lycoris, build_lycoris, write_lycoris, write_peft,
                                  read_peft, read_model, write_model, write_sizes,
                                  read_peft_model, paint)}


def main(folder: Path) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    answers: Outputs = {}
    problems: dict[str, str] = {}
    for name, job in json.loads((folder / "jobs.json").read_text("utf-8")).items():
        try:
            found = JOBS[job.pop("do")](**job)
        except Exception:  # whatever a peer raises is the answer to that job
            problems[name] = traceback.format_exc()
        else:
            answers |= {f"{name}/{key}": value.contiguous() for key, value in found.items()}
    save_file(answers, folder / "answers.safetensors")
    (folder / "answers.json").write_text(json.dumps(problems), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
