"""`tmca deploy init`: what it makes, what it never overwrites, what it refuses."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from federations import describe, made

from tmca_core.cli import main
from tmca_core.deploy.folders import make_operator_key
from tmca_core.deploy.keys import make_site_key
from tmca_core.deploy.site_env import assignments, load_site_env
from tmca_core.errors import ConfigError
from tmca_core.privacy.policy import Policy, load_policy

HOSPITALS = 'host = "fl.example.org"\noperators = ["anna"]'


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tmca(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_a_federation_from_nothing_with_keys_made_where_they_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation, out = describe(tmp_path, coordinator=HOSPITALS), tmp_path / "out"
    assert tmca("deploy", "init", federation, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["waiting"], said["operators_waiting"]) == (["ghent", "hannover"], ["anna"])
    # No private key of a site or an operator was made here.
    private = {name for name, content in contents(out).items() if b"PRIVATE KEY" in content}
    assert private == {"ca/ca.key", "coordinator/server.key"}
    assert all((out / name).stat().st_mode & 0o077 == 0 for name in [*private, "coordinator/superexec.secret"])
    # The site makes its own, and sends one file.
    hospital = tmp_path / "hospital"
    shutil.copytree(out / "sites" / "ghent", hospital)
    assert tmca("deploy", "key", hospital) == 0
    assert "site.pub" in capsys.readouterr().out
    shutil.copy(hospital / "site.pub", out / "coordinator" / "keys" / "ghent.pub")
    workstation = tmp_path / "workstation"
    assert tmca("deploy", "key", workstation, "--operator", "anna") == 0
    shutil.copy(workstation / "operator.csr", out / "coordinator" / "operators" / "anna")
    capsys.readouterr()
    assert tmca("deploy", "init", federation, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["waiting"], said["operators_waiting"]) == (["hannover"], [])
    assert (out / "coordinator" / "operators" / "anna" / "operator.crt").exists()
    assert '"anna";' in (out / "coordinator" / "nginx.conf").read_text()


def test_again_nothing_is_overwritten_and_a_new_site_is_added(tmp_path: Path) -> None:
    federation = describe(tmp_path)
    made(federation)
    edited = tmp_path / "out" / "sites" / "ghent" / "site.toml"
    edited.write_text(edited.read_text().replace("epsilon = 8.0", "epsilon = 2.0"))
    env = tmp_path / "out" / "sites" / "ghent" / "site.env"
    env.write_text(env.read_text().replace("MANIFEST=''", "MANIFEST='/data/my cases.csv'"))
    before = contents(tmp_path / "out")
    made(federation)
    assert contents(tmp_path / "out") == before
    describe(tmp_path, sites=("ghent", "hannover", "leuven"))
    made(federation)
    after = contents(tmp_path / "out")
    assert {name: content for name, content in after.items() if name in before and name != "coordinator/federation.json"} == {
        name: content for name, content in before.items() if name != "coordinator/federation.json"
    }
    assert {"sites/leuven/site.key", "coordinator/keys/leuven.pub"} <= after.keys() - before.keys()
    assert load_policy(edited).privacy.epsilon == 2.0
    assert load_site_env(edited.parent).manifest == Path("/data/my cases.csv")


def test_who_is_no_longer_named_is_no_longer_let_in(tmp_path: Path) -> None:
    federation = describe(tmp_path, sites=("ghent", "hannover", "leuven"))
    made(federation)
    assert '"tester";' in (tmp_path / "out" / "coordinator" / "nginx.conf").read_text()
    describe(tmp_path, coordinator='host = "localhost"', sites=("ghent", "leuven"))
    assert made(federation).left == ["hannover"]
    assert {path.name for path in (tmp_path / "out" / "coordinator" / "keys").glob("*.pub")} == {"ghent.pub", "leuven.pub"}
    assert '"tester";' not in (tmp_path / "out" / "coordinator" / "nginx.conf").read_text()
    describe(tmp_path, coordinator='host = "localhost"', sites=("ghent", "hannover", "leuven"))
    assert made(federation).left == []  # and back again, with the key that it had


def test_a_running_ingress_that_goes_by_an_old_list_of_operators_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation, out = describe(tmp_path), tmp_path / "out"

    def init() -> tuple[str, bool]:
        assert tmca("deploy", "init", federation, "--out", out, "--make-keys") == 0
        said = capsys.readouterr().out
        assert tmca("deploy", "init", federation, "--out", out, "--make-keys", "--json") == 0
        assert json.loads(capsys.readouterr().out)["ingress_changed"] is False  # once told, and now as it is
        return said, "systemctl restart tmca-ingress" in said

    assert not init()[1]  # none can run yet
    describe(tmp_path, coordinator='host = "localhost"')
    said, told = init()
    assert told and "no operator any more" in said
    describe(tmp_path, coordinator='host = "localhost"', sites=("ghent", "hannover", "leuven"))
    assert not init()[1]  # a site more is nothing to the ingress


@pytest.mark.parametrize(
    ("listed", "said", "code"),
    [
        ("online", "ghent: was registered before", 0),
        ("unregistered", "ghent: NOT registered: this key was unregistered", 1),
        ("", "ghent: NOT registered: this key was unregistered", 1),
    ],
)
def test_a_key_that_was_unregistered_is_not_taken_for_a_registered_one(tmp_path: Path, listed: str, said: str, code: int) -> None:
    """With a `flwr` that answers as Flower 1.41 does: it has seen every key before, and lists nodes without their keys."""
    made(describe(tmp_path, sites=("ghent",)))
    home, shown = tmp_path / "out" / "coordinator", tmp_path / "bin"
    shown.mkdir()
    nodes = [{"node-id": "7", "owner-name": "x", "status": "online"}]
    nodes += [{"node-id": "4711", "owner-name": "x", "status": listed}] if listed else []
    (shown / "nodes.json").write_text(json.dumps({"success": True, "nodes": nodes}, indent=2))
    (shown / "flwr").write_text(
        '#!/bin/sh\nif [ "$2" = list ]; then cat "${0%/*}/nodes.json"; exit; fi\n'
        'if [ -e "${0%/*}/again" ]; then echo "Error: Public key already in use." >&2; exit 1; fi\n'
        'touch "${0%/*}/again"; echo "✅ SuperNode 4711 registered successfully."\n'
    )
    (shown / "flwr").chmod(0o755)

    def register() -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{shown}:/usr/bin:/bin"}
        return subprocess.run([home / "register.sh"], env=environment, capture_output=True, text=True, check=False)

    first = register()
    assert (first.returncode, first.stdout) == (0, "ghent: registered\n"), first.stderr
    done = register()
    assert done.returncode == code and said in done.stdout + done.stderr
    # Registered by hand, or before numbers were kept: nobody can tell, and it is said.
    shutil.rmtree(home / "state" / "nodes")
    done = register()
    assert done.returncode == 0 and "supernode list" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinator": 'host = "127.0.0.1"'}, "says COORDINATOR=localhost:9092"),
        ({"coordinator": 'host = "localhost"\nfleet_port = 9999'}, "the federation now has localhost:9999"),
        ({"name": "hearts"}, "holds the 'lungs federation CA'"),
    ],
)
def test_another_address_or_federation_is_refused_before_anything_changes(change: dict[str, str], said: str, tmp_path: Path) -> None:
    federation = describe(tmp_path)
    made(federation)
    before = contents(tmp_path / "out")
    describe(tmp_path, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as refused:
        made(federation)
    assert said in str(refused.value)
    assert contents(tmp_path / "out") == before


def test_a_changed_a_shared_and_a_private_key_are_refused(tmp_path: Path) -> None:
    federation = describe(tmp_path, coordinator=HOSPITALS)
    made(federation, make_keys=False)
    keys = tmp_path / "out" / "coordinator" / "keys"
    for site in ("ghent", "hannover"):
        shutil.copy(make_site_key(tmp_path / site), keys / f"{site}.pub")
    made(federation, make_keys=False)
    describe(tmp_path, coordinator=HOSPITALS, sites=("name = 'ghent'\npublic_key = 'hannover/site.pub'", "hannover"))
    with pytest.raises(ConfigError, match="is another key than site 'ghent' had"):
        made(federation, make_keys=False)
    describe(tmp_path, coordinator=HOSPITALS)
    shutil.copy(keys / "ghent.pub", keys / "hannover.pub")
    with pytest.raises(ConfigError, match="'ghent' and 'hannover' have the same public key"):
        made(federation, make_keys=False)
    shutil.copy(tmp_path / "ghent" / "site.key", keys / "ghent.pub")
    with pytest.raises(ConfigError, match="PRIVATE key"):
        made(federation, make_keys=False)


def test_keys_are_not_made_for_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--make-keys is for a trial on one machine"):
        made(describe(tmp_path, coordinator=HOSPITALS))
    assert not (tmp_path / "out").exists()
    make_operator_key(tmp_path, "anna")
    with pytest.raises(ConfigError, match="is there already"):
        make_operator_key(tmp_path, "anna")


def test_the_proposed_policy_is_a_policy(tmp_path: Path) -> None:
    made(describe(tmp_path, more="[policy.privacy]\nepsilon = 3.0\n[policy.metrics]\nallowed = []\n"))
    path = tmp_path / "out" / "sites" / "ghent" / "site.toml"
    expected = Policy().model_copy(
        update={
            "privacy": Policy().privacy.model_copy(update={"epsilon": 3.0}),
            "metrics": Policy().metrics.model_copy(update={"allowed": ()}),
            "ledger": Policy().ledger.model_copy(update={"folder": str(path.parent / "state" / "ledger")}),
        }
    )
    assert load_policy(path) == expected


def test_a_site_env_is_read_as_the_shell_reads_it(tmp_path: Path) -> None:
    made(describe(tmp_path, sites=("name = 'ghent'\nmanifest = '/data/it is & here/cases.csv'\nfree_gb = 2.5\ngpu = true",)))
    path = tmp_path / "out" / "sites" / "ghent" / "site.env"
    values = assignments(path)
    shell = subprocess.run(["/bin/sh", "-c", 'set -a; . "$1"; env', "sh", str(path)], capture_output=True, text=True, check=True)
    assert values.items() <= dict(line.split("=", 1) for line in shell.stdout.splitlines()).items()
    site = load_site_env(path.parent)
    assert (site.host, site.port, site.manifest, site.free_gb, site.gpu) == (
        "localhost", 9092, Path("/data/it is & here/cases.csv"), 2.5, True,
    )  # fmt: skip
    path.write_text(path.read_text() + "reboot now\n")
    with pytest.raises(ConfigError, match="'reboot' is no KEY=VALUE"):
        load_site_env(path.parent)


def test_units_name_what_is_there_and_nothing_runs_as_root(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    sites = (f"name = 'ghent'\ncache = '/var/cache/my films'\ngpu = true\nfolder = '{tmp_path}/out/sites/ghent'",)
    coordinator = f'host = "fl.example.org"\nfleet_port = 443\noperators = ["anna"]\nfolder = "{tmp_path}/out/coordinator"'
    path = describe(tmp_path, coordinator=coordinator, sites=sites)
    path.write_text(path.read_text().replace("[coordinator]", f'programs = "{programs}"\n[coordinator]'))
    made(path, make_keys=False)
    units = sorted((tmp_path / "out").rglob("*.service"))
    assert [unit.name for unit in units] == [
        "tmca-ingress.service", "tmca-superexec.service", "tmca-superlink.service", "tmca-supernode.service", "tmca-work.service",
    ]  # fmt: skip
    for unit in units:
        text = unit.read_text()
        assert "\nUser=tmca\n" in text and "\nNoNewPrivileges=yes\n" in text and "\nProtectSystem=strict\n" in text
        (command,) = [Path(line.removeprefix("ExecStart=")) for line in text.splitlines() if line.startswith("ExecStart=")]
        assert os.access(command, os.X_OK)
        # Only the ingress may take a port below 1024.
        assert ("\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in text) is (unit.name == "tmca-ingress.service")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "tmca-" in line or str(tmp_path) in line]
    assert ours == [], done.stderr


@pytest.mark.parametrize("which", ["coordinator", "sites/ghent"])
def test_containers_run_our_scripts_as_an_ordinary_user(which: str, tmp_path: Path) -> None:
    made(describe(tmp_path, sites=("name = 'ghent'\ngpu = true", "hannover")))
    folder = tmp_path / "out" / which
    value = yaml.safe_load((folder / "compose.yaml").read_text())
    assert value["services"]
    for service in value["services"].values():
        assert service["user"] == "10001:10001" and service["read_only"] and service["cap_drop"] == ["ALL"]
        # Where the folder is mounted, the script of that name is in it.
        mounted = next(volume.split(":")[1] for volume in service["volumes"] if volume.startswith(".:"))
        assert (folder / Path(service["command"][0]).relative_to(mounted)).exists()
        assert all((folder / argument).exists() for argument in service["command"][1:])
    # Of the coordinator's programs only the two ports of the ingress are published, one of them on this machine alone.
    ports = value["services"].get("superlink", {}).get("ports", [])
    assert ports == (["9092:9092", "127.0.0.1:9093:9093"] if which == "coordinator" else [])
    build = (folder / "Dockerfile").read_text().splitlines()
    assert [line for line in build if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any(line.startswith("RUN pip install") and line.endswith("-c constraints.txt") for line in build)
    copied = {word for line in build if line.startswith("COPY ") for word in line.split()[1:-1]}
    packages = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", *packages}


def test_every_script_is_sound_and_every_flag_is_one_that_flower_has(tmp_path: Path) -> None:
    """The programs themselves parse the command lines of the scripts, with an `exec` that only shows them."""
    from flwr.common.config import parse_config_args

    def parsed(module: str, parser: str, words: list[str]) -> dict[str, Any]:
        return vars(getattr(importlib.import_module(f"flwr.{module}"), parser)().parse_args(words))

    made(describe(tmp_path, sites=("name = 'ghent'\nmanifest = '/data/my cases.csv'",)))
    home, site = tmp_path / "out" / "coordinator", tmp_path / "out" / "sites" / "ghent"
    shown = tmp_path / "bin"
    shown.mkdir()
    for program in ("flower-superexec", "tmca", "nginx", "flwr"):
        (shown / program).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\nenv | grep ^FLWR_\n')
        (shown / program).chmod(0o755)
    for script in [*home.rglob("*.sh"), *site.rglob("*.sh")]:
        subprocess.run(["/bin/sh", "-n", str(script)], check=True)

    def arguments(script: Path) -> list[str]:
        environment = {"PATH": f"{shown}:/usr/bin:/bin"}
        done = subprocess.run([str(script)], env=environment, capture_output=True, text=True, check=True, cwd="/")
        lines = done.stdout.splitlines()
        assert {"FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"} <= set(lines)
        return [line for line in lines if not line.startswith("FLWR_")]

    superlink, superexec, supernode = (arguments(path) for path in (home / "superlink.sh", home / "superexec.sh", site / "supernode.sh"))
    assert (superlink[1:4], supernode[1:4]) == (["deploy", "superlink", "--"], ["deploy", "node", "--"])
    link = parsed("superlink.cli.flower_superlink", "_parse_args_run_superlink", superlink[4:])
    executor = parsed("supercore.cli.flower_superexec", "_parse_args", superexec[1:])
    node = parsed("supernode.cli.flower_supernode", "_parse_args_run_supernode", supernode[4:])
    config = parse_config_args([node["node_config"]])
    assert (link["host"], link["insecure"], link["enable_supernode_auth"], link["isolation"]) == ("127.0.0.1", False, True, "process")
    assert link["runtime_dependency_install"] is False and link["database"] == str(home / "state" / "superlink.db")
    assert link["superexec_auth_secret_file"] == executor["superexec_auth_secret_file"] == str(home / "superexec.secret")
    assert executor["root_certificates"] == str(home / "ca.crt") and not executor["insecure"]
    assert (node["host"], node["isolation"], node["superlink"], node["insecure"]) == ("127.0.0.1", "process", "localhost:9092", False)
    assert node["auth_supernode_private_key"] == str(site / "site.key") and not node["runtime_dependency_install"]
    assert config == {
        "site": "ghent", "manifest": "/data/my cases.csv", "policy": str(site / "site.toml"), "state": str(site / "state"),
        "cache": str(site / "state" / "cache"),
    }  # fmt: skip
    assert arguments(site / "work.sh")[1:] == [
        "deploy", "work", "--runtime-api", "127.0.0.1:9094", "--home", str(site / "state"), "--secret", str(site / "superexec.secret"),
    ]  # fmt: skip


def test_a_site_without_a_manifest_does_not_start(tmp_path: Path) -> None:
    made(describe(tmp_path))
    done = subprocess.run([tmp_path / "out" / "sites" / "ghent" / "supernode.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "MANIFEST is empty" in done.stderr


def test_the_guide_is_one_page_and_has_the_sites_own_values(tmp_path: Path) -> None:
    path = describe(tmp_path, coordinator=HOSPITALS, sites=("name = 'ghent'\nfolder = '/srv/fl'\ngpu = true\nfree_gb = 40",))
    said = made(path, make_keys=False)
    guide = (tmp_path / "out" / "sites" / "ghent" / "guide.md").read_text()
    assert len(guide.splitlines()) <= 60
    for value in ("fl.example.org:9092", said.fingerprint, "/srv/fl", "40 GB", "an NVIDIA GPU", "tmca deploy join /srv/fl", "state/ledger"):
        assert value in guide


def test_help_of_the_group_names_commands_of_all_floors_without_importing_them() -> None:
    asked = "try:\n main(['deploy', '--help'])\nexcept SystemExit: print({'torch', 'flwr'} & set(sys.modules))"
    code = f"import sys\nfrom tmca_core.cli import main\n{asked}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("init", "key", "join", "approve", "work", "up", "down"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.endswith("set()\n")
