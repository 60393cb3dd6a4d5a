"""`site.env`: where things are at a site. Its start scripts read it as a shell does, `tmca deploy join` reads it here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tmca_core.errors import ConfigError

NAME = "site.env"


@dataclass(frozen=True)
class SiteEnv:
    """What a site's IT has filled in.

    Attributes:
        host, port: of the coordinator's fleet port.
        site: the site's name.
        manifest: its table of cases; None: not named yet.
        cache: folder of decoded images.
        runtime_port: of the SuperNode on the loopback interface.
        free_gb: free space that is needed, GB.
        gpu: whether a GPU is needed.
    """

    host: str
    port: int
    site: str
    manifest: Path | None
    cache: Path
    runtime_port: int
    free_gb: float
    gpu: bool


def assignments(path: Path) -> dict[str, str]:
    """KEY=VALUE of every line, without quotes.

    Raises:
        ConfigError: the file cannot be read, or a line is something else.
    """
    try:
        words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from None
    pairs = [word.partition("=") for word in words]
    if wrong := [key for key, equals, _ in pairs if not equals or not key.isidentifier()]:
        raise ConfigError(f"{path}: '{wrong[0]}' is no KEY=VALUE; a value with spaces stands in single quotes.")
    return {key: value for key, _, value in pairs}


def load_site_env(folder: Path) -> SiteEnv:
    """What the site.env in a site's folder says.

    Raises:
        ConfigError: it is missing, or a value is missing or wrong.
    """
    path = folder / NAME
    values = assignments(path)
    host, colon, port = values.get("COORDINATOR", "").rpartition(":")
    if not colon or not host:
        raise ConfigError(f"{path}: COORDINATOR is the coordinator's host:port, got '{values.get('COORDINATOR', '')}'.")
    if not values.get("SITE"):
        raise ConfigError(f"{path}: SITE, the site's name, is missing.")
    try:
        number, runtime = int(port), int(values.get("RUNTIME_PORT", ""))
        free, gpu = float(values.get("FREE_GB", "0")), bool(int(values.get("GPU", "0")))
    except ValueError as error:
        raise ConfigError(f"{path}: ports, FREE_GB and GPU are numbers ({error}).") from None
    manifest, cache = values.get("MANIFEST", ""), values.get("CACHE", "")
    place = Path(cache) if cache else folder / "state" / "cache"
    return SiteEnv(host.strip("[]"), number, values["SITE"], Path(manifest) if manifest else None, place, runtime, free, gpu)
