"""The folders of a deployment: one for the coordinator, one for each site, one for the CA. Made again without losing anything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from tmca_core import __version__
from tmca_core.deploy.certificates import fingerprint, issue_operator, issue_server, key_pem, open_authority, operator_request
from tmca_core.deploy.ingress import CONTROL_PREFIX, FLEET_PATHS, control_host, fleet_listen
from tmca_core.deploy.keys import (
    KEY,
    PUBLIC,
    PublicKey,
    load_public,
    make_secret,
    make_site_key,
    new_key,
    public_line,
    read_bytes,
    write_new,
)
from tmca_core.deploy.schema import Federation, Site, bracketed
from tmca_core.deploy.site_env import NAME as SITE_ENV
from tmca_core.deploy.site_env import assignments
from tmca_core.errors import ConfigError, StorageError

UID = 10001
"""Of the user `tmca`, the same in containers and under systemd, so that a folder may move from one to the other."""
SHARED = "superexec.secret"
"""Of a SuperLink and its SuperExec, or of a SuperNode and its worker."""
LEDGER = "state/ledger"
"""Where a site's ledger is proposed to be: with everything else that its programs may write."""
COORDINATOR_SCRIPTS = ("superlink.sh", "superexec.sh", "ingress.sh", "register.sh", "flwr.sh")
DESCRIPTION = "federation.json"
"""In the coordinator's folder: what it was made from, with absolute paths. In a site's: what of it the site's own files were made from."""
SITE_SCRIPTS = ("supernode.sh", "work.sh")


@dataclass
class Made:
    """What a run of `deploy init` leaves.

    Attributes:
        fingerprint: sha256 of the CA's certificate.
        server_until, ca_until: days (ISO) on which the certificates end.
        waiting: sites whose public key is not there yet.
        operators_waiting: operators whose certificate request is not there yet.
        left: sites that the federation no longer names.
        ingress_changed: a running ingress goes by another nginx.conf until it is started again.
    """

    fingerprint: str
    server_until: str
    ca_until: str
    waiting: list[str] = field(default_factory=list)
    operators_waiting: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    ingress_changed: bool = False


