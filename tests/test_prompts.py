"""Texts as CLIP text encoders read them: chunks, layers, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lycoris import config, events, families, plan, prompts, trainer
from lycoris.errors import ConfigError
from lycoris.families import Model
from lycoris.prompts import Reading

CPU = torch.device("cpu")
LONG = "a zorb on grass, " * 12


@pytest.fixture(scope="module")
def model(small_base: Path) -> Model:
    return families.open_base(small_base).load(CPU, torch.float32)


@pytest.fixture(autouse=True)
def as_before(model: Model) -> None:
    model.reading = Reading()


def _theirs(model: Model, texts: list[str]) -> torch.Tensor:
    """As the libraries' own example encodes."""
    ids = model.tokenizer(texts, padding="max_length", truncation=True,
                          max_length=model.encoders[0].length, return_tensors="pt").input_ids
    return model.text_encoder(ids).last_hidden_state


def test_one_chunk_is_the_tokenizers_own_padding(model: Model) -> None:
    texts = ["a zorb", "", LONG]
    assert torch.equal(model.encode_text(texts)["hidden"], _theirs(model, texts))


def test_a_long_caption_goes_on_in_the_next_chunk(model: Model) -> None:
    length = model.encoders[0].length
    ids = model.tokenizer(LONG, add_special_tokens=False).input_ids
    assert len(ids) > length
    rest = model.tokenizer.decode(ids[length - 2:])
    model.reading = Reading(chunks=3)
    found = model.encode_text([LONG, "a zorb"])["hidden"]
    assert found.shape[:2] == (2, 3 * length)
    assert torch.equal(found[:, :length], _theirs(model, [LONG, "a zorb"]))
    assert torch.allclose(found[0, length:2 * length], _theirs(model, [rest])[0], atol=1e-6)
    assert torch.allclose(found[1, length:2 * length], _theirs(model, [""])[0], atol=1e-6)


def test_clip_skip_reads_an_earlier_layer_through_the_last_norm(model: Model) -> None:
    plain = model.encode_text(["a zorb"])["hidden"]
    model.reading = Reading(clip_skip=2)
    skipped = model.encode_text(["a zorb"])["hidden"]
    ids = torch.tensor([prompts._padded(model.encoders[0], chunk) for chunk in
                        prompts.literal(model.encoders[0], ["a zorb"], 1)[0]])
    states = model.text_encoder(ids, output_hidden_states=True).hidden_states
    norm = model.modules["text_encoder"].final_layer_norm
    assert torch.equal(norm(states[-1]), plain)
    assert torch.equal(norm(states[-2]), skipped) and not torch.allclose(plain, skipped)


def test_gradients_reach_the_text_encoder_below_the_layer_that_is_read(model: Model) -> None:
    """With checkpointing as without, and not the layer above."""
    model.reading = Reading(clip_skip=2, chunks=2)
    layers = model.modules["text_encoder"].encoder.layers
    below, above = (layer.mlp.fc1.weight for layer in layers)
    found = []
    try:
        for checkpointing in (False, True):
            below.requires_grad_(True)
            above.requires_grad_(True)
            model.train_mode(checkpointing=checkpointing)
            model.encode_text([LONG])["hidden"].square().mean().backward()
            assert above.grad is None
            found.append(below.grad)
            below.grad = None
    finally:
        for weight in (below, above):
            weight.requires_grad_(False)
        model.text_encoder.activation_checkpointing_disable()
        model.eval_mode()
    assert found[0].abs().max() > 0 and torch.allclose(*found)


@pytest.mark.parametrize("text_encoder", ["true", "false"])
def test_a_run_on_long_captions(settings: Callable[..., config.Config], pictures: Path,
                                tmp_path: Path, text_encoder: str) -> None:
    """Words beyond the first chunk count as soon as there is a second; and clip skip 2 trains."""
    losses = {}
    for caption in ("short", "long"):
        for chunks in (1, 2):
            for number in range(1, 6):
                (pictures / f"{number}.txt").write_text(
                    LONG[:16] * 8 + ("and much more of it" if caption == "long" else ""))
            run = settings(f"dataset.caption_chunks={chunks}", "model.clip_skip=2",
                           "train.steps=2", f"network.text_encoder={text_encoder}",
                           "dataset.caption_dropout=0", "sample.every=2")
            where = tmp_path / f"{caption}{chunks}"
            heard: list = []
            where.mkdir()
            trainer.run(plan.make(run), where, heard.append, set)
            losses[caption, chunks] = [e.loss for e in heard if isinstance(e, events.Step)]
    assert losses["short", 1] == losses["long", 1]
    assert losses["short", 2] != losses["long", 2]


def test_a_layer_that_is_not_there(settings: Callable[..., config.Config]) -> None:
    with pytest.raises(ConfigError, match=r"model.clip_skip is 3.* has 2 layers"):
        plan.make(settings("model.clip_skip=3"))


def test_the_file_says_how_captions_were_read(settings: Callable[..., config.Config]) -> None:
    from lycoris import metadata

    def said(*overrides: str) -> tuple[str, str]:
        made = plan.make(settings(*overrides))
        found = metadata.describe(made.config, made.family, made.dataset,
                                  plan.facts_of(made.config, made.buckets))
        return found["ss_clip_skip"], found["ss_max_token_length"]

    assert said() == ("None", "None")
    tokens = 3 * families.open_base(config.find(settings().model.base)).max_tokens
    assert said("model.clip_skip=2", "dataset.caption_chunks=3") == ("2", str(tokens))
