"""Rows: who has no key, no certificate or a wrong one, and knocks at the coordinator's ports or pretends to be it."""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import sys
from pathlib import Path

from simulations.processes import free_port
from simulations.rehearsal import impostor
from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.stage import Stage
from tmca_core.deploy.certificates import Authority, load_certificate, load_pem_key, open_authority
from tmca_core.deploy.ingress import CONTROL_PROBE
from tmca_core.deploy.keys import KEY, make_site_key

PULL = "/v1/fleet/pull-messages"
PROTOBUF = {"Content-Type": "application/protobuf", "Accept": "application/protobuf"}
_TOLD = re.compile(r"\[code: \d+\][^\n]*|\[SSL: [^\n]*")


def knock(port: int, path: str, context: ssl.SSLContext | None, body: bytes = b"", headers: dict[str, str] | None = None) -> int | str:
    """Call a path as it is written, over plain HTTP where there is no context: the status, or what kept an answer from coming."""
    connection = (
        http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
        if context
        else http.client.HTTPConnection("localhost", port, timeout=30)
    )
    try:
        connection.request("POST", path, body, {**PROTOBUF, **(headers or {})})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def trusting(stage: Stage, certificate: Path | None = None) -> ssl.SSLContext:
    """TLS towards the federation's server, with an operator's certificate where a folder is given."""
    context = ssl.create_default_context(cafile=str(stage.ca))
    if certificate:
        context.load_cert_chain(certificate / "operator.crt", certificate / "operator.key")
    return context


def plain_http(stage: Stage) -> str:
    """Speak HTTP where TLS is spoken."""
    status = knock(stage.fleet, PULL, None)
    expect(status == 400 or isinstance(status, str), f"answered with {status}")
    return f"no call is taken ({status})"


def foreign_authority(stage: Stage) -> str:
    """A SuperNode of another federation meets this server, and the other way round."""
    place = stage.scratch("foreign-authority")
    open_authority(place, "elsewhere", 10)
    return _turned_away(stage, "foreign-authority", "certificate verify failed", ca=place / "ca.crt")


def no_key(stage: Stage) -> str:
    """A SuperNode without a key would register itself."""
    return _turned_away(stage, "no-key", "must be registered", key=None)


def unregistered_key(stage: Stage) -> str:
    """A SuperNode with a key that no coordinator took in."""
    return _turned_away(stage, "unregistered-key", "Failed to activate")


def _turned_away(stage: Stage, name: str, told: str, *, ca: Path | None = None, key: Path | None = Path()) -> str:
    """Start a SuperNode that must not get in: it ends with the reason, and no node is listed that does not belong.

    Args:
        key: of the SuperNode; Path(): a new one; None: it has none.
    """
    if key == Path():
        make_site_key(stage.scratch(f"{name}-node"))
        key = stage.folder / "scratch" / f"{name}-node" / KEY
    log = end_of_node(stage, f"stranger-{name}", f"localhost:{stage.fleet}", ca or stage.ca, key)
    expect(told in log, f"the SuperNode did not say '{told}': {log[-300:]}")
    listed = stage.nodes()
    expect(listed == stage.known, f"listed are {len(listed)} SuperNodes, {len(stage.known)} belong here")
    said = _TOLD.search(log)
    return f"the SuperNode ended: {said[0] if said else told}; the {len(listed)} that belong here stay online"


def end_of_node(stage: Stage, name: str, address: str, ca: Path, key: Path | None, **environment: str) -> str:
    """Start a SuperNode that is expected to end by itself; what it said."""
    own = ("--auth-supernode-private-key", str(key)) if key else ()
    before = dict(stage.processes.environment)
    stage.processes.environment.update(environment)
    try:
        stage.start(
            name, "tmca", "deploy", "node", "--", "--superlink", address, "--root-certificates", str(ca), *own, "--isolation", "process",
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", 'site="stranger" manifest="/nowhere.csv"',
        )  # fmt: skip
    finally:
        stage.processes.environment = before
    try:
        stage.until(lambda: stage.pid(name) is None, f"the SuperNode '{name}' to end")
    finally:
        if stage.pid(name):
            stage.kill(name)
    return stage.log(name)


def expired(stage: Stage) -> str:
    """The server's certificate is of the right CA, and over."""
    return _impostor(stage, "expired", ("localhost", "127.0.0.1"), 0, "has expired")


def other_host(stage: Stage) -> str:
    """The server's certificate is of the right CA and of another machine."""
    return _impostor(stage, "other-host", ("elsewhere.example.org",), 30, "made out to another name")


