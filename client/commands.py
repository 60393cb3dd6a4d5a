"""What a hospital does on its own machine: `tmca deploy work`, `approve`, `revoke` and `record`."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmca_core.cli import emit

if TYPE_CHECKING:
    from tmca_core.record import Record

Home = Annotated[Path, typer.Option("--home", help="The site's folder: its record lies in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def work(
    home: Home,
    runtime_api: Annotated[str, typer.Option("--runtime-api", help="host:port of the SuperNode's Runtime API.")] = "127.0.0.1:9094",
    secret: Annotated[Path | None, typer.Option(help="File of the SuperNode's --superexec-auth-secret-file.")] = None,
    certificates: Annotated[Path | None, typer.Option(help="PEM file of the CA of the Runtime API; without it plain HTTP.")] = None,
    poll: Annotated[float, typer.Option(min=0.01, max=60, help="Seconds between two looks for a task.")] = 0.1,
) -> None:
    """Answer the messages of this site's SuperNode (`--isolation process`) with the code installed here, for approved apps only."""
    from client.worker import Runtime
    from client.worker import work as run
    from tmca_core.errors import ConfigError

    for path in (secret, certificates):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path} is not there.")
    run(Runtime(runtime_api, secret.read_bytes() if secret else None, certificates), home, poll=poll)


def approve(
    app: Annotated[str, typer.Argument(help="Folder of the app as its coordinator submits it, a .fab file, or the 64 digits of its hash.")],
    home: Home,
    note: Annotated[str, typer.Option(help="Why; it is kept in the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let an app run at this site; the first approval makes the site's record."""
    from client.approvals import approve_app

    digest, code = approve_app(app, home, getpass.getuser(), note)
    emit(as_json, {"app": digest, "code": code, "approved": sorted(_record(home).approved())}, f"approved {digest} (code {code[:12]}…).")


def revoke(
    app: Annotated[str, typer.Argument(help="Hash of the app, or the beginning of it.")],
    home: Home,
    note: Annotated[str, typer.Option(help="Why; it is kept in the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let an app run here no more; from the next message on."""
    from client.standing import hold_to_owner
    from tmca_core.errors import ConfigError

    hold_to_owner(home)
    record = _record(home)
    found = [digest for digest in record.approved() if digest.startswith(app)]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} approved apps begin with '{app}'; approved are: {', '.join(record.approved()) or 'none'}.")
    record.note("revoked", app=found[0], by=getpass.getuser(), note=note)
    emit(as_json, {"revoked": found[0], "approved": sorted(record.approved())}, f"revoked {found[0]}.")


def record(
    home: Home,
    last: Annotated[int, typer.Option(min=1, help="So many of the newest entries.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What was asked of this site, which app asked, and what left; refuses a record that was changed."""
    entries = _record(home).entries()
    shown = [entry for entry in entries if entry["kind"] != "created"][-last:]
    lines = [f"{len(entries)} entries, the chain is whole; the last is {entries[-1]['hash'][:16]}…"]
    for entry in shown:
        what = f"{entry['asked']}, round {entry['round']}" if "asked" in entry else f"by {entry['by']}"
        said = entry.get("reason") or entry.get("error") or entry.get("note") or ""
        if "tensors" in entry:
            said = f"{entry['tensors']} tensors, {entry['digest'][:12]}…"
        lines.append(f"{entry['time'][:19]}  {entry['kind']:<9} {entry['app'][:12]}…  {what:<26} {said}")
    emit(as_json, {"entries": len(entries), "last": entries[-1]["hash"], "shown": shown}, "\n".join(lines))


def _record(home: Path) -> Record:
    from tmca_core.record import Record

    return Record.open(home / "record")
