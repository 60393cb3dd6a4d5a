"""Everything that a federation of hospitals is started with: certificates, keys, scripts, units, and a check at each site."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmca_core.cli import LazyCommands, emit

if TYPE_CHECKING:
    from tmca_core.deploy.folders import Made

app = LazyCommands(
    "deploy",
    points="tmca.deploy",
    order=("init", "key", "join", "approve", "revoke", "record", "compare", "work", "node", "superlink", "up", "down", "rehearse"),
    help="Deploy between hospitals: make keys, certificates and scripts, check a site, run what it approved.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def init(
    federation: Annotated[Path, typer.Argument(metavar="FEDERATION.TOML", help="Who takes part: see docs/hospital.md.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for coordinator/, sites/ and ca/; an earlier one is completed.")],
    make_keys: Annotated[bool, typer.Option("--make-keys", help="Make the sites' keys too: for a trial on one machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make everything that a coordinator and its sites start with; repeat it to add a site or take in its key."""
    from tmca_core.deploy.folders import make_folders
    from tmca_core.deploy.schema import load_federation

    described = load_federation(federation)
    made = make_folders(described, out.expanduser(), make_keys=make_keys)
    sites = [site.name for site in described.sites]
    emit(as_json, {"folder": str(out), "sites": sites, **asdict(made)}, _told(out, sites, made, make_keys))


def key(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder, or an operator's.")],
    operator: Annotated[str, typer.Option(metavar="NAME", help="Make an operator's key and certificate request instead.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a site's own key, here; the coordinator gets the public half only. A key that is there stays."""
    from tmca_core.deploy.folders import make_operator_key, make_site_secrets

    folder = directory.expanduser()
    send = make_operator_key(folder, operator) if operator else make_site_secrets(folder)
    emit(
        as_json,
        {"send": str(send)},
        f"Send {send} to the coordinator, and nothing else: the private key beside it never leaves this machine.",
    )


def _told(out: Path, sites: list[str], made: Made, trial: bool) -> str:
    lines = [f"{out}: {len(sites)} sites ({', '.join(sites)})."]
    lines.append(f"CA until {made.ca_until}, server certificate until {made.server_until}. Fingerprint of the CA:\n  {made.fingerprint}")
    if made.waiting:
        lines.append(
            f"Waiting for the public key of {', '.join(made.waiting)}: put each into {out}/coordinator/keys/NAME.pub and run "
            f"{out}/coordinator/register.sh."
        )
    if made.operators_waiting:
        names = ", ".join(made.operators_waiting)
        lines.append(f"Waiting for {out}/coordinator/operators/NAME/operator.csr of {names} (`tmca deploy key DIR --operator NAME`).")
    if made.left:
        lines.append(f"No longer named, and to be unregistered by hand (coordinator/flwr.sh supernode list): {', '.join(made.left)}.")
    if made.ingress_changed:
        lines.append(
            "nginx.conf has changed: put it where the coordinator's folder is installed and start the ingress again, systemctl restart "
            "tmca-ingress (docker compose restart ingress). Until then it lets in who is no operator any more, and nobody new."
        )
    if trial:
        lines.append(f"Next: tmca deploy up {out}")
    else:
        lines.append(f"Next: keep {out}/ca offline; install {out}/coordinator here; send each site its folder below {out}/sites.")
    return "\n".join(lines)
