import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmca_core.config import Config, load, parse
from tmca_core.errors import ConfigError


def test_every_setting_survives_flat_and_toml(tmp_path: Path) -> None:
    config = parse({"data.image_size": 64, "federation.rounds": 3, "network.name": "unet", "simulation.out": 'a "b" \\ c'})
    assert parse(config.flat()) == config
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load(tmp_path / "c.toml") == config
    assert tomllib.loads(config.to_toml())["data"]["image_size"] == 64


def test_flat_values_are_scalars_as_flower_wants_them() -> None:
    assert all(type(value) in (bool, int, float, str) for value in Config().flat().values())


def test_every_setting_is_documented() -> None:
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {name: field})
        assert all(f.description for f in inner.values()), name


def test_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'training\.epoch' \(did you mean 'training\.epochs'\?\)"):
        parse({"training.epoch": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.image_size", 100),
        ("data.val_fraction", 1.0),
        ("privacy.clip", 1e-320),
        ("privacy.delta", 1e-15),
        ("privacy.noise_multiplier", 1e300),
        ("privacy.noise_multiplier", math.nan),
        ("central.count_noise", math.inf),
        ("training.learning_rate", math.inf),
        ("federation.tau", math.nan),
        ("training.batch_size", 0),
        ("federation.weighting", "size"),
        ("seed", -1),
        ("network.heads", 3),
    ],
)
def test_out_of_bounds_values_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        parse({key: value})


def test_assignments_win_over_the_file_and_take_bare_words(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('seed = 4\n[training]\nepochs = 7\n[network]\nname = "unet"\n')
    config = load(file, ["training.epochs=2", "network.text_encoder=/models/cxr bert", "data.trust_laterality=true"])
    assert (config.seed, config.training.epochs, config.network.name) == (4, 2, "unet")
    assert config.network.text_encoder == "/models/cxr bert"
    assert config.data.trust_laterality is True


@pytest.mark.parametrize("assignment", ["training.epochs", "=3", "seed.x=1"])
def test_malformed_assignments_are_refused(assignment: str) -> None:
    with pytest.raises(ConfigError):
        load(None, [assignment])


def test_unreadable_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"seed = \xff")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")


def test_digest_ignores_where_and_how_but_not_what() -> None:
    config = Config()
    assert config.digest() == config.with_values({"simulation.engine": "ray", "data.cache_dir": "x"}).digest()
    assert config.digest() != config.with_values({"seed": 1}).digest()
    # Advice in a run's messages ("set federation.spill=false and repeat the command") must be possible to follow in its folder.
    stored = {"federation.spill": True, "federation.keep_replies": "on", "federation.wait": 1.0, "federation.poll": 0.5}
    for key, value in stored.items():
        assert config.digest() == config.with_values({key: value}).digest()
    assert config.digest() != config.with_values({"federation.deadline": 1.0}).digest()


@given(st.dictionaries(st.text(max_size=12), st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=4))
def test_parse_accepts_or_refuses_but_never_crashes(values: dict[str, object]) -> None:
    try:
        assert isinstance(parse(values), Config)
    except ConfigError as error:
        assert str(error)


def test_a_file_is_looked_for_beside_the_configuration_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "c.toml").write_text('[data]\nmanifest = "cases.csv"\n[network]\nimage_weights = "package"\n')
    monkeypatch.chdir(tmp_path)
    config = load(Path("study/c.toml"))
    assert config.data.manifest == str(tmp_path / "study" / "cases.csv")
    assert config.network.image_weights == "package"
    assert load(None, ["data.manifest=here.csv"]).data.manifest == str(tmp_path / "here.csv")
