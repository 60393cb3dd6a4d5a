"""`tmca deploy join`: a site that is ready, and each thing that may be wrong, against coordinators that really answer."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from federations import describe, made

import client.joining
from client.joining import check_site
from simulations.processes import free_port
from tmca_core.cases.phantom import write
from tmca_core.cli import main
from tmca_core.deploy.certificates import Authority, load_certificate, load_pem_key
from tmca_core.deploy.folders import make_folders
from tmca_core.deploy.keys import make_site_key
from tmca_core.deploy.schema import load_federation
from tmca_core.privacy.ledger import Ledger

CASES = 16


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), sites=1, cases=CASES, seed=0, size=32)


@dataclass
class Coordinator:
    """Answers on the fleet port as an ingress does.

    Attributes:
        status: to a control call.
        late: how far its clock is behind this machine's.
    """

    status: int = 403
    late: timedelta = timedelta()


@contextmanager
def answering(home: Path, port: int, how: Coordinator, *, tls: bool = True) -> Iterator[None]:
    class Ingress(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response_only(how.status)
            self.send_header("Date", format_datetime(datetime.now(UTC) - how.late, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Ingress)
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # a client that does not trust us goes away
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home / "server.crt", home / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def federation(tmp_path: Path, manifest: Path) -> Path:
    """A trial of one site that is ready; returns the folder `out`."""
    ports = {name: free_port() for name in ("fleet_port", "control_port", "superlink_port", "forward_port")}
    numbers = "\n".join(f"{name} = {port}" for name, port in ports.items())
    site = f"name = 'ghent'\nmanifest = '{manifest}'\nfree_gb = 0\nruntime_port = {free_port()}"
    made(describe(tmp_path, coordinator=f'host = "localhost"\n{numbers}', sites=(site,)))
    Ledger.create(tmp_path / "out" / "sites" / "ghent" / "state" / "ledger")
    return tmp_path / "out"


def fleet_port(federation: Path) -> int:
    return load_federation(federation.parent / "federation.toml").coordinator.fleet_port


def look(federation: Path, how: Coordinator | None = None, **options: Any) -> dict[str, tuple[bool, str]]:
    """The checks by name, with a coordinator that answers; "wrong" names those that failed."""
    with answering(federation / "coordinator", fleet_port(federation), how or Coordinator(), **options):
        checks = {check.what: (check.ok, check.found) for check in check_site(federation / "sites" / "ghent")}
    return checks


def wrong(checks: dict[str, tuple[bool, str]]) -> dict[str, str]:
    return {what: found for what, (ok, found) in checks.items() if not ok}


def set_env(federation: Path, key: str, value: str) -> None:
    path = federation / "sites" / "ghent" / "site.env"
    lines = [f"{key}={value}" if line.startswith(f"{key}=") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def test_a_site_that_is_ready(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(federation / "coordinator", fleet_port(federation), Coordinator()), pytest.raises(SystemExit) as stopped:
        main(["deploy", "join", str(federation / "sites" / "ghent"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0 and said["ok"] is True, said
    found = {check["what"]: check["found"] for check in said["checks"]}
    assert list(found) == [
        "settings", "coordinator", "clock", "port", "key", "disk", "device", "manifest", "policy", "ledger", "approvals", "programs",
    ]  # fmt: skip
    assert found["manifest"].startswith(f"{CASES} cases of ")
    assert "no app is approved yet" in found["approvals"]


def test_what_is_wrong_is_one_line_each_and_the_exit_code(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = federation / "sites" / "ghent"
    (site / "site.key").chmod(0o644)
    (site / "site.toml").write_text("[privacy]\nepsilon = 0\n")
    with pytest.raises(SystemExit) as stopped:
        main(["deploy", "join", str(site)])
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 2
    failed = {line.split(":")[0].removeprefix("✗ "): line for line in lines if line.startswith("✗")}
    assert set(failed) == {"coordinator", "key", "policy", "ledger"}
    assert "cannot be reached" in failed["coordinator"] and "firewall" in failed["coordinator"]
    assert "chmod 600" in failed["key"] and "privacy.epsilon" in failed["policy"]
    assert lines[-1] == "4 of 12 checks failed: coordinator, key, policy, ledger."


@pytest.mark.parametrize(
    ("late", "said"), [(timedelta(seconds=60), "ahead of"), (timedelta(seconds=-400), "behind"), (timedelta(seconds=-60), "")]
)
def test_a_clock_that_the_coordinator_would_turn_away(late: timedelta, said: str, federation: Path) -> None:
    found = wrong(look(federation, Coordinator(late=late)))
    assert set(found) == ({"clock"} if said else set())
    if said:
        assert (told := re.search(rf"this machine is (\d+) s {said} the coordinator", found["clock"])), found
        assert abs(int(told[1]) - abs(late.total_seconds())) < 20  # a busy machine takes its time over the question


def test_a_coordinator_without_ingress_is_told_unless_it_is_a_trial(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong(look(federation, Coordinator(status=415))) == {}
    monkeypatch.setattr(client.joining, "_local", lambda host: False)
    assert look(federation)["ingress"] == (True, "the sites' port refuses control calls")
    assert "Do not join" in wrong(look(federation, Coordinator(status=415)))["ingress"]


def test_certificates_of_another_ca_another_name_or_another_time(federation: Path, tmp_path: Path) -> None:
    home = federation / "coordinator"
    authority = Authority(load_certificate(federation / "ca" / "ca.crt"), load_pem_key(federation / "ca" / "ca.key"))
    public = load_pem_key(home / "server.key").public_key()

    def serve(certificate: Any) -> str:
        (home / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return wrong(look(federation))["coordinator"]

    assert "has expired" in serve(authority.certify("localhost", public, 0, ("localhost",)))
    assert "made out to another name" in serve(authority.certify("elsewhere", public, 9, ("elsewhere.example",)))
    (tmp_path / "other").mkdir()
    other = describe(tmp_path / "other", coordinator='host = "localhost"')
    made(other)
    foreign = tmp_path / "other" / "out"
    for name in ("server.crt", "server.key"):
        (home / name).write_bytes((foreign / "coordinator" / name).read_bytes())
    found = wrong(look(federation))["coordinator"]
    assert "not of this federation's CA" in found and "fingerprint" in found


def test_a_port_that_speaks_something_else(federation: Path) -> None:
    assert "does not speak TLS" in wrong(look(federation, tls=False))["coordinator"]


def test_a_certificate_that_ends_soon_is_remarked_on(tmp_path: Path, federation: Path) -> None:
    described = load_federation(federation.parent / "federation.toml")
    for name in ("server.crt", "server.key"):
        (federation / "coordinator" / name).unlink()
    make_folders(described.model_copy(update={"validity_days": 5}), federation)
    ok, found = look(federation)["coordinator"]
    assert ok and "valid for 4 more days; it ends soon" in found


def test_keys_that_do_not_fit(federation: Path, tmp_path: Path) -> None:
    site = federation / "sites" / "ghent"
    (site / "site.pub").write_bytes(make_site_key(tmp_path / "other").read_bytes())
    assert "not the public half" in wrong(look(federation))["key"]
    (site / "site.pub").unlink()
    assert "tmca deploy key" in wrong(look(federation))["key"]
    (site / "superexec.secret").unlink()
    assert "superexec.secret is not there" in wrong(look(federation))["key"]


def test_ports_disk_and_gpu(federation: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        set_env(federation, "RUNTIME_PORT", str(taken.getsockname()[1]))
        set_env(federation, "FREE_GB", "1e9")
        set_env(federation, "GPU", "1")
        client.joining.WAIT, before = 0.5, client.joining.WAIT
        try:
            found = wrong(look(federation))
        finally:
            client.joining.WAIT = before
    assert "choose another RUNTIME_PORT" in found["port"]
    assert "1e+09 are needed" in found["disk"] and "make room" in found["disk"]
    import torch

    assert torch.cuda.is_available() or "sees no GPU" in found["device"]


def test_manifests_that_cannot_be_used(federation: Path, manifest: Path, tmp_path: Path) -> None:
    broken = manifest.with_name("broken.csv")
    broken.write_text(manifest.read_text().replace("images/", "nowhere/", 1))
    set_env(federation, "MANIFEST", str(broken))
    assert f"`tmca data check {broken}` lists all" in wrong(look(federation))["manifest"]
    several = write(tmp_path / "several", sites=2, cases=6, seed=0, size=32)
    set_env(federation, "MANIFEST", str(several))
    assert "and not 'ghent'" in wrong(look(federation))["manifest"]
    set_env(federation, "MANIFEST", "''")
    assert "MANIFEST is empty" in wrong(look(federation))["manifest"]
    set_env(federation, "MANIFEST", str(tmp_path / "not-there.csv"))
    assert "not-there.csv" in wrong(look(federation))["manifest"]


def test_a_missing_or_damaged_ledger(federation: Path) -> None:
    ledger = federation / "sites" / "ghent" / "state" / "ledger"
    (record,) = [path for path in ledger.iterdir() if path.suffix == ".jsonl"]
    record.write_text(record.read_text().replace("created", "creatde"))
    assert "ledger" in wrong(look(federation))
    ledger.rename(ledger.with_name("away"))
    assert f"tmca privacy ledger init {ledger}" in wrong(look(federation))["ledger"]


def test_settings_that_cannot_be_read_end_it(federation: Path) -> None:
    set_env(federation, "COORDINATOR", "localhost")
    assert list(look(federation)) == ["settings"]
    assert "COORDINATOR is the coordinator's host:port" in wrong(look(federation))["settings"]


@pytest.mark.parametrize(
    "change", ["supernode.sh", "units/tmca-work.service", "compose.yaml", "Dockerfile", "units/other.service", "work.sh"]
)
def test_a_script_that_the_installed_version_does_not_make_is_named(federation: Path, change: str) -> None:
    site = federation / "sites" / "ghent"
    assert "programs" not in wrong({check.what: (check.ok, check.found) for check in check_site(site)})
    set_env(federation, "FREE_GB", "1")  # what is the site's to change may change
    path = site / change
    if change == "work.sh":
        path.unlink()
    else:
        path.write_text((path.read_text() if path.exists() else "[Service]\n") + "# and send it all elsewhere\n")
    found = wrong({check.what: (check.ok, check.found) for check in check_site(site)})
    assert found["programs"].startswith(f"{change}: not as tmca-fl")


def test_a_site_is_told_nothing_of_the_others(tmp_path: Path) -> None:
    sites = ("name = 'ghent'\nmanifest = '/data/ghent.csv'", "hannover")
    made(describe(tmp_path, coordinator='host = "localhost"\noperators = ["anna"]', sites=sites))
    held = "".join(path.read_text() for path in (tmp_path / "out" / "sites" / "hannover").glob("*.json"))
    assert held and not [word for word in ("ghent", "anna") if word in held]
