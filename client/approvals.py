"""What a hospital approves: an app as its coordinator submits it, whose code is the code installed here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from client.standing import hold_to_owner
from client.worker import app_digest
from client.workspace import code_digest
from tmca_core.errors import ConfigError
from tmca_core.record import Record


def approve_app(app: str, home: Path, by: str, note: str = "") -> tuple[str, str]:
    """Approve an app at the site whose folder is `home`, unless it is approved; returns what `installed_app` does.

    Raises:
        ConfigError: see `installed_app`, or the folder belongs to another user.
        LedgerError: the site's record is damaged or cannot be written.
    """
    hold_to_owner(home)
    digest, code = installed_app(app)
    record = Record.open(home / "record", make=True)
    if digest not in record.approved():
        record.note("approved", app=digest, code=code, by=by, note=note)
    return digest, code


def installed_app(app: str) -> tuple[str, str]:
    """(hash of an app, digest of its code), where that is the code installed here.

    Args:
        app: folder of an app, a .fab file, or 64 hexadecimal digits; a bare hash stands for the installed code, which is compared with
            the app's own when it comes.

    Raises:
        ConfigError: it is none of these, or holds other code than what is installed.
    """
    code = code_digest()
    if re.fullmatch(r"[0-9a-f]{64}", app):
        return app, code
    path = Path(app)
    if path.is_dir():
        content = _built(path)
    elif path.is_file():
        content = path.read_bytes()
    else:
        raise ConfigError(f"{app} is no folder, no file and no sha256 of 64 digits.")
    if (found := app_digest(content)) != code:
        raise ConfigError(
            f"the code in {path} ({found[:12] or 'none that can be read'}) is not the code installed here ({code[:12]}): this site runs "
            "only what is installed. Install the version that the coordinator submits, read it, and approve it then."
        )
    return hashlib.sha256(content).hexdigest(), code


def _built(folder: Path) -> bytes:
    """The app as `flwr run` would submit the folder."""
    import click
    from flwr.cli.build import build_fab_from_disk

    try:
        return build_fab_from_disk(folder)
    except (click.ClickException, click.exceptions.Exit, ValueError, OSError) as error:
        raise ConfigError(f"{folder} is no app that `flwr run` could submit: {error}") from None
