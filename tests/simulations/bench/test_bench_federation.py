import json

import pytest

from simulations.bench import federation
from tmca_core.cli import main

TINY = {"phantom.sites": 2, "phantom.cases": 8, "data.image_size": 32, "network.width": 16, "federation.rounds": 1, "training.steps": 1}


def test_bench_gives_the_ratios_that_checks_rely_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(federation, "SETTINGS", TINY | {"simulation.baselines": False})
    with pytest.raises(SystemExit) as stop:
        main(["bench", "federation", "--repeats", "1", "--json"])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert (value["name"], value["repeats"]) == ("federation", 1)
    assert value["ratios"]["overhead"] > 0
    assert 1 < value["ratios"]["upload_over_shared"] < 1.05  # a network this small has as many names as a large one


def test_an_unknown_benchmark_is_named_with_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "flight"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "known: " in said and "federation" in said and "step" in said
