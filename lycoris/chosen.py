"""What is chosen beside a base model's files, over what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Chosen:
    """ "auto" leaves it to the files."""

    prediction: str = "auto"  # or epsilon, v_prediction
    zero_snr: str = "auto"  # or on, off
    vae: Path | None = None  # another autoencoder: a folder or a file
    tokenizer: Path | None = None  # the tokenizer's folder, for a base of one file
    vae_dtype: str = "auto"  # or fp32, half

    def schedule(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """A scheduler's config as diffusers takes it."""
        said = dict(found)
        if self.prediction != "auto":
            said["prediction_type"] = self.prediction
        if self.zero_snr != "auto":
            said["rescale_betas_zero_snr"] = self.zero_snr == "on"
        if said.get("rescale_betas_zero_snr"):
            if said.get("prediction_type", "epsilon") == "epsilon":
                raise ConfigError({"model.zero_snr": (
                    "model.zero_snr needs a model that predicts v: of pure noise there is nothing "
                    "to learn for one that predicts the noise. Set model.zero_snr to off, or "
                    "model.prediction_type to v_prediction if that is what it is.")})
            said["timestep_spacing"] = "trailing"  # or the first step is not of pure noise
        return said

    def half_vae(self, config: Mapping[str, Any]) -> bool:
        """Is the autoencoder of that config held as the rest of the base? In half precision SD's
        and SDXL's overflow; one that does not says so."""
        if self.vae_dtype != "auto":
            return self.vae_dtype == "half"
        return config.get("force_upcast", True) is False


AS_IT_IS = Chosen()
