"""ONE schema for every setting (its sections: `tmca_core.settings`), in TOML files, `--set a.b=c` and Flower's run-config alike."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from tmca_core.dotted import Scalar, flatten, nearest, nest, scalar
from tmca_core.errors import ConfigError
from tmca_core.settings import AugmentationSettings as AugmentationSettings
from tmca_core.settings import CentralSettings as CentralSettings
from tmca_core.settings import DataSettings as DataSettings
from tmca_core.settings import EvaluationSettings as EvaluationSettings
from tmca_core.settings import FederationSettings as FederationSettings
from tmca_core.settings import NetworkSettings as NetworkSettings
from tmca_core.settings import PartitionSettings as PartitionSettings
from tmca_core.settings import PhantomSettings as PhantomSettings
from tmca_core.settings import PrivacySettings as PrivacySettings
from tmca_core.settings import ScenarioSettings as ScenarioSettings
from tmca_core.settings import Section as Section
from tmca_core.settings import SimulationSettings as SimulationSettings
from tmca_core.settings import SsaSettings as SsaSettings
from tmca_core.settings import TmcaSettings as TmcaSettings
from tmca_core.settings import TrainingSettings as TrainingSettings

_WITHOUT_INFLUENCE = (
    "data.cache_dir", "data.manifest", "federation.wait", "federation.poll", "federation.spill", "federation.keep_replies",
    "federation.check",
)  # fmt: skip
"""Beside `simulation.…`: with other values a run may go on in its folder. `federation.deadline` is none, it decides who is late."""


class Config(Section):
    """Every setting of a run."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of splits, initial weights, augmentation and sampling.")
    data: DataSettings = DataSettings()
    phantom: PhantomSettings = PhantomSettings()
    partition: PartitionSettings = PartitionSettings()
    network: NetworkSettings = NetworkSettings()
    tmca: TmcaSettings = TmcaSettings()
    ssa: SsaSettings = SsaSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    federation: FederationSettings = FederationSettings()
    privacy: PrivacySettings = PrivacySettings()
    central: CentralSettings = CentralSettings()
    simulation: SimulationSettings = SimulationSettings()
    scenario: ScenarioSettings = ScenarioSettings()

    @model_validator(mode="after")
    def _no_patient_decides_about_others(self) -> Config:
        """What a private site computes of one patient must not depend on which others it has."""
        if self.privacy.enabled and self.data.split == "counted":
            raise ValueError(
                "privacy.enabled does not go with data.split=counted, by which one patient more deals all others anew: set auto"
            )
        if self.privacy.enabled and self.data.on_bad_case == "fail":
            raise ValueError("privacy.enabled does not go with data.on_bad_case=fail, by which one patient's file ends the run: set skip")
        if self.privacy.enabled and self.training.precision == "bf16":
            raise ValueError("privacy.enabled computes patients' gradients in float32: leave training.precision at auto, or set fp32")
        return self

    @property
    def independent_split(self) -> bool:
        """Whether a patient's split is its own, whoever else the site has."""
        return self.data.split == "independent" or self.privacy.enabled

    def flat(self) -> dict[str, Scalar]:
        """Dotted keys to scalars, as Flower's run-config carries them: `{"data.image_size": 128, …}`."""
        return flatten(self.model_dump())

    def with_values(self, values: Mapping[str, Any]) -> Config:
        """A copy with dotted keys replaced.

        Raises:
            ConfigError: a key is unknown or a value out of its bounds.
        """
        return parse({**self.flat(), **values})

    def digest(self) -> str:
        """sha256 over all settings that influence the result (not folders, engine, baselines, or how the server waits and stores)."""
        same = {k: v for k, v in self.flat().items() if not k.startswith("simulation.") and k not in _WITHOUT_INFLUENCE}
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The whole schema as a commented TOML document."""
        return commented(self)


def commented(settings: Section) -> str:
    """Settings in sections as a TOML document, each with its description."""
    sections = {name: value for name in type(settings).model_fields if isinstance(value := getattr(settings, name), Section)}
    lines = [_toml_field(k, getattr(settings, k), f.description) for k, f in type(settings).model_fields.items() if k not in sections]
    for name, section in sections.items():
        lines.append(f"\n[{name}]  # {(type(section).__doc__ or '').splitlines()[0]}")
        lines += [_toml_field(k, getattr(section, k), f.description) for k, f in type(section).model_fields.items()]
    return "\n".join(lines) + "\n"


def parse(values: Mapping[str, Any]) -> Config:
    """Config from nested or dotted values.

    Raises:
        ConfigError: naming every key at fault.
    """
    try:
        return Config.model_validate(nest(values))
    except ValidationError as error:
        known = Config().flat()
        parts = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                parts.append(f"unknown setting '{key}'{nearest(key, known)}")
            else:
                said = f"setting '{key}': {problem['msg']} (got {problem['input']!r})"
                parts.append(said if key else problem["msg"].removeprefix("Value error, "))  # without a key: a rule about several
        raise ConfigError("; ".join(parts) + ".") from None


def load(path: Path | None = None, assignments: Iterable[str] = ()) -> Config:
    """Config from a TOML file and `a.b=c` assignments, the latter winning.

    Paths of files come out absolute: those in the TOML file are relative to its folder, assigned ones to the working directory.

    Raises:
        ConfigError: the file cannot be read, or a setting is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}.") from None
    flat: dict[str, Any] = _absolute(flatten(values), path.parent if path else Path())
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes key=value, got '{assignment}'.")
        flat |= _absolute({key.strip(): scalar(text.strip())}, Path())
    return parse(flat)


def _absolute(flat: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Settings that name a file, made absolute; `package` is none."""
    files = {"data.manifest", "network.image_weights", "network.start", "simulation.policies"}
    return {
        key: str((base / Path(value).expanduser()).resolve())
        if key in files and isinstance(value, str) and value not in ("", "package")
        else value
        for key, value in flat.items()
    }


def _toml_field(key: str, value: Scalar | tuple[str, ...], description: str | None) -> str:
    return f"{key} = {json.dumps(value)}" + (f"  # {description}" if description else "")