def _impostor(stage: Stage, name: str, hosts: tuple[str, ...], days: int, told: str) -> str:
    """Put a server with such a certificate in the coordinator's place: `deploy join` says so, the SuperNode does not say a word to it."""
    from cryptography.hazmat.primitives import serialization

    from tmca_core.deploy.keys import new_key

    place, port, site = stage.scratch(name), free_port(), stage.names[0]
    authority = Authority(load_certificate(stage.ca), load_pem_key(stage.ca.with_name("ca.key")))
    key = new_key()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (place / "server.key").write_bytes(key.private_bytes(*form))
    certificate = authority.certify(hosts[0], key.public_key(), days, hosts)
    (place / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    server = f"impostor-{name}"
    stage.start(server, sys.executable, impostor.__file__, str(port), str(place / "server.crt"), str(place / "server.key"))
    try:
        stage.until(lambda: "listening" in stage.log(server), "the impostor to listen")
        copy = place / "site"
        shutil.copytree(stage.site(site), copy, ignore=shutil.ignore_patterns("state"))
        env = re.sub(r"(?m)^COORDINATOR=.*", f"COORDINATOR=localhost:{port}", (copy / "site.env").read_text())
        (copy / "site.env").write_text(env)
        joined = stage.run("tmca", "deploy", "join", copy, "--json")
        expect(joined.returncode == 2 and told in joined.stdout, f"deploy join ended with {joined.returncode}: {joined.stdout[:300]}")
        log = end_of_node(stage, f"stranger-{name}", f"localhost:{port}", stage.ca, stage.site(site) / KEY)
        expect("certificate verify failed" in log, f"the SuperNode said {log[-300:]}")
        expect("HEARD /v1/fleet" not in stage.log(server), f"the impostor heard {stage.log(server)[-300:]}")
    finally:
        stage.kill(server)
    return f"deploy join: '{told}', exit code 2; the site's SuperNode ended before it sent anything"


def control_on_fleet(stage: Stage) -> str:
    """Ask the sites' port to list and start runs, straight and by detours."""
    trust = trusting(stage)
    paths = (CONTROL_PROBE, "/v1/control/start-run", "/v1/fleet/../control/list-runs", "//v1/control/list-runs", "/v1/runtime/acquire-task",
             "/v1/fleet/%2e%2e/control/list-runs", "/health")  # fmt: skip
    answers = {path: knock(stage.fleet, path, trust) for path in paths}
    expect(set(answers.values()) == {403}, f"answered: {answers}")
    return f"{len(paths)} paths, each 403{_logged(stage, CONTROL_PROBE, '403')}"


def control_without_certificate(stage: Stage) -> str:
    """Come to the operators' port with nothing to show."""
    status = knock(stage.federation.coordinator.control_port, CONTROL_PROBE, trusting(stage))
    expect(status == 400, f"answered with {status}")
    return f"400, no certificate{_logged(stage, CONTROL_PROBE, '400')}"


def control_with_foreign_certificate(stage: Stage) -> str:
    """Come to the operators' port with a certificate of another CA, and with one of this CA that is no operator's."""
    from tmca_core.deploy.certificates import issue_operator
    from tmca_core.deploy.folders import make_operator_key

    answers = []
    own = Authority(load_certificate(stage.ca), load_pem_key(stage.ca.with_name("ca.key")))
    for name, authority in (("elsewhere", open_authority(stage.scratch("elsewhere"), "elsewhere", 10)), ("former", own)):
        folder = stage.scratch(f"operator-{name}")
        make_operator_key(folder, name)
        issue_operator(folder, authority, name, 1)
        answers.append(knock(stage.federation.coordinator.control_port, CONTROL_PROBE, trusting(stage, folder)))
    expect(answers == [400, 403], f"answered with {answers}")
    return "400 with one of another CA, 403 with one that is no operator's (any more)"


def web_page_at_forwarder(stage: Stage) -> str:
    """A page in an operator's browser calls the forwarder: under a name of its own that means this machine, and under the machine's."""
    port = stage.federation.coordinator.forward_port
    pages = ({"Host": f"evil.example:{port}"}, {"Origin": f"http://localhost:{port}"}, {"Origin": "null"})
    answers = [knock(port, CONTROL_PROBE, None, headers=page) for page in pages]
    expect(answers == [403] * len(pages), f"answered with {answers}")
    own = knock(port, CONTROL_PROBE, None)
    expect(own not in (400, 403) and isinstance(own, int), f"an operator's own call is answered with {own}")
    return f"403 to each of {len(pages)}, {own} to the operator's own call"


def _logged(stage: Stage, path: str, status: str) -> str:
    lines = (stage.trial / "coordinator" / "state" / "ingress.jsonl").read_text().splitlines()
    expect(any(path in line and f'"status": "{status}"' in line for line in lines), "the ingress has not logged it")
    return ", in the ingress's log"


ROWS = (
    Row("plain-http", "intrusion", "plain HTTP to the sites' port", "no call is taken", plain_http),
    Row("foreign-authority", "intrusion", "a SuperNode that trusts another CA", "it refuses the server and ends", foreign_authority),
    Row("no-key", "intrusion", "a SuperNode without a key", "turned away, and not listed", no_key),
    Row("unregistered-key", "intrusion", "a SuperNode with a key that is not registered", "turned away, and not listed", unregistered_key),
    Row("expired-certificate", "intrusion", "a server with an expired certificate in the coordinator's place",
        "deploy join says so; the SuperNode sends nothing", expired),
    Row("other-host", "intrusion", "a server with another machine's certificate in the coordinator's place",
        "deploy join says so; the SuperNode sends nothing", other_host),
    Row("control-on-fleet", "intrusion", "control and runtime calls to the sites' port", "403, and logged", control_on_fleet,
        nginx=True),
    Row("control-no-certificate", "intrusion", "the control port without a client certificate", "400, and logged",
        control_without_certificate, nginx=True),
    Row("control-foreign-certificate", "intrusion", "the control port with another CA's certificate, and with one that is no operator's",
        "400 and 403", control_with_foreign_certificate, nginx=True),
    Row("forwarder-web-page", "intrusion", "a web page in an operator's browser calls the forwarder", "403", web_page_at_forwarder,
        nginx=True),
)  # fmt: skip
