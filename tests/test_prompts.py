"""Texts as CLIP text encoders read them: chunks, layers, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lycoris import config, events, families, plan, prompts, tensorfile, trainer
from lycoris.embeddings import Embeddings
from lycoris.errors import ConfigError, EmbeddingError
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
    ids = model.encoders[0].tokenizer(texts, padding="max_length", truncation=True,
                          max_length=model.encoders[0].length, return_tensors="pt").input_ids
    return model.text_encoder(ids).last_hidden_state


def test_one_chunk_is_the_tokenizers_own_padding(model: Model) -> None:
    texts = ["a zorb", "", LONG]
    assert torch.equal(model.encode_text(texts)["hidden"], _theirs(model, texts))


def test_a_long_caption_goes_on_in_the_next_chunk(model: Model) -> None:
    length = model.encoders[0].length
    ids = model.encoders[0].tokenizer(LONG, add_special_tokens=False).input_ids
    assert len(ids) > length
    rest = model.encoders[0].tokenizer.decode(ids[length - 2:])
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


def test_a_prompt_without_signs_is_a_caption(model: Model) -> None:
    for text in ("a zorb on grass", "", "A ZORB,  it's 42"):
        assert torch.equal(model.encode_prompts([text])["hidden"],
                           model.encode_text([text])["hidden"])


def test_captions_are_taken_literally(model: Model) -> None:
    found = model.encode_text(["a (zorb:1.5) BREAK"])["hidden"]
    assert torch.equal(found, _theirs(model, ["a (zorb:1.5) BREAK"]))


def test_weights_multiply_the_states_and_the_mean_is_restored(model: Model) -> None:
    plain = _theirs(model, ["a zorb on"])
    ids = model.encoders[0].tokenizer("a zorb on", add_special_tokens=False).input_ids
    heavy = len(model.encoders[0].tokenizer("a", add_special_tokens=False).input_ids)
    weights = torch.ones(plain.shape[1])
    weights[1 + heavy:1 + len(ids) - 1] = 1.4
    expected = plain * weights[:, None]
    expected = expected * (plain.mean() / expected.mean())
    found = model.encode_prompts(["a (zorb:1.4) on"])["hidden"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.mean(), plain.mean(), atol=1e-6)
    assert not torch.allclose(found, plain)


def test_a_prompt_depends_on_no_other(model: Model) -> None:
    alone = model.encode_prompts(["a (zorb:1.4)"])["hidden"]
    both = model.encode_prompts(["on grass", "a (zorb:1.4)"])["hidden"]
    assert torch.allclose(both[1:], alone, atol=1e-6)
    assert torch.allclose(both[:1], model.encode_text(["on grass"])["hidden"], atol=1e-6)


def test_prompts_take_as_many_chunks_as_the_longest_needs(model: Model) -> None:
    length = model.encoders[0].length
    assert model.encode_prompts(["a zorb", LONG])["hidden"].shape[1] == 3 * length
    model.reading = Reading(chunks=4)
    assert model.encode_prompts(["a zorb", ""])["hidden"].shape[1] == length
    broken = model.encode_prompts(["a zorb BREAK on grass"])["hidden"]
    assert torch.allclose(broken, torch.cat([_theirs(model, ["a zorb"]),
                                             _theirs(model, ["on grass"])], 1), atol=1e-6)


@pytest.fixture
def shelf(tmp_path: Path) -> Embeddings:
    folder = tmp_path / "embeddings"
    (folder / "deeper").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)

    def save(name: str, **tensors: tuple[int, ...]) -> None:
        tensorfile.write(folder / f"{name}.safetensors", {
            key: torch.randn(shape, generator=generator) for key, shape in tensors.items()}, {})

    save("Zorb-Style", emb_params=(3, 16))
    save("deeper/zorb", whatever=(16,))
    save("wide", emb_params=(3, 32))
    save("xl", clip_l=(2, 16), clip_g=(2, 40))
    save("many", emb_params=(31, 16))
    (folder / "old.pt").write_bytes(b"\x80")
    (folder / "readme.txt").write_text("none")
    return Embeddings(folder)


def test_an_embedding_stands_where_its_name_is(model: Model, shelf: Embeddings) -> None:
    """Its vectors are what the encoder's first layer sees there; without the folder they are not.
    """
    model.reading = Reading(embeddings=shelf)
    seen: list[torch.Tensor] = []
    table = model.modules["text_encoder"].embeddings
    handle = table.token_embedding.register_forward_hook(lambda m, a, found: None)
    watch = table.register_forward_hook(lambda m, a, found: seen.append(found))
    try:
        model.encode_prompts(["a ZORB-style, zorb"])
    finally:
        handle.remove()
        watch.remove()
    stored = tensorfile.read(shelf.folder / "Zorb-Style.safetensors", EmbeddingError)[0]
    other = tensorfile.read(shelf.folder / "deeper" / "zorb.safetensors", EmbeddingError)[0]
    vectors = seen[0][0] - table.position_embedding.weight
    start = 1 + len(model.encoders[0].tokenizer("a", add_special_tokens=False).input_ids)
    assert torch.allclose(vectors[start:start + 3], stored["emb_params"], atol=1e-6)
    comma = len(model.encoders[0].tokenizer(",", add_special_tokens=False).input_ids)
    assert torch.allclose(vectors[start + 3 + comma], other["whatever"], atol=1e-6)
    assert torch.equal(model.encode_text(["a zorb"])["hidden"], _theirs(model, ["a zorb"]))


def test_an_embedding_stays_in_one_chunk(model: Model, shelf: Embeddings) -> None:
    model.reading = Reading(embeddings=shelf)
    encoder = model.encoders[0]
    words = "a " * (encoder.room - 1)
    chunks = prompts.read([encoder], [f"{words}Zorb-Style a"], shelf)[0][0]
    assert [len(chunk) for chunk in chunks] == [encoder.room - 1, 4]


@pytest.mark.parametrize(("name", "words"), [
    ("wide", "holds emb_params 3x32; this base needs emb_params of width 16"),
    ("xl", r"holds clip_g 2x40, clip_l 2x16; this base needs emb_params"),
    ("many", "has 31 vectors, a chunk of the prompt 30 places"),
    ("old", "is a pickle")])
def test_embeddings_that_do_not_fit(model: Model, shelf: Embeddings, name: str,
                                    words: str) -> None:
    model.reading = Reading(embeddings=shelf)
    model.check_prompts(["a zorb", "wider oldest"])
    with pytest.raises(EmbeddingError, match=words):
        model.check_prompts(["a zorb", f"a picture of {name}, red"])


def test_an_embedding_that_does_not_fit_ends_a_run_before_it_begins(
        settings: Callable[..., config.Config], shelf: Embeddings, tmp_path: Path) -> None:
    made = plan.make(settings(f"sample.embeddings={shelf.folder}", "sample.negative=wide"))
    heard: list = []
    with pytest.raises(EmbeddingError, match=r"wide\.safetensors"):
        trainer.run(made, tmp_path, heard.append, set)
    assert not any(isinstance(event, events.Step) for event in heard)
    with pytest.raises(EmbeddingError, match="no folder of embeddings"):
        Embeddings(tmp_path / "nowhere")


def test_two_encoders_read_their_own_vectors(model: Model, shelf: Embeddings) -> None:
    """As SDXL's do: the same places, each its file's key; pooled where there is a projection."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    first = model.encoders[0]
    settings = model.text_encoder.config.to_dict() | {
        "hidden_size": 40, "intermediate_size": 40, "projection_dim": 12}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**settings)).eval()
    pair = (replace(first, key="clip_l"),
            replace(first, key="clip_g", module=second))
    read = prompts.read(pair, ["an (xl:1.2) BREAK on grass", "grass"], shelf)
    assert [[len(chunk) for chunk in text] for text in read[0]] == [
        [len(chunk) for chunk in text] for text in read[1]]
    stored = tensorfile.read(shelf.folder / "xl.safetensors", EmbeddingError)[0]
    for texts, key in zip(read, ("clip_l", "clip_g"), strict=True):
        placed = [token.vector for token in texts[0][0] if token.vector is not None]
        assert torch.equal(torch.stack(placed), stored[key])
    found = prompts.encode(pair[1], read[1], 2, normed=False)
    assert found.hidden.shape == (2, 2 * first.length, 40) and found.pooled.shape == (2, 12)
    alone = prompts.encode(pair[1], prompts.read(pair, ["grass"], None)[1], 2, normed=False)
    assert torch.allclose(found.pooled[1:], alone.pooled, atol=1e-6)
    assert torch.allclose(found.hidden[1:, :first.length], alone.hidden, atol=1e-6)
