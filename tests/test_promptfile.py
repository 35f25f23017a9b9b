"""Prompt files: what they say, and what is said of a line that says nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lycoris import plan, promptfile, samplers, sampling
from lycoris.errors import ConfigError
from lycoris.promptfile import Prompt
from lycoris.settings import Config, SampleConfig

Settings = Callable[..., Config]


def read(file: Path, text: str, **more: object) -> list[Prompt]:
    file.write_text(text, "utf-8")
    return list(promptfile.read(SampleConfig(prompts=(), prompts_file=str(file), **more)))


def test_a_text_file_gives_each_prompt_its_own_settings(tmp_path: Path) -> None:
    found = read(tmp_path / "p.txt", "\ufeff# a heading\n\na zorb, 2 eyes --w 512 --h 768 --d 7 "
                 "--s 30 --l 5.5 --n blurry, dark --ss euler_a\n  a well-known zorb -- no\n")
    assert found[0] == Prompt("a zorb, 2 eyes", 512, 768, 7, 30, 5.5, "blurry, dark", "Euler a",
                              "line 3 of p.txt")
    assert found[1] == Prompt("a well-known zorb -- no", place="line 4 of p.txt")
    assert len(found) == 2


def test_a_prompt_may_hold_dashes(tmp_path: Path) -> None:
    assert read(tmp_path / "p.txt", "a well-known zorb - on grass--ish\n")[0].text == (
        "a well-known zorb - on grass--ish")


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = ('[prompt]\nwidth = 64\nsample_steps = 9\n[[prompt.subset]]\nprompt = "a zorb"\n'
            'seed = 3\n[[prompt.subset]]\nprompt = "a cube --w 32"\nscale = 4\n')
    listed = [{"prompt": "a zorb", "width": 64, "sample_steps": 9, "seed": 3, "enum": 0},
              {"prompt": "a cube --w 32", "width": 64, "sample_steps": 9, "scale": 4}]
    one = read(tmp_path / "p.toml", toml)
    two = read(tmp_path / "p.json", json.dumps(listed))
    bare = [[(p.text, p.seed, p.own) for p in found] for found in (one, two)]
    assert bare[0] == bare[1] == [("a zorb", 3, {"width": 64, "steps": 9}),
                                  ("a cube", None, {"width": 32, "steps": 9, "guidance": 4.0})]


def test_what_belongs_to_other_models_is_told_and_left(tmp_path: Path) -> None:
    found = read(tmp_path / "p.txt", "a --g 3.5 --l 4 --fs 3.0\nb --g 2 --cn x y.png --ctr .5\nc")
    assert [(p.text, p.own) for p in found] == [("a", {"guidance": 4.0}), ("b", {}), ("c", {})]
    sample = SampleConfig(prompts=("d --rcfg 1",), prompts_file=str(tmp_path / "p.txt"))
    told = [note.text for note in promptfile.notes(sample)]
    assert told[0].startswith("Prompt 1: --rcfg is how far Lumina"), told
    assert told[1].startswith("Line 1 of p.txt and 1 more: --g is the guidance that Flux"), told
    assert len(told) == 5 and not promptfile.notes(SampleConfig(prompts=("a --l 4",)))
    one = read(tmp_path / "p.json", '[{"prompt": "a --g 1", "guidance_scale": 3, "flow_shift": 3}]')
    assert len(one[0].unused) == 2 and not one[0].own


@pytest.mark.parametrize(("theirs", "ours"), [
    ("ddim", "DDIM"), ("pndm", "PNDM"), ("euler", "Euler"), ("euler_a", "Euler a"),
    ("heun", "Heun"), ("dpm_2", "DPM2"), ("dpm_2_a", "DPM2 a"), ("dpmsolver", "DPM++ 2M"),
    ("dpmsolver++", "DPM++ 2M"), ("dpmsingle", "DPM++ 2S"), ("k_euler", "Euler"),
    ("k_euler_a", "Euler a"), ("k_dpm_2", "DPM2"), ("K_DPM_2_A", "DPM2 a"), ("UniPC", "UniPC")])
def test_samplers_by_their_names_there(tmp_path: Path, theirs: str, ours: str) -> None:
    assert read(tmp_path / "p.txt", f"a --ss {theirs}")[0].sampler == ours


@pytest.mark.parametrize("name", ["lms", "k_lms"])
def test_a_sampler_that_lacks_its_package_is_told_and_left(
        tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.txt"
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: name)
    assert read(file, f"a --ss {name}")[0].sampler == "LMS"
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    assert read(file, f"a --ss {name} --w 64")[0].own == {"width": 64}
    told = promptfile.notes(SampleConfig(prompts_file=str(file)))
    assert "--ss is not used. LMS needs the package scipy." in told[0].text


def test_the_plan_tells_of_it(settings: Settings) -> None:
    made = plan.make(settings('sample.prompts=["a --g 3.5"]'))
    assert any("--g is the guidance" in warning.text for warning in made.warnings)


@pytest.mark.parametrize(("name", "text", "said"), [
    ("p.txt", "fine\na zorb --w wide\n", "line 2 of p.txt: --w expects a number"),
    ("p.txt", "a zorb --s 0", "line 1 of p.txt: --s is 0; the least is 1"),
    ("p.txt", "a zorb --ar 16:9", "line 1 of p.txt: there is no option --ar"),
    ("p.txt", "a zorb --ss warp", "there is no sampler 'warp'; choose one of DPM"),
    ("p.txt", "a zorb --w", "line 1 of p.txt: --w is empty"),
    ("p.json", '[{"prompt": "a", "hight": 3}]', "entry 1 of p.json: there is no key hight. Did"),
    ("p.json", '[{"prompt": "a"', "not valid JSON"), ("p.json", '{"prompt": "a"}', "no list"),
    ("p.json", "[3]", "entry 1 of p.json: expects a table"),
    ("p.toml", "[prompt", "not valid TOML"), ("p.toml", "prompt = 3", "no table"),
    ("p.md", "a zorb", "none of .txt"),
])
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: str,
                                             said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name, text)
    assert said in caught.value.problems["sample.prompts_file"]


def test_a_missing_file_and_a_bad_prompt_are_told_together(tmp_path: Path) -> None:
    sample = SampleConfig(prompts=("fine", "a zorb --q 3"), prompts_file=str(tmp_path / "no.txt"))
    with pytest.raises(ConfigError) as caught:
        promptfile.read(sample)
    assert "prompt 2: there is no option --q" in caught.value.problems["sample.prompts"]
    assert "no.txt" in caught.value.problems["sample.prompts_file"]


def test_jobs_take_seeds_and_settings(settings: Settings) -> None:
    run = settings('sample.prompts=["a", "b --d 9 --w 32"]', "sample.seeds=1,2")
    assert [(j.prompt, j.seed) for j in sampling.jobs_of(run.sample)] == [
        ("a", 1), ("a", 2), ("b", 9)]
    shared = sampling.settings_of(run.sample, 16, 4)
    assert [j.how(shared).width for j in sampling.while_training(run.sample)] == [16, 32]
    assert promptfile.plain(run.sample).prompts == ("a", "b")


def test_sides_that_the_model_cannot_halve_are_refused_before_training(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="prompt 1: --w is 33; this model needs multiples of 4"):
        plan.make(settings('sample.prompts=["a --w 33"]'))
