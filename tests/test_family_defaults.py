"""What a family wants in place of the defaults, beside the size of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models

from lycoris import config, families, following, knobs, known, optimizers, runpresets
from lycoris.settings import Config


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_models.make(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


def test_the_text_encoder_learns_as_its_family_wants(sd15: str, tmp_path: Path) -> None:
    """At half the rate on SD 1.x, not at all on SDXL; where nobody has said otherwise."""
    sdxl = str(small_models.make(tmp_path / "sdxl", "sdxl"))
    paths = ("network.text_encoder", "optimizer.text_encoder_lr")

    def on(run: Config, base: str) -> Config:
        chosen = knobs.replace(run, {"model.base": base})
        return knobs.replace(chosen, following.moved(chosen, run.model.base))

    def found(run: Config) -> tuple[bool, float | None]:
        return tuple(knobs.get(run, path) for path in paths)

    first = on(config.load(), sd15)
    assert found(first) == (True, 5e-5)
    assert found(on(first, sdxl)) == (False, None)
    assert found(on(on(first, sdxl), sd15)) == (True, 5e-5)
    own = knobs.replace(first, {"optimizer.text_encoder_lr": 2e-5})
    assert found(on(own, sdxl)) == (False, 2e-5), "set by a person"
    assert found(on(knobs.replace(config.load(), dict(zip(paths, (False, 1e-6), strict=True))),
                    sd15)) == (False, 1e-6)


def test_families_want_what_their_presets_agree_on() -> None:
    """But for the rate, which is theirs for batches of four."""
    for kind in families.catalogue().values():
        ours = [preset for preset in runpresets.catalogue().values()
                if known.find(preset.family).family == kind.name]
        wants = {leaf.path: kind.defaults.get(leaf.path, leaf.default)
                 for leaf in config.LEAVES.values()}
        for preset in ours:
            assert preset.values["network.text_encoder"] is wants["network.text_encoder"]
            for said in (preset.values, wants) if wants["network.text_encoder"] else ():
                assert said["optimizer.text_encoder_lr"] * 2 == said["optimizer.lr"]
        assert ours and kind.defaults.keys() <= {path for each in ours for path in each.values}


def test_a_text_encoder_that_would_learn_faster_is_told(sd15: str) -> None:
    run = config.build({"model.base": sd15, "optimizer.text_encoder_lr": 5e-5,
                        "optimizer.lr": 1e-5})
    assert any("The text encoder learns faster" in each.text for each in optimizers.warnings(run))
    for values in ({"optimizer.lr": 1e-4}, {"network.text_encoder": False}):
        assert not list(optimizers.warnings(knobs.replace(run, values)))
