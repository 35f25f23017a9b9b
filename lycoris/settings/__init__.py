"""Every setting of a run, once: typed, frozen, with its help and its bounds; a file a section."""

from __future__ import annotations

from dataclasses import dataclass, field

from .dataset import DatasetConfig
from .loss import LossConfig
from .model import ModelConfig
from .network import NetworkConfig
from .optimizer import OptimizerConfig
from .output import OutputConfig
from .sample import SampleConfig
from .train import TrainConfig

__all__ = ["Config", "DatasetConfig", "LossConfig", "ModelConfig", "NetworkConfig",
           "OptimizerConfig", "OutputConfig", "SampleConfig", "TrainConfig"]


@dataclass(frozen=True)
class Config:
    """One run. Frozen: change it with knobs.replace."""

    model: ModelConfig = field(default_factory=ModelConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
