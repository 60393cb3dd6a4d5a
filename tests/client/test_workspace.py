"""Which data a node serves, and which of the server's wishes a hospital's node does not follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.workspace import open_site, open_workspace, places
from tmca_core.cases.phantom import write
from tmca_core.config import Config
from tmca_core.errors import ConfigError, PolicyRefusal


def tiny(**values: Any) -> Config:
    base = {
        "phantom.sites": 3,
        "phantom.cases": 8,
        "data.image_size": 32,
        "network.width": 16,
        "network.heads": 2,
    }
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_workspace.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default"))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write(tmp_path / "hospital", sites=1, cases=8, seed=1, size=32)


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_whatever_the_number_of_nodes_every_site_is_served_once(nodes: int) -> None:
    served = []
    for node in ({"partition-id": k, "num-partitions": nodes} for k in range(nodes)):
        served += [open_site(tiny(), node, place).name for place in range(places(tiny(), node))]
    assert sorted(served) == ["phantom-00", "phantom-01", "phantom-02"]


def test_a_site_that_a_node_does_not_serve_is_refused() -> None:
    for place in (-1, 2):
        with pytest.raises(ConfigError, match="serves 2 sites"):
            open_site(tiny(), {"partition-id": 0, "num-partitions": 2}, place)


def test_the_run_does_not_choose_a_hospitals_folders(manifest: Path, tmp_path: Path) -> None:
    config = tiny(data__cache_dir=str(tmp_path / "servers"), simulation__out=str(tmp_path / "servers-too"))
    site = open_site(config, {"manifest": str(manifest)})
    assert site.state == tmp_path / "default" / "tmca" / "sites"
    assert site.durable and not open_site(config, {"partition-id": 0, "num-partitions": 3}).durable
    assert (tmp_path / "default" / "tmca" / "decoded").is_dir()
    own = open_site(config, {"manifest": str(manifest), "cache": str(tmp_path / "own")})
    assert own.state == tmp_path / "own" / "sites"
    assert (tmp_path / "own" / "decoded").is_dir()
    assert open_site(config, {"manifest": str(manifest), "state": str(tmp_path / "state")}).state == tmp_path / "state"
    assert not list(tmp_path.glob("servers*"))
    assert own.workspace.config.digest() == config.digest()


def test_a_simulation_uses_the_folders_of_the_run(tmp_path: Path) -> None:
    site = open_site(tiny(simulation__out=str(tmp_path / "run")), {"partition-id": 0, "num-partitions": 3})
    assert site.state == tmp_path / "run" / "sites"


def test_nothing_is_downloaded_unless_the_hospital_allows_it(manifest: Path) -> None:
    config = tiny(network__allow_download=True)
    with pytest.raises(PolicyRefusal, match="allow-download=true"):
        open_site(config, {"manifest": str(manifest)})
    with pytest.raises(PolicyRefusal):
        open_site(config, {"manifest": str(manifest), "allow-download": "false"})
    assert open_site(config, {"manifest": str(manifest), "allow-download": True}).name == "phantom-00"
    assert open_site(config, {"partition-id": 0, "num-partitions": 3}).name == "phantom-00"
