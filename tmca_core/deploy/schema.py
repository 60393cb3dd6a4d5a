"""`federation.toml`: who takes part and where, from which everything else of a deployment is made."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from tmca_core.errors import ConfigError
from tmca_core.privacy.policy import Policy
from tmca_core.settings import Section


def _is_host(text: str) -> str:
    """A DNS name or an IP address; what names neither could end up in a script."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.split(".")
        if len(text) > 253 or not all(0 < len(label) < 64 and label.strip("-") == label for label in labels):
            raise ValueError(f"'{text}' is neither a host name nor an IP address") from None
        if not all(character.isascii() and (character.isalnum() or character == "-") for label in labels for character in label):
            raise ValueError(f"'{text}' is neither a host name nor an IP address") from None
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")]
"""It names folders, units and certificates."""
Host = Annotated[str, AfterValidator(_is_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Place = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f\"'`$\\]*$")]
"""A path without what a shell, a unit or a TOML string could misread."""
Folder = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9._/-]+$")]


class Coordinator(Section):
    """Where the SuperLink runs, behind its ingress."""

    host: Host = Field(description="Name or address by which the sites reach it; the server certificate is made out to it.")
    fleet_port: Port = Field(9092, description="The sites' port: node messages and nothing else.")
    control_port: Port = Field(9093, description="The operators' port: submits runs and registers sites; asks for a client certificate.")
    control_address: Host = Field("127.0.0.1", description="Address on which the control port listens.")
    superlink_port: Port = Field(9091, description="Of the SuperLink itself, on the loopback interface only.")
    forward_port: Port = Field(9090, description="On an operator's workstation: what `flwr` connects to, on the loopback interface only.")
    operators: tuple[Name, ...] = Field((), description="Who may use the control port over the network.")
    folder: Folder = Field("/srv/tmca/coordinator", description="Where the coordinator's folder is installed.")

    @model_validator(mode="after")
    def _ports_differ(self) -> Coordinator:
        ports = (self.fleet_port, self.control_port, self.superlink_port, self.forward_port)
        if len(set(ports)) < len(ports):
            raise ValueError("fleet_port, control_port, superlink_port and forward_port must differ")
        if len(set(self.operators)) < len(self.operators):
            raise ValueError("operators has a name twice")
        return self

    @property
    def local(self) -> bool:
        """Whether sites reach it on this machine only: a trial."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """host:port for the sites."""
        return f"{bracketed(self.host)}:{self.fleet_port}"


class Site(Section):
    """One hospital. What lies at the hospital may be left out: its IT fills it in."""

    name: Name = Field(description="The site's name, as its manifest has it where that holds several.")
    public_key: Place = Field("", description="File of its public key; empty: keys/NAME.pub in the coordinator's folder.")
    manifest: Place = Field("", description="Its table of cases.")
    cache: Place = Field("", description="Folder of decoded images and token features; empty: in the site's folder.")
    runtime_port: int = Field(0, ge=0, le=65535, description="Of its SuperNode, on the loopback interface only; 0: 9094.")
    gpu: bool = Field(False, description="It trains on a GPU: `tmca deploy join` asks for one.")
    free_gb: float = Field(10.0, ge=0, description="Free space that it needs, GB.")
    folder: Folder = Field("/srv/tmca/site", description="Where the site's folder is installed.")


class Federation(Section):
    """A coordinator and its sites.

    Example:
        federation = load_federation(Path("federation.toml"))
    """

    name: Name = Field(description="Name of the federation.")
    validity_days: int = Field(397, ge=1, le=3650, description="Of the certificates of server and operators; of the CA ten times as many.")
    coordinator: Coordinator
    sites: tuple[Site, ...] = Field(min_length=1, description="The hospitals.")
    programs: Folder = Field("/opt/tmca/bin", description="Where `tmca` and Flower's programs are, at coordinator and sites.")
    policy: Policy = Field(Policy(), description="Proposal for every site's policy; the site decides.")

    @model_validator(mode="after")
    def _sites_differ(self) -> Federation:
        lowered = [site.name.lower() for site in self.sites]
        if twice := sorted({name for name in lowered if lowered.count(name) > 1}):
            raise ValueError(f"two sites are called '{twice[0]}'; names must differ in more than capitals")
        return self


FIRST_RUNTIME_PORT = 9094


def load_federation(path: Path) -> Federation:
    """A federation from its file; relative paths in it are made absolute, from the file's folder.

    Raises:
        ConfigError: it cannot be read, a key is unknown or a value out of bounds.
    """
    try:
        federation = Federation.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the federation {path}: {error}.") from None
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, e['loc'])) or 'federation'}': {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {faults}. docs/hospital.md has an example.") from None
    base = path.resolve().parent

    def absolute(place: str) -> str:
        return place and str((base / Path(place).expanduser()).resolve())

    first = FIRST_RUNTIME_PORT
    taken = {federation.coordinator.fleet_port, federation.coordinator.control_port} | {site.runtime_port for site in federation.sites}
    sites = []
    for site in federation.sites:
        port = site.runtime_port
        if not port:
            # On one machine each SuperNode needs a port of its own; hospitals have a machine each.
            port = next(free for free in range(first, 65536) if free not in taken) if federation.coordinator.local else first
            taken.add(port)
        paths = {"public_key": absolute(site.public_key), "manifest": absolute(site.manifest), "cache": absolute(site.cache)}
        sites.append(site.model_copy(update={**paths, "runtime_port": port}))
    return federation.model_copy(update={"sites": tuple(sites)})


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """A host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
