"""federation.toml: what is refused before it could end up in a script, and what is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest
from federations import describe

from tmca_core.deploy.schema import is_loopback, load_federation
from tmca_core.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinator": 'host = "a b"'}, "neither a host name nor an IP address"),
        ({"coordinator": 'host = "x;reboot"'}, "neither a host name nor an IP address"),
        ({"coordinator": 'host = "-evil.example"'}, "neither a host name nor an IP address"),
        ({"coordinator": 'host = "fl.example"\nfleet_port = 9093'}, "must differ"),
        ({"coordinator": 'host = "fl.example"\nfleet_prt = 9'}, "coordinator.fleet_prt"),
        ({"coordinator": 'host = "fl.example"\nfolder = "/srv/$(id)"'}, "coordinator.folder"),
        ({"name": "../up"}, "'name'"),
        ({"sites": ("a/b",)}, "sites.0.name"),
        ({"sites": ("ghent", "Ghent")}, "two sites are called 'ghent'"),
        ({"sites": ("name = 'ghent'\nmanifest = '''/data/\"; reboot'''",)}, "sites.0.manifest"),
        ({"sites": ("name = 'ghent'\nmanifest = '/data/$HOME'",)}, "sites.0.manifest"),
        ({"more": "[policy.privacy]\nepsilon = -1\n"}, "policy.privacy.epsilon"),
    ],
)
def test_what_could_do_harm_is_refused_by_its_key(change: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_federation(describe(tmp_path, **change))  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_paths_are_absolute_and_each_supernode_of_one_machine_has_a_port_of_its_own(tmp_path: Path) -> None:
    sites = ("ghent", "name = 'hannover'\nruntime_port = 9094\nmanifest = 'data/cases.csv'", "leuven")
    trial = load_federation(describe(tmp_path, sites=sites)).sites
    assert [site.runtime_port for site in trial] == [9095, 9094, 9096]
    assert trial[1].manifest == str(tmp_path / "data" / "cases.csv")
    hospitals = load_federation(describe(tmp_path, coordinator='host = "fl.example.org"', sites=("ghent", "leuven"))).sites
    assert [site.runtime_port for site in hospitals] == [9094, 9094]


@pytest.mark.parametrize(
    ("host", "local"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("fl.example.org", False), ("10.0.0.1", False)]
)
def test_only_this_machine_is_local(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_an_ipv6_address_stands_in_brackets_before_its_port(tmp_path: Path) -> None:
    assert load_federation(describe(tmp_path, coordinator='host = "fd00::1"')).coordinator.address == "[fd00::1]:9092"
