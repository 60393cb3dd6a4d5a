import json
import subprocess
import sys

import pytest

from tmca_core.errors import ConfigError
from tmca_core.registry import Registry
from tmca_core.seeds import numpy_rng, stream, torch_rng


def test_registry_names_what_it_knows_and_refuses_doubles() -> None:
    registry: Registry[type] = Registry("shape")
    registry.register("square")(int)
    assert registry["square"] is int
    with pytest.raises(ConfigError, match="unknown shape 'circle'; known: square"):
        registry["circle"]
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("square")(float)


def test_streams_depend_on_their_purpose_and_on_nothing_else() -> None:
    assert stream(0, "train", "a", 1) == stream(0, "train", "a", 1) != stream(0, "train", "a", 2)
    assert stream(0, "ab", "c") != stream(0, "a", "bc")
    assert numpy_rng(1, "x").integers(1 << 30) == numpy_rng(1, "x").integers(1 << 30)
    assert torch_rng(1, "x").initial_seed() != torch_rng(2, "x").initial_seed()


def tmca(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tmca_core.cli", *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_every_command_without_importing_torch() -> None:
    code = "import sys\nfrom tmca_core.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for command in ("demo", "simulate", "train", "evaluate", "predict", "data", "report", "bench", "doctor"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.endswith("False\n")


def test_user_errors_are_one_message_and_exit_2() -> None:
    done = tmca("simulate", "--set", "training.epoch=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: unknown setting 'training.epoch' (did you mean 'training.epochs'?)."
    assert tmca("no-such-command").returncode == 2
    assert "Traceback" in tmca("simulate", "--set", "training.epoch=1", "--debug").stderr


def test_doctor_prints_one_json_object() -> None:
    value = json.loads(tmca("doctor", "--json").stdout)
    assert {"torch", "flwr", "device", "memory"} <= {check["what"] for check in value["checks"]}
