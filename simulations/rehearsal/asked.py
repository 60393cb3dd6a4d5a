"""Rows: a coordinator that asks for what no hospital agreed to."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from typing import Any

from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.live import live, others_go_on, short
from simulations.rehearsal.played import Played
from simulations.rehearsal.stage import SMALL, Stage
from tmca_core.deploy.folders import SHARED
from tmca_core.record import Record

BASE = "base"


def base(stage: Stage) -> Played:
    """A run of one round that has ended well."""
    run = stage.runs.get(BASE)
    if run is None:
        run = stage.submit(BASE, SMALL | {"federation.rounds": 1, "federation.min_sites": len(stage.names)})
    stage.end(run)
    expect(run.round >= 1 and not run.why(), f"the run of one round ended: {run.why()[:300]}")
    return run


def _refused(stage: Stage, run: Played, told: str) -> str:
    """Wait for the end of a run that every site refuses; the reason that names the rule."""
    stage.end(run)
    said = [run.why(), *(str(event["reason"]) for event in run.fresh() if event["event"] == "fault")]
    expect(run.why(), "the run did not stop")
    expect(not any(event["event"] == "site_train" for event in run.fresh()), "a site trained")
    named = [text for text in said if told in text]
    expect(named, f"nobody named '{told}': {short(' | '.join(said), 400)}")
    return min(named, key=len)


def less_noise(stage: Stage) -> str:
    """A private run with less noise than the hospitals' policies ask for."""
    values: dict[str, Any] = SMALL | {
        "privacy.enabled": True, "privacy.noise_multiplier": 0.1, "privacy.sample_rate": 0.1, "federation.rounds": 1,
        "network.unet_channels": "8,16", "federation.min_sites": len(stage.names), "federation.wait": stage.patience,
    }  # fmt: skip
    text = _refused(stage, stage.submit("less-noise", values), "privacy.min_noise_multiplier")
    return short(text[text.index("Rule:") :])


def other_terms(stage: Stage) -> str:
    """A run goes on under its name, with more steps a round than the sites agreed to when it began."""
    run = base(stage)
    asked = {"training.steps": 3, "federation.rounds": 2, "federation.wait": stage.patience}
    run.run.config_path.write_text(run.run.config().with_values(asked).to_toml())  # or the ServerApp itself would refuse to go on
    run.values = {**run.values, **asked}
    text = _refused(stage, stage.submit(BASE, run.values), "the terms that this run began with")
    return short(text[text.index("Rule:") :])


def _foreign(stage: Stage) -> Played:
    """A run whose app has other code than the hospitals approved, and whose hash the first hospital was talked into approving."""
    run = stage.runs.get("foreign")
    if run is None:
        app = stage.scratch("foreign") / "app"
        shutil.copytree(stage.app, app)
        door = app / "client" / "door.py"
        door.write_text(door.read_text() + "\nOPEN_WIDE = True\n")
        built = stage.run("flwr", "build", "--app", app)
        (fab,) = stage.folder.glob("*.fab")
        expect(built.returncode == 0, f"flwr build: {built.stderr[-300:]}")
        digest = hashlib.sha256(fab.read_bytes()).hexdigest()
        fab.unlink()
        state = stage.site(stage.names[0]) / "state"
        approved = stage.run("tmca", "deploy", "approve", digest, "--home", state)
        expect(approved.returncode == 0, f"tmca deploy approve: {approved.stderr[-300:]}")
        values = SMALL | {"federation.rounds": 1, "federation.min_sites": len(stage.names), "federation.wait": stage.patience}
        try:
            run = stage.submit("foreign", values, app)
            stage.end(run)
        finally:
            stage.run("tmca", "deploy", "revoke", digest, "--home", state)
    return run


def unapproved_app(stage: Stage) -> str:
    """Code that nobody approved."""
    run, name = _foreign(stage), stage.names[1]
    text = _refused(stage, run, "is not approved here")
    refused = [entry for entry in Record.open(stage.site(name) / "state" / "record").entries() if entry["kind"] == "refused"]
    expect(any("is not approved here" in entry["reason"] for entry in refused), f"the record of '{name}' does not say so")
    return f"{short(text[text.index('The app') :])} In the record of '{name}'"


def altered_app(stage: Stage) -> str:
    """Code whose hash is approved, and that is not the code installed at the hospital."""
    run, name = _foreign(stage), stage.names[0]
    text = _refused(stage, run, "is not the code installed here")
    refused = [entry for entry in Record.open(stage.site(name) / "state" / "record").entries() if entry["kind"] == "refused"]
    expect(any("is not the code installed here" in entry["reason"] for entry in refused), f"the record of '{name}' does not say so")
    return f"{short(text[text.index('The app') :])} In the record of '{name}'"


def app_bomb(stage: Stage) -> str:
    """An app of some kilobytes that unpacks to more than any app of ours."""
    place = stage.scratch("bomb")
    bomb = place / "bomb.fab"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("client/app.py", "w", force_zip64=True) as file:
        for _ in range(500):
            file.write(b"\0" * 1_000_000)
    done = stage.run("tmca", "deploy", "approve", bomb, "--home", place / "home")
    expect(done.returncode == 2, f"ended with {done.returncode}: {done.stdout[-200:]}{done.stderr[-200:]}")
    expect(not (place / "home" / "record").exists(), "it was approved")
    return f"{bomb.stat().st_size / 1e6:.1f} MB that unpack to 500 MB: {short(done.stderr.strip(), 120)} exit code 2"


def stranger_worker(stage: Stage) -> str:
    """Another process on the hospital's machine asks its SuperNode for work, without the secret and with a wrong one."""
    run, site = live(stage), stage.names[0]
    port = next(one.runtime_port for one in stage.federation.sites if one.name == site)
    place = stage.scratch("stranger")
    Record.open(place / "record", make=True).note("approved", app="0" * 64, code="", by="a stranger", note="")
    (place / SHARED).write_text("00" * 32)
    for name, secret in (("no", ()), ("wrong", ("--secret", str(place / SHARED)))):
        process = f"stranger-{name}"
        stage.start(process, "tmca", "deploy", "work", "--runtime-api", f"127.0.0.1:{port}", "--home", str(place), *secret)
        try:
            stage.until(lambda process=process: stage.pid(process) is None, "the stranger to be turned away")  # type: ignore[misc]
        finally:
            if stage.pid(process):
                stage.kill(process)
        code, said = stage.processes.running[process].wait(30), stage.log(process)
        expect(code == 2 and "gives this worker no tasks" in said, f"{name} secret it ended with {code}: {said[-300:]}")
    expect(len(Record.open(place / "record").entries()) == 2, "the stranger was given something to answer")
    return f"exit code 2 and no task with either; {others_go_on(stage, run, '')}"


ROWS = (
    Row("less-noise", "intrusion", "a run with less noise than the policies allow", "refused by every site, with the rule", less_noise),
    Row("unapproved-app", "intrusion", "an app that nobody approved", "does not run; in the site's record", unapproved_app),
    Row("altered-app", "intrusion", "an app with an approved hash and other code than is installed", "does not run; in the site's record",
        altered_app),
    Row("app-bomb", "intrusion", "an app that unpacks without end", "not unpacked, not approved; exit code 2", app_bomb),
)  # fmt: skip
LATER = (
    Row("other-terms", "intrusion", "a run that changes its terms after it began", "refused by every site, with the rule", other_terms),
)  # fmt: skip
LIVE = (
    Row("stranger-worker", "intrusion", "a process at the site that asks for work without the secret, or with a wrong one",
        "turned away; the others go on", stranger_worker),
)  # fmt: skip
