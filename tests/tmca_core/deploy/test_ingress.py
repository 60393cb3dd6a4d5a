"""The ingress: what it lets through against Flower's own list of paths, and a real nginx before an upstream that says what it saw."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from federations import describe, made

from tmca_core.deploy.ingress import CONTROL_PREFIX, CONTROL_PROBE, FLEET_PATHS

BODY = 6_000_000  # more than the largest piece of a tensor that Flower sends


def test_the_paths_are_those_of_the_installed_flower() -> None:
    from flwr.superlink.routers.control import router as control
    from flwr.superlink.routers.fleet.router import router as fleet

    assert sorted(FLEET_PATHS) == sorted(route.path for route in fleet.routes)  # type: ignore[attr-defined]
    paths = {route.path for route in control.routes}  # type: ignore[attr-defined]
    assert CONTROL_PROBE in paths and all(path.startswith(CONTROL_PREFIX) for path in paths)


def test_nothing_but_calls_of_supernodes_passes_the_fleet_port_and_the_runtime_passes_none(tmp_path: Path) -> None:
    made(describe(tmp_path))
    text = (tmp_path / "out" / "coordinator" / "nginx.conf").read_text()
    fleet, control = text.split("    server {\n")[1:]
    assert "ssl_verify_client" not in fleet and "    ssl_verify_client on;" in control
    passed = [line.split()[1].rstrip(";") for line in fleet.splitlines() if "proxy_pass" in line]
    assert passed == [f"https://superlink{path}" for path in FLEET_PATHS]
    assert [line.split()[1] for line in control.splitlines() if "proxy_pass" in line] == [f"https://superlink{CONTROL_PREFIX};"]
    assert "runtime" not in text.replace("runtime API neither", "")


@pytest.fixture(scope="module")
def ports() -> list[int]:
    with socket.socket() as a, socket.socket() as b, socket.socket() as c, socket.socket() as d:
        for probe in (a, b, c, d):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (a, b, c, d)]


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Path]:
    """The generated nginx, an operator's forwarder, and in place of the SuperLink a server that answers with what it was asked."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("federation")
    fleet, control, superlink, forward = ports
    numbers = f"fleet_port = {fleet}\ncontrol_port = {control}\nsuperlink_port = {superlink}\nforward_port = {forward}"
    made(describe(folder, coordinator=f'host = "localhost"\noperators = ["tester", "former"]\n{numbers}'))
    home = folder / "out" / "coordinator"
    # One of the operators has left: its certificate is still valid.
    former = home / "operators" / "former"
    shutil.copytree(former, folder / "former")
    made(describe(folder, coordinator=f'host = "localhost"\noperators = ["tester"]\n{numbers}'))

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            self.rfile.read(length)
            said = f"{self.path} {length} {self.headers.get('flwr-signature')} {self.headers.get('flwr-public-key')}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", superlink), Echo)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.crt", home / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = [subprocess.Popen([home / "ingress.sh"]), subprocess.Popen([home / "operators" / "tester" / "forward.sh"])]
    try:
        for port in (fleet, control, forward):
            reach(port)
        yield folder
    finally:
        for process in started:
            process.terminate()
            process.wait(20)
        server.shutdown()
        server.server_close()


def reach(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}")


def post(
    folder: Path, port: int, path: str, *, who: Path | None = None, tls: bool = True, size: int = 0, more: dict[str, str] | None = None
) -> tuple[int, str]:
    headers = {"flwr-signature": "c2ln", "flwr-public-key": "a2V5", **(more or {})}
    if tls:
        context = ssl.create_default_context(cafile=str(folder / "out" / "ca" / "ca.crt"))
        if who:
            context.load_cert_chain(who / "operator.crt", who / "operator.key")
        connection: http.client.HTTPConnection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, b"x" * size, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_calls_of_supernodes_pass_whole_with_their_signature(ingress: Path, ports: list[int]) -> None:
    for path in FLEET_PATHS:
        assert post(ingress, ports[0], path) == (200, f"{path} 0 c2ln a2V5")
    assert post(ingress, ports[0], "/v1/fleet/push-object", size=BODY) == (200, f"/v1/fleet/push-object {BODY} c2ln a2V5")


