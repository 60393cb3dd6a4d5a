"""Weights on a hospital's own disk that a server names: they may come of training on its patients, so the hospital says which are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospital import Hospital, private, reason
from safetensors.torch import save_file

from tmca_core.config import Config
from tmca_core.networks import build_network, start
from tmca_core.networks.start import start_digest


def saved(config: Config, path: Path) -> str:
    weights = build_network(config, started=False).state_dict()
    save_file(weights, str(path))
    return start_digest(weights)


def test_no_weights_are_read_that_the_hospital_has_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = Hospital.make(tmp_path)
    digest = saved(private(), tmp_path / "ours.safetensors")
    for path in (tmp_path / "ours.safetensors", tmp_path / "absent.safetensors"):
        named = ({"network__start": str(path), "network__trainable": "norms"}, {"network__image_weights": str(path)})
        for setting in (*named, {"network__text_encoder": str(path)}):
            with monkeypatch.context() as patch:
                patch.setattr(start, "weights_digest", lambda path: pytest.fail("the file was read"))
                assert "Rule: app.starts; bound: 0 others." in hospital.hello(private(**setting)).refusal
    assert hospital.kinds() == []
    site = tmp_path / "site.toml"
    site.write_text(site.read_text() + f'[app]\nstarts = ["{digest}"]\n')
    config = private(network__start=str(tmp_path / "ours.safetensors"), network__trainable="norms")
    assert not hospital.train(config).has_error()
    saved(private(seed=5), tmp_path / "ours.safetensors")  # other weights in the same file
    assert reason(hospital.train(config, round=2)).endswith("Rule: app.starts; bound: 1 others.")


def test_nothing_is_fetched_or_opened_before_the_policy_has_been_asked_about_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital.make(tmp_path, more='[app]\nstarts = ["00"]')
    for place in ("tmca_core.networks.start.weights_digest", "tmca_core.text.huggingface._from_hub"):
        monkeypatch.setattr(place, lambda *given, **more: pytest.fail("something was opened"))
    named = {"network__start": "/nowhere", "network__text_encoder": "owner/name", "network__trainable": "norms"}
    assert "Rule: app.downloads" in hospital.hello(private(**named, network__allow_download=True)).refusal


def test_a_start_that_only_the_server_reads_needs_no_leave(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    saved(private(), tmp_path / "of-the-server.safetensors")
    assert not hospital.train(private(network__start=str(tmp_path / "of-the-server.safetensors"))).has_error()


def test_private_training_of_one_hospital_does_not_start_from_weights_that_nobody_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tmca_core.cli import main

    hospital = Hospital.make(tmp_path)
    saved(private(), tmp_path / "plain.safetensors")
    config = private(network__start=str(tmp_path / "plain.safetensors"), data__cache_dir=str(tmp_path / "cache"))
    settings = [f"--set={key}={value}" for key, value in config.flat().items() if value != Config().flat()[key]]
    monkeypatch.setattr(start, "read_start", lambda path: pytest.fail("the file was read"))
    with pytest.raises(SystemExit) as ended:
        main(["train", f"--manifest={hospital.manifest}", f"--out={tmp_path / 'run'}", f"--policy={tmp_path / 'site.toml'}", *settings])
    assert ended.value.code == 3 and "Rule: app.starts" in capsys.readouterr().err and hospital.kinds() == []
