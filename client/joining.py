"""`tmca deploy join`: is this hospital's machine ready to take part? One line a check, each with what to do."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.request import urlopen

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError, TmcaError

if TYPE_CHECKING:
    from tmca_core.deploy.site_env import SiteEnv

SOON = 14
"""Days before its end from which a certificate is remarked on."""
WAIT = 10.0
"""Seconds for the coordinator to answer."""
_X509 = {
    9: "is not valid yet: set this machine's clock (NTP)",
    10: "has expired, or this machine's clock is wrong: ask the coordinator for a new certificate",
    62: "is made out to another name: COORDINATOR in site.env must be the name that the coordinator gave you",
    64: "is made out to another address: COORDINATOR in site.env must be what the coordinator gave you",
}
"""What OpenSSL's verification codes mean here; of all others the issuer is unknown."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `found` says what is there, and where it is not ok also what to do."""

    what: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Answer:
    """What the coordinator said to a control call on the fleet port.

    Attributes:
        status: of HTTP.
        ahead: seconds that this machine's clock is ahead of the coordinator's, to half a second or so; None: it named no date.
        until: end of its certificate.
    """

    status: int
    ahead: float | None
    until: datetime


def join(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder, as the coordinator sent it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check this site before it takes part: clock, disk, GPU, ports, certificates, key, manifest, policy, ledger and scripts."""
    if not (folder := folder.expanduser().resolve()).is_dir():
        raise ConfigError(f"{folder} is no folder: name the one that the coordinator sent.")
    checks = []
    for check in check_site(folder):
        checks.append(check)
        if not as_json:
            print(f"{'✓' if check.ok else '✗'} {check.what}: {check.found}", flush=True)
    wrong = [check.what for check in checks if not check.ok]
    value = {"ok": not wrong, "checks": [asdict(check) for check in checks]}
    emit(as_json, value, f"{len(wrong)} of {len(checks)} checks failed: {', '.join(wrong)}." if wrong else "This site is ready.")
    if wrong:
        raise typer.Exit(2)


def check_site(folder: Path) -> Iterator[Check]:
    """All checks of a site's folder, as they are made; one that fails does not keep the others from being made."""
    from tmca_core.deploy.site_env import load_site_env

    try:
        site = load_site_env(folder)
    except TmcaError as error:
        yield Check("settings", False, str(error))
        return
    yield Check("settings", True, f"site '{site.site}', coordinator {site.host}:{site.port}")
    answers: list[Answer] = []
    yield _tried("coordinator", lambda: _coordinator(folder, site, answers))
    yield _tried("clock", lambda: _clock(folder, answers[0] if answers else None))
    if answers and not _local(site.host):
        yield _tried("ingress", lambda: _ingress(answers[0]))
    yield _tried("port", lambda: _port(site.runtime_port))
    yield _tried("key", lambda: _key(folder))
    yield _tried("disk", lambda: _disk(folder, site))
    yield _tried("device", lambda: _device(site.gpu))
    yield _tried("manifest", lambda: _manifest(site))
    yield _tried("policy", lambda: _policy(folder, site))
    yield _tried("ledger", lambda: _ledger(folder))
    yield _tried("approvals", lambda: _approvals(folder))
    yield _tried("programs", lambda: _programs(folder))


def _tried(what: str, check: Callable[[], str]) -> Check:
    try:
        return Check(what, True, check())
    except (TmcaError, OSError) as error:
        return Check(what, False, " ".join(str(error).split()))


def _coordinator(folder: Path, site: SiteEnv, answers: list[Answer]) -> str:
    """Reach it, and hold its certificate against the CA: chain, dates and host name."""
    from tmca_core.deploy.certificates import fingerprint, load_certificate

    authority = load_certificate(folder / "ca.crt")
    where = f"{site.host}:{site.port}"
    try:
        answers.append(_ask(folder / "ca.crt", site.host, site.port))
    except ssl.SSLCertVerificationError as error:
        unknown = (
            f"is not of this federation's CA ({error.verify_message}): something on the way replaces certificates, or ca.crt is of another "
            f"federation. Compare its fingerprint with the coordinator by telephone: {fingerprint(authority)}"
        )
        raise ConfigError(f"the certificate of {where} {_X509.get(error.verify_code, unknown)}.") from None
    except ssl.SSLError as error:
        raise ConfigError(f"{where} does not speak TLS ({error.reason}): it is another program's port, or a proxy interferes.") from None
    except socket.gaierror:
        raise ConfigError(
            f"the name {site.host} cannot be resolved: ask your network's people, or the coordinator for its address."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"{where} cannot be reached ({error}): the firewall must let TCP out to it, and the coordinator must be running."
        ) from None
    left = (answers[0].until - datetime.now(UTC)).days
    soon = "; it ends soon: ask the coordinator for a new one" if left < SOON else ""
    return f"{where} answers with a certificate of this CA, valid for {left} more days{soon}"


def _ask(ca: Path, host: str, port: int) -> Answer:
    """A control call that changes nothing, on the fleet port."""
    from cryptography import x509

    from tmca_core.deploy.ingress import CONTROL_PROBE

    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection(host, port, timeout=WAIT, context=context)
    try:
        connection.connect()
        certificate = x509.load_der_x509_certificate(connection.sock.getpeercert(True) or b"")
        before = time.time()
        connection.request("POST", CONTROL_PROBE, b"", {"Content-Type": "application/x-protobuf"})
        reply = connection.getresponse()
        here, date = (before + time.time()) / 2, reply.headers.get("Date")
        # The header is cut to whole seconds: half a second more is the best guess.
        ahead = here - parsedate_to_datetime(date).timestamp() - 0.5 if date else None
        return Answer(reply.status, ahead, certificate.not_valid_after_utc)
    finally:
        connection.close()


def _clock(folder: Path, answer: Answer | None) -> str:
    """A SuperNode signs the time: one that is off is turned away."""
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from tmca_core.deploy.certificates import load_certificate

    authority, now = load_certificate(folder / "ca.crt"), datetime.now(UTC)
    if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
        raise ConfigError(
            f"it is {now:%Y-%m-%d %H:%M} UTC here, and the CA is valid from {authority.not_valid_before_utc:%Y-%m-%d} to "
            f"{authority.not_valid_after_utc:%Y-%m-%d}: set the clock (NTP), or ask the coordinator for a new ca.crt."
        )
    if answer is None or answer.ahead is None:
        return f"{now:%Y-%m-%d %H:%M} UTC, within the CA's validity; the coordinator's clock could not be asked"
    if not -TIMESTAMP_TOLERANCE < answer.ahead < SYSTEM_TIME_TOLERANCE:
        way = "ahead of" if answer.ahead > 0 else "behind"
        raise ConfigError(
            f"this machine is {abs(answer.ahead):.0f} s {way} the coordinator, which turns away a SuperNode that is "
            f"{SYSTEM_TIME_TOLERANCE} s ahead or {TIMESTAMP_TOLERANCE} s behind: set the clock (NTP) here or there."
        )
    return f"{answer.ahead:+.1f} s against the coordinator's"


def _ingress(answer: Answer) -> str:
    if answer.status != http.HTTPStatus.FORBIDDEN:
        raise ConfigError(
            f"the sites' port answers control calls (HTTP {answer.status} instead of 403): whoever reaches it can submit code. Do not "
            "join; tell the coordinator that its SuperLink stands without the ingress (ingress.sh)."
        )
    return "the sites' port refuses control calls"


def _port(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=WAIT) as reply:
                    if reply.status == http.HTTPStatus.OK:
                        return f"{port}: a SuperNode answers there already"
            except (OSError, http.client.HTTPException):
                pass
            raise ConfigError(f"127.0.0.1:{port} cannot be used ({error.strerror}): choose another RUNTIME_PORT in site.env.") from None
    return f"127.0.0.1:{port} is free"


def _key(folder: Path) -> str:
    from tmca_core.deploy.folders import SHARED
    from tmca_core.deploy.keys import KEY, PUBLIC, load_public, load_site_key

    path, remedy = folder / KEY, f"`tmca deploy key {folder}` makes what is missing."
    for file in (path, folder / SHARED):
        if not file.exists():
            raise ConfigError(f"{file} is not there. {remedy}")
        if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            raise ConfigError(f"{file} can be read by others (mode {mode:04o}): chmod 600 {file}, and make a new one if somebody may have.")
    key = load_site_key(path)
    if not (folder / PUBLIC).exists():
        raise ConfigError(f"{folder / PUBLIC} is not there. {remedy}")
    if load_public(folder / PUBLIC) != key.public_key():
        raise ConfigError(f"{folder / PUBLIC} is not the public half of {KEY}: move it away; {remedy} Then send it to the coordinator.")
    return f"{KEY} is readable by its owner alone and belongs to {PUBLIC}"


def _disk(folder: Path, site: SiteEnv) -> str:
    found = []
    for place in dict.fromkeys((folder / "state", site.cache)):
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{there} cannot be written by this user: chown it to the user that the SuperNode runs as.")
        free = shutil.disk_usage(there).free / 1e9
        if free < site.free_gb:
            raise ConfigError(
                f"{free:.1f} GB are free for {place}, and {site.free_gb:g} are needed: make room, or name another CACHE in site.env."
            )
        found.append(f"{free:.0f} GB free for {place}")
    return "; ".join(found)


def _device(gpu: bool) -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"
    if gpu:
        raise ConfigError(
            f"torch {torch.__version__} sees no GPU: look at `nvidia-smi` and install a CUDA build of torch; or set GPU=0 in site.env "
            "to train on the CPU."
        )
    return f"CPU, torch {torch.__version__}"


def _manifest(site: SiteEnv) -> str:
    from tmca_core.cases.check import check_manifest

    path = _named(site)
    report = check_manifest(path)
    if report.skipped:
        bad = len(report.skipped)
        raise ConfigError(
            f"{bad} of {bad + report.cases} rows of {path} cannot be used. The first: {report.skipped[0]} "
            f"`tmca data check {path}` lists all."
        )
    if report.error:
        raise ConfigError(report.error)
    if len(report.sites) > 1 and site.site not in report.sites:
        raise ConfigError(
            f"{path} holds the sites {', '.join(report.sites)} and not '{site.site}': name this site's own manifest in site.env."
        )
    return f"{report.cases} cases of {report.patients} patients in {path}"


def _policy(folder: Path, site: SiteEnv) -> str:
    from tmca_core.privacy.policy import load_policy
    from tmca_core.text.screen.gate import hold_reports

    policy = load_policy(folder / "site.toml")
    if site.manifest:
        hold_reports(site.manifest, policy.reports)
    private = f"up to ε = {policy.privacy.epsilon:g}" if policy.privacy.required else "NOT required: plain updates may leave"
    return f"noise {private}; figures that may leave: {', '.join(policy.metrics.allowed) or 'none'}"


def _ledger(folder: Path) -> str:
    from tmca_core.privacy.policy import load_policy, open_ledger

    policy = load_policy(folder / "site.toml")
    if not Path(policy.ledger.folder).exists():
        raise ConfigError(f"there is no ledger yet: tmca privacy ledger init {policy.ledger.folder}")
    spent = open_ledger(policy).read()
    return f"{spent.state}, {len(spent.entries)} entries, {spent.told(policy.privacy.delta)} spent"


def _approvals(folder: Path) -> str:
    from tmca_core.record import Record

    home = folder / "state"
    if not (home / "record").exists():
        return f"no app is approved yet, so every run is refused: tmca deploy approve APP --home {home}"
    return f"{len(Record.open(home / 'record').approved())} approved"


def _programs(folder: Path) -> str:
    """Scripts, units and container files run before, and beside, what the hospital approves."""
    from tmca_core import __version__
    from tmca_core.deploy.folders import foreign_programs

    other, programs = foreign_programs(folder)
    if other:
        raise ConfigError(
            f"{', '.join(other)}: not as tmca-fl {__version__}, installed here, makes it. No approval covers what these do: read them "
            "before anything is started or copied, or ask the coordinator for the folder of this version."
        )
    return f"scripts, units and container files are as tmca-fl {__version__} makes them; they run what is in {programs}"


def _named(site: SiteEnv) -> Path:
    if site.manifest is None:
        raise ConfigError("MANIFEST is empty in site.env: name this site's table of cases.")
    return site.manifest


def _local(host: str) -> bool:
    from tmca_core.deploy.schema import is_loopback

    return is_loopback(host)