@pytest.mark.parametrize(
    "path",
    [
        CONTROL_PROBE, "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/", "/v1/fleet", "/", "/health", "/docs",
        "/openapi.json",
        "/v1/fleet/../control/start-run", "/v1/fleet/pull-messages/../../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/", "/v1/fleet/pull-messages%00", "/V1/FLEET/PULL-MESSAGES", "//v1//control//start-run",
        "/v1/fleet/pull-messages;/../../control/start-run",
    ],
)  # fmt: skip
def test_everything_else_is_refused_on_the_fleet_port(path: str, ingress: Path, ports: list[int]) -> None:
    status, said = post(ingress, ports[0], path)
    assert status in (400, 403) and "c2ln" not in said, said


def test_a_path_that_climbs_back_is_passed_on_under_its_own_name(ingress: Path, ports: list[int]) -> None:
    # nginx resolves the dots; what the SuperLink sees is one of the listed names and not what was sent.
    climbing = "/v1/control/start-run/..%2f..%2ffleet/pull-messages"
    assert post(ingress, ports[0], climbing) == (200, "/v1/fleet/pull-messages 0 c2ln a2V5")


def test_the_control_port_asks_for_an_operators_certificate(ingress: Path, ports: list[int]) -> None:
    home = ingress / "out" / "coordinator"
    tester = home / "operators" / "tester"
    assert post(ingress, ports[1], CONTROL_PROBE, who=tester) == (200, f"{CONTROL_PROBE} 0 c2ln a2V5")
    refused, _ = post(ingress, ports[1], CONTROL_PROBE)
    assert refused == 400
    # Who has left has a certificate of the CA, and is no operator any more.
    assert post(ingress, ports[1], CONTROL_PROBE, who=ingress / "former")[0] == 403
    for path in ("/v1/runtime/acquire-task", "/v1/fleet/pull-messages", "/", "/v1/control/../runtime/acquire-task"):
        assert post(ingress, ports[1], path, who=tester)[0] == 403
    impostor = ingress / "impostor"
    impostor.mkdir(exist_ok=True)
    shutil.copy(home / "server.crt", impostor / "operator.crt")
    shutil.copy(home / "server.key", impostor / "operator.key")
    assert post(ingress, ports[1], CONTROL_PROBE, who=impostor)[0] in (400, 403)
    assert '"operator": "tester"' in (home / "state" / "ingress.jsonl").read_text()


def test_a_certificate_of_another_ca_is_refused(ingress: Path, ports: list[int], tmp_path: Path) -> None:
    made(describe(tmp_path))
    foreign = tmp_path / "out" / "coordinator" / "operators" / "tester"
    assert post(ingress, ports[1], CONTROL_PROBE, who=foreign)[0] == 400


def test_the_forwarder_presents_the_operators_certificate_and_passes_control_calls_alone(ingress: Path, ports: list[int]) -> None:
    assert post(ingress, ports[3], CONTROL_PROBE, tls=False) == (200, f"{CONTROL_PROBE} 0 c2ln a2V5")
    assert post(ingress, ports[3], "/v1/fleet/pull-messages", tls=False)[0] == 403


def test_the_forwarder_answers_no_web_page(ingress: Path, ports: list[int]) -> None:
    """A page whose name was made to mean this machine sends that name as Host; every page's call that may change something an Origin."""
    forward = ports[3]
    for host in (f"evil.example:{forward}", "evil.example", "127.0.0.1", f"127.0.0.1:{forward + 1}", f"127.0.0.1:{forward}.evil.example"):
        assert post(ingress, forward, CONTROL_PROBE, tls=False, more={"Host": host})[0] == 403, host
    for origin in (f"http://evil.example:{forward}", f"http://127.0.0.1:{forward}", "null"):
        assert post(ingress, forward, CONTROL_PROBE, tls=False, more={"Origin": origin})[0] == 403, origin
    for host in (f"127.0.0.1:{forward}", f"localhost:{forward}"):
        assert post(ingress, forward, CONTROL_PROBE, tls=False, more={"Host": host})[0] == 200