def make_folders(federation: Federation, out: Path, *, make_keys: bool = False) -> Made:
    """Make or complete `out`/ca, `out`/coordinator and `out`/sites/NAME; keys, certificates, site.env and site.toml that are there stay.

    Args:
        make_keys: also the sites' and operators' own keys, in their folders: for a trial on one machine.

    Raises:
        ConfigError: what is there does not fit the federation; with what to do.
        StorageError: something cannot be written.
    """
    coordinator = federation.coordinator
    if make_keys and not coordinator.local:
        raise ConfigError(
            f"--make-keys is for a trial on one machine, and the coordinator is '{coordinator.host}'. Keys are made where they stay: "
            f"each site runs `tmca deploy key DIR` and sends {PUBLIC}."
        )
    home = out / "coordinator"
    _same_addresses(federation, out)
    authority = open_authority(out / "ca", federation.name, 10 * federation.validity_days)
    _same_federation(authority.certificate, federation.name, out)
    server = issue_server(home, authority, coordinator.host, federation.validity_days)
    made = Made(fingerprint(authority.certificate), _day(server), _day(authority.certificate))
    operators: dict[str, str] = {}
    for name in coordinator.operators:
        folder = home / "operators" / name
        if make_keys and not (folder / "operator.key").exists() and not (folder / "operator.crt").exists():
            make_operator_key(folder, name)
        certificate = issue_operator(folder, authority, name, federation.validity_days)
        if certificate is None:
            made.operators_waiting.append(name)
        else:
            operators[name] = f"{certificate.serial_number:X}".zfill((certificate.serial_number.bit_length() + 7) // 8 * 2)
    _gather_keys(federation, out, made, make_keys)
    _store(home / DESCRIPTION, federation.model_dump_json(indent=1) + "\n")
    make_secret(home / SHARED)
    before = read_bytes(home / "nginx.conf") if (home / "nginx.conf").exists() else None
    _coordinator_files(federation, home, out / "ca" / "ca.crt", operators)
    made.ingress_changed = before not in (None, read_bytes(home / "nginx.conf"))
    for site in federation.sites:
        _site_files(federation, site, out / "sites" / site.name, out / "ca" / "ca.crt", made.fingerprint)
    return made


def make_operator_key(folder: Path, name: str) -> Path:
    """Make an operator's key, and the request that the coordinator certifies.

    Returns:
        The request: what the coordinator gets.

    Raises:
        ConfigError: there is a key already.
        StorageError: it cannot be written.
    """
    if (folder / "operator.key").exists():
        raise ConfigError(f"{folder / 'operator.key'} is there already; send operator.csr, or choose another folder for another key.")
    key = new_key()
    write_new(folder / "operator.key", key_pem(key), private=True)
    write_new(folder / "operator.csr", operator_request(key, name))
    return folder / "operator.csr"


def make_site_secrets(folder: Path) -> Path:
    """A site's key pair, and the secret that its SuperNode and its worker share; what is there stays.

    Returns:
        The public half: what the coordinator gets.

    Raises:
        ConfigError, StorageError: see `make_site_key`.
    """
    make_secret(folder / SHARED)
    return make_site_key(folder)


def _gather_keys(federation: Federation, out: Path, made: Made, make_keys: bool) -> None:
    """The sites' public keys, in coordinator/keys."""
    kept = out / "coordinator" / "keys"
    kept.mkdir(parents=True, exist_ok=True)
    known: dict[bytes, str] = {}
    for site in federation.sites:
        own, place = out / "sites" / site.name, kept / f"{site.name}.pub"
        if make_keys and not site.public_key and not (place.exists() and not (own / KEY).exists()):
            make_site_secrets(own)
        given = Path(site.public_key) if site.public_key else own / PUBLIC
        if site.public_key or given.exists():
            _take(load_public(given), given, place, site.name)
        if not place.exists():
            made.waiting.append(site.name)
            continue
        line = public_line(load_public(place)).encode()
        if line in known:
            raise ConfigError(
                f"sites '{known[line]}' and '{site.name}' have the same public key: each makes its own with `tmca deploy key DIR`."
            )
        known[line] = site.name
    names = {site.name for site in federation.sites}
    for place in sorted(kept.glob("*.pub")):
        if place.stem not in names:
            place.rename(place.with_suffix(".left"))  # register.sh leaves it out
    made.left = sorted(place.stem for place in kept.glob("*.left") if place.stem not in names)


def _take(key: PublicKey, given: Path, place: Path, name: str) -> None:
    if place.exists() and load_public(place) != key:
        raise ConfigError(
            f"{given} is another key than site '{name}' had ({place}). If the site has told you so by telephone: unregister the old one "
            f"(coordinator/flwr.sh supernode list, then unregister), move {place} away and run this again."
        )
    if not place.exists():
        write_new(place, public_line(key).encode() + b"\n")


def _coordinator_files(federation: Federation, home: Path, ca: Path, operators: dict[str, str]) -> None:
    coordinator = federation.coordinator
    (home / "state").mkdir(exist_ok=True)
    _copy(ca, home / "ca.crt")
    values: dict[str, Any] = {"federation": federation, "coordinator": coordinator, "operators": operators, "forwarded": False}
    values |= {"fleet_paths": FLEET_PATHS, "control_prefix": CONTROL_PREFIX, "keys": "keys/", "uid": UID, "version": __version__}
    values |= {"control_host": control_host(coordinator), "fleet_listen": fleet_listen(coordinator)}
    values["control_listen"] = bracketed(coordinator.control_address)
    for script in COORDINATOR_SCRIPTS:
        _write(home / script, f"{script}.j2", values, executable=True)
    _write(home / "nginx.conf", "nginx.conf.j2", values)
    # In a container the ports are reached through the container's own interface, and the host says who may.
    _write(home / "nginx-compose.conf", "nginx.conf.j2", {**values, "fleet_listen": "0.0.0.0", "control_listen": "0.0.0.0"})  # noqa: S104
    _write(home / "compose.yaml", "coordinator-compose.yaml.j2", values)
    _write(home / "Dockerfile", "Dockerfile.j2", values)
    low = min(coordinator.fleet_port, coordinator.control_port) < 1024
    common = {**values, "folder": coordinator.folder, "devices": False, "also": ""}
    for name, what, after, low_port in (
        ("superlink", "SuperLink", "", False),
        ("superexec", "runs of the SuperLink", "tmca-superlink.service", False),
        ("ingress", "ingress of the SuperLink", "tmca-superlink.service", low),
    ):
        unit = {**common, "description": f"{federation.name}: {what}", "script": f"{name}.sh", "after": after, "low_port": low_port}
        _write(home / "units" / f"tmca-{name}.service", "unit.service.j2", unit)
    for name in coordinator.operators:
        folder = home / "operators" / name
        folder.mkdir(parents=True, exist_ok=True)
        _copy(ca, folder / "ca.crt")
        _write(folder / "forward.conf", "forward.conf.j2", values)
        for script in ("forward.sh", "flwr.sh"):
            _write(folder / script, f"{script}.j2", {**values, "forwarded": True}, executable=True)


def _site_files(federation: Federation, site: Site, folder: Path, ca: Path, shown: str) -> None:
    from tmca_core.config import commented

    (folder / "state").mkdir(parents=True, exist_ok=True)
    _copy(ca, folder / "ca.crt")
    policy = federation.policy
    if "ledger" not in policy.model_fields_set:
        policy = policy.model_copy(update={"ledger": policy.ledger.model_copy(update={"folder": LEDGER})})
    values = _site_values(federation, site)
    values |= {"fingerprint": shown, "ledger": policy.ledger.folder, "venv": str(Path(federation.programs).parent)}
    values["data"] = str(Path(site.manifest).parent) if site.manifest else ""
    if not (folder / SITE_ENV).exists():
        _write(folder / SITE_ENV, "site.env.j2", values)
    if not (folder / "site.toml").exists():
        head = f"# What '{site.name}' lets a run ask for. It is the hospital's; this is a proposal. docs/privacy.md explains every line.\n"
        _store(folder / "site.toml", head + commented(policy))
    _write(folder / "guide.md", "guide.md.j2", values)
    own = site.model_copy(update={"public_key": "", "manifest": ""})
    told = {"sites": (own,), "coordinator": federation.coordinator.model_copy(update={"operators": ()})}
    _store(folder / DESCRIPTION, federation.model_copy(update=told).model_dump_json(indent=1) + "\n")
    for name, text in site_programs(federation, site).items():
        _store(folder / name, text, executable=name in SITE_SCRIPTS)


def site_programs(federation: Federation, site: Site) -> dict[str, str]:
    """Name → text of what runs, or is run from, in a site's folder: the same wherever this version makes it from the same description."""
    values = _site_values(federation, site)
    found = {script: _rendered(f"{script}.j2", values) for script in SITE_SCRIPTS}
    found |= {"compose.yaml": _rendered("site-compose.yaml.j2", values), "Dockerfile": _rendered("Dockerfile.j2", values)}
    common = {**values, "folder": site.folder, "also": site.cache, "low_port": False}
    for name, what, after, devices in (
        ("supernode", "SuperNode", "", False),
        ("work", "worker", "tmca-supernode.service", True),
    ):
        unit = {
            **common,
            "description": f"{federation.name}: {what} of {site.name}",
            "script": f"{name}.sh",
            "after": after,
            "devices": devices,
        }
        found[f"units/tmca-{name}.service"] = _rendered("unit.service.j2", unit)
    return found


def foreign_programs(folder: Path) -> tuple[list[str], str]:
    """Files in a site's folder that run and are not what this version makes from the description beside them, and where programs are by it.

    Raises:
        ConfigError: there is no description, or it is none.
    """
    try:
        federation = Federation.model_validate_json(read_bytes(folder / DESCRIPTION))
    except ValidationError:
        raise ConfigError(f"{folder / DESCRIPTION} is no description of a federation: ask the coordinator for the folder again.") from None
    expected = site_programs(federation, federation.sites[0])
    there = {
        path.relative_to(folder).as_posix() for pattern in ("*.sh", "units/*", "compose*", "Dockerfile*") for path in folder.glob(pattern)
    }
    found = sorted(name for name in there | expected.keys() if name not in there or not _is(folder / name, expected.get(name)))
    return found, federation.programs


def _is(path: Path, text: str | None) -> bool:
    return text is not None and read_bytes(path) == text.encode()


def _site_values(federation: Federation, site: Site) -> dict[str, Any]:
    return {"federation": federation, "coordinator": federation.coordinator, "site": site, "uid": UID, "version": __version__}


def _same_federation(certificate: x509.Certificate, name: str, out: Path) -> None:
    said = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    if said != f"{name} federation CA":
        raise ConfigError(f"{out} holds the '{said}', and this is the federation '{name}': choose another folder.")


def _same_addresses(federation: Federation, out: Path) -> None:
    """What the sites were told stays, or somebody has to tell them."""
    address = federation.coordinator.address
    for site in federation.sites:
        place = out / "sites" / site.name / SITE_ENV
        if place.exists() and (told := assignments(place).get("COORDINATOR")) != address:
            raise ConfigError(
                f"{place} says COORDINATOR={told}, and the federation now has {address}. Put the old address back; or tell every site to "
                f"change COORDINATOR in its site.env, change it in {out / 'sites'} as well, and for another host move "
                "coordinator/server.crt and server.key away. Then run this again."
            )


def _write(path: Path, template: str, values: dict[str, Any], *, executable: bool = False) -> None:
    _store(path, _rendered(template, values), executable=executable)


def _rendered(template: str, values: dict[str, Any]) -> str:
    return _templates().get_template(template).render(values)


def _store(path: Path, text: str, *, executable: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if executable else 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}.") from None


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error}.") from None


def _templates() -> Environment:
    from shlex import quote

    loader = PackageLoader("tmca_core.deploy")
    # Nothing here is HTML; what goes into scripts and units is held to harmless characters by the schema, and quoted.
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=False)  # noqa: S701
    environment.trim_blocks = environment.lstrip_blocks = environment.keep_trailing_newline = True
    environment.filters["quote"] = quote
    return environment


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
