"""The commands of docs/hospital.md, from nothing to three sites that have trained under TLS and with registered keys."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from simulations.processes import BIN, ROOT, Processes, alive, end_all, free_port
from tmca_core.deploy.ingress import CONTROL_PROBE
from tmca_core.privacy.ledger import Ledger
from tmca_core.record import Record
from tmca_core.run import Run

SITES = [f"phantom-{number:02d}" for number in range(3)]
RUN = (
    'data.image_size=32 network.name="unet" network.unet_channels="4,8" training.steps=2 training.batch_size=4 federation.rounds=1 '
    'federation.min_sites=3 federation.wait=240.0 federation.weighting="uniform" evaluation.bootstrap=0 evaluation.bootstrap_rounds=0 '
    'simulation.out="runs/first"'
)


def documented() -> list[str]:
    """The commands as they are shown, without the installation, which has brought us here."""
    (block,) = re.findall(r"```sh\n(make install.*?)```", (ROOT / "docs" / "hospital.md").read_text(), re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) <= 6 and lines[0].startswith("make install")
    return lines[1:]


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Path]:
    """The sources as a user has them, with ports of this test's own; what was started in them ends with the test."""
    folder = Processes(tmp_path).app()
    (folder / "docs" / "examples").mkdir(parents=True)
    text = (ROOT / "docs" / "examples" / "trial.toml").read_text()
    ports = "".join(f"{name} = {free_port()}\n" for name in ("fleet_port", "control_port", "superlink_port", "forward_port"))
    text = text.replace("[coordinator]\n", f"[coordinator]\n{ports}")
    text = re.sub(r"\[\[sites\]\]\n", lambda _: f"[[sites]]\nruntime_port = {free_port()}\n", text)
    (folder / "docs" / "examples" / "trial.toml").write_text(text)
    yield folder
    end_all(folder / "trial" / "processes")


def answer(url: str, ca: Path, body: bytes = b"") -> int:
    request = Request(url, data=body, headers={"Content-Type": PROTOBUF_MEDIA_TYPE, "Accept": PROTOBUF_MEDIA_TYPE})
    try:
        with urlopen(request, timeout=20, context=ssl.create_default_context(cafile=str(ca))) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_documented_commands_train_three_authenticated_sites(sources: Path) -> None:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    phantom, init, up, run, down = documented()

    def shell(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=sources, env=environment, capture_output=True, text=True, timeout=600, check=False)
        logs = "\n".join(f"--- {log}\n{log.read_text()[-2000:]}" for log in sources.glob("trial/processes/*/log"))
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{logs}"
        return done.stdout

    shell(phantom.replace("150", "30") + " --size 64")
    shell(init)
    trial = sources / "trial"
    federation = json.loads((trial / "coordinator" / "federation.json").read_text())["coordinator"]
    shell(up)
    started = alive(trial / "processes")
    ingress = shutil.which("nginx") is not None
    assert len(started) == 2 + 2 * len(SITES) + 2 * ingress
    # Without a registered key's signature no call is answered, and on the sites' port none that is not a site's.
    ca = trial / "ca" / "ca.crt"
    fleet = f"https://localhost:{federation['fleet_port'] if ingress else federation['superlink_port']}"
    assert answer(f"{fleet}/v1/fleet/pull-messages", ca) == 401
    if ingress:
        assert answer(f"{fleet}{CONTROL_PROBE}", ca) == 403
        assert answer(f"https://localhost:{federation['control_port']}{CONTROL_PROBE}", ca) == 400
        # The run goes the way of an operator who is elsewhere.
        run = run.replace("coordinator/flwr.sh", "coordinator/operators/tester/flwr.sh")
    shell(re.sub(r"--run-config '.*'", lambda _: f"--run-config '{RUN}'", run))
    summary = Run(trial / "coordinator" / "state" / "runs" / "first").read_json("run.json")
    assert summary and summary["faults"] == [] and [site["name"] for site in summary["sites"]] == SITES
    trained = [event["site"] for event in Run(trial / "coordinator" / "state" / "runs" / "first").events("site_train")]
    assert sorted(trained) == SITES
    for name in SITES:
        state = trial / "sites" / name / "state"
        assert [entry["asked"] for entry in Record.open(state / "record").entries() if entry["kind"] == "answered"][:2] == [
            "query",
            "train",
        ]
        ledger = Ledger.open(state / "ledger").read()
        last = [entry for entry in Record.open(state / "record").entries() if entry["kind"] == "answered"][-1]
        assert ledger.state == "intact" and last["ledger"] in {entry["hash"] for entry in ledger.entries}
    sites = " ".join(f"{name}=trial/sites/{name}/state/record" for name in SITES)
    told = json.loads(shell(f"tmca deploy compare trial/coordinator/state/runs/first {sites} --json"))["sites"]
    assert told == {name: {"agreed": 1, "lost": 0} for name in SITES}
    assert shell("trial/coordinator/register.sh") == "".join(f"{name}: was registered before\n" for name in SITES)
    if ingress:
        calls = [json.loads(line) for line in (trial / "coordinator" / "state" / "ingress.jsonl").read_text().splitlines()]
        assert {call["operator"] for call in calls if "/v1/control/start-run" in call["request"]} == {"tester"}
    assert sorted(started) == sorted(shell(down).strip().removeprefix("ended: ").removesuffix(".").split(", "))
    assert alive(trial / "processes") == {}


def test_a_trial_is_for_this_machine_and_for_folders_that_were_made(tmp_path: Path) -> None:
    from federations import describe, made

    from simulations.trial import _federation
    from tmca_core.errors import ConfigError

    with pytest.raises(ConfigError, match="holds no deployment"):
        _federation(tmp_path)
    made(describe(tmp_path, coordinator='host = "fl.example.org"'), make_keys=False)
    with pytest.raises(ConfigError, match="for a trial on one machine, and the coordinator is 'fl"):
        _federation(tmp_path / "out")


def test_processes_are_known_by_the_lock_that_they_hold_and_end_with_their_children(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("parent", "/bin/sh", "-c", "sleep 600 & sleep 600")
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "pid").write_text(str(os.getpid()))  # a number that has another process by now, which must not be touched
    assert alive(tmp_path) == {"parent": processes.running["parent"].pid}
    assert end_all(tmp_path) == ["parent"]
    processes.running["parent"].wait(10)
    assert alive(tmp_path) == {}  # the child inherited the lock, and does not hold it any more
