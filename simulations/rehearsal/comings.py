"""Rows: a site that joins a run that is under way, leaves it for good, and whose key is revoked."""

from __future__ import annotations

from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.live import live, others_go_on, short, struck
from simulations.rehearsal.outsiders import end_of_node
from simulations.rehearsal.stage import Stage, describe
from tmca_core.deploy.keys import KEY


def joined(stage: Stage) -> str:
    """A further hospital: described, given its folder and keys, registered and started while the others train."""
    name = newcomer(stage)
    run = live(stage)
    round = stage.until(lambda: run.trained(name), f"'{name}' to train")
    went = others_go_on(stage, run, name)
    return f"'{name}' trained first in round {round}; {went}"


def left(stage: Stage) -> str:
    """The newcomer leaves the run for good."""
    name, run = newcomer(stage), live(stage)
    stage.until(lambda: run.trained(name), f"'{name}' to train")
    state = stage.site(name) / "state"
    before = len(run.faults(name))
    done = stage.run("tmca", "site", "leave", "--node-state", state, "--policy", stage.site(name) / "site.toml", "--json")
    expect(done.returncode == 0, f"tmca site leave ended with {done.returncode}: {done.stderr[-300:]}")
    fault = struck(stage, run, name, "left by the hospital", before)
    went = others_go_on(stage, run, name)
    last = run.trained(name)
    stage.until(lambda: run.round >= last + 3, "three more rounds")
    expect(run.trained(name) == last, f"'{name}' trained in round {run.trained(name)}, after it had left")
    return f"named: {short(fault['reason'])}; its last round was {last}; {went}, without it up to round {run.round}"


def revoked_key(stage: Stage) -> str:
    """The coordinator unregisters the newcomer's key; its SuperNode is turned away, now and when it is started again."""
    name, run = newcomer(stage), live(stage)
    number = stage.node(name)
    said = stage.run(stage.trial / "coordinator" / "flwr.sh", "supernode", "unregister", str(number), stage.federation.name)
    expect(said.returncode == 0, f"flwr supernode unregister: {said.stdout[-200:]}{said.stderr[-200:]}")
    stage.known.discard(number)
    stage.until(lambda: stage.pid(f"{name}-supernode") is None, "the SuperNode to end")
    log = end_of_node(stage, "revoked", f"localhost:{stage.fleet}", stage.ca, stage.site(name) / KEY)
    expect("Failed to activate" in log, f"started again it said {log[-300:]}")
    went = others_go_on(stage, run, name)
    expect(stage.nodes() == stage.known, "a SuperNode is listed that does not belong")
    if stage.pid(f"{name}-work"):
        stage.kill(f"{name}-work")
    return f"its SuperNode ended, and again when it was started anew; {went}"


def newcomer(stage: Stage) -> str:
    """Name of the site that was not there from the start; it joins where it has not yet."""
    from client.approvals import installed_app
    from tmca_core.deploy.folders import make_folders
    from tmca_core.privacy.ledger import Ledger
    from tmca_core.record import Record

    name = f"phantom-{len(stage.names):02d}"
    if stage.site(name).exists():
        return name
    live(stage)
    make_folders(describe(stage.folder, [*stage.names, name], stage.federation), stage.trial, make_keys=True)
    own = stage.site(name)
    Ledger.create(own / "state" / "ledger", None)
    app, code = installed_app(str(stage.app))
    Record.open(own / "state" / "record", make=True).note("approved", app=app, code=code, by="tmca deploy rehearse", note="a newcomer")
    said = stage.run(stage.trial / "coordinator" / "register.sh")
    expect(said.returncode == 0 and f"{name}: registered" in said.stdout, f"register.sh: {said.stdout}{said.stderr}")
    for part in ("supernode", "work"):
        stage.start_again(f"{name}-{part}")
    stage.known = stage.until(lambda: _more(stage), f"'{name}' to be online", pause=1)
    return name


def _more(stage: Stage) -> set[int]:
    online = stage.nodes()
    return online if len(online) > len(stage.known) else set()


ROWS = (
    Row("joins", "fault", "a further site joins in mid-run", "it trains with the others", joined),
    Row("leaves", "fault", "a site leaves the run for good", "named; asked no more; the others go on", left),
    Row("revoked-key", "intrusion", "a site whose key the coordinator has unregistered", "turned away, again and again; the others go on",
        revoked_key),
)  # fmt: skip
