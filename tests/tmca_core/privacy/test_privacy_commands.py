"""`tmca privacy`: plans, ledgers, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tmca_core.cli import main
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Charge, Ledger


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["privacy", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = run(capsys, "plan", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def ledger(folder: Path, patients: list[str], *spends: NoisySteps) -> Ledger:
    made = Ledger.create(folder)
    for spend in spends:
        made.charge(Charge(spend, run="ab"), patients, None)
    return made


def test_a_plan_is_as_the_interface_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--rate", 0.032, "--noise", 1, "--steps", 3100, "--delta", 1e-5)
    assert found["epsilon"] == {key: pytest.approx(v, abs=1e-3) for key, v in {"pld": 12.4734, "prv": 12.4840, "rdp": 13.4987}.items()}
    assert found["relation"] == "add/remove" and found["replace_one"] == pytest.approx(22.2398, abs=1e-3)
    code, out, _ = run(capsys, "plan", "--rate", 0.032, "--noise", 1, "--steps", 3100)
    assert code == 0 and "12.4734" in out and "add/remove" in out and "replace-one" in out and "δ = 1e-05" in out


def test_noise_for_a_target_is_the_least_that_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--rate", 0.05, "--target-epsilon", 4, "--steps", 300)
    noise = found["noise_multiplier"]
    assert round(noise, 4) == noise
    assert found["epsilon"]["pld"] == epsilon([NoisySteps(noise, 0.05, 300)], 1e-5) <= 4
    assert epsilon([NoisySteps(noise - 2e-4, 0.05, 300)], 1e-5) > 4


def test_what_is_spent_is_composed_and_leaves_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = NoisySteps(1.5, 0.05, 50)
    ledger(tmp_path / "ledger", ["a"], before)
    common = ("--rate", 0.05, "--steps", 50, "--ledger", tmp_path / "ledger")
    found = plan(capsys, *common, "--noise", 1.5)
    assert found["spent"] == epsilon([before], 1e-5)
    assert found["epsilon"]["pld"] == epsilon([NoisySteps(1.5, 0.05, 100)], 1e-5) > found["spent"]
    tight = plan(capsys, *common, "--target-epsilon", 1.8)
    assert found["spent"] < tight["epsilon"]["pld"] <= 1.8
    assert tight["noise_multiplier"] > plan(capsys, "--rate", 0.05, "--steps", 50, "--target-epsilon", 1.8)["noise_multiplier"]
    code, _, err = run(capsys, "plan", *common, "--target-epsilon", 1)
    assert code == 3 and "spent already" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", 0.05, "--steps", 10, "--noise", 0), "no finite ε"),
        (("--rate", 0.05, "--steps", 10, "--noise", 0, "--target-epsilon", 8), "no finite ε"),
        (("--rate", 0.05, "--steps", 10, "--noise", "nan"), "above 0"),
        (("--rate", 0.05, "--steps", 10, "--target-epsilon", -1), "above 0"),
        (("--rate", 0.05, "--steps", 10), "no finite ε"),
        (("--rate", 0.05, "--steps", 10, "--target-epsilon", "inf"), "a finite number"),
        *((("--rate", 0.03, "--steps", 100, "--noise", sigma), "no ε can be computed") for sigma in (1e-300, 1e-160, 1e-10, 1e300)),
        (("--rate", 0.001, "--noise", 1, "--steps", 10**20), "0 to 1000000000 can"),
        (("--rate", 0.03, "--steps", 100, "--noise", 1, "--delta", 1e-15), "Take a larger δ"),
        (("--rate", 0.5, "--steps", 100, "--noise", 1, "--target-epsilon", 2), "above the target"),
        (("--rate", 1.5, "--steps", 10, "--noise", 1), "at most 1"),
        (("--steps", 10, "--noise", 1), "give --rate"),
        (("--rate", 0.1, "--noise", 1), "--steps"),
        (("--rate", 0.1, "--noise", 1, "--steps", 1, "--delta", 1.5), "δ lies between"),
        (("--rate", 0.1, "--noise", 1, "--steps", 1, "--delta", 0.01, "--patients", 100), "not below one over the 100 patients"),
    ],
)
def test_a_plan_that_cannot_be(capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], said: str) -> None:
    code, out, err = run(capsys, "plan", *arguments)
    assert code == 2 and said in err and not out and "Traceback" not in err


def test_too_few_patients_are_told_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    many = ("--rate", 0.032, "--steps", 3100, "--target-epsilon", 8, "--parameters", 1_449_708)
    whole = plan(capsys, *many, "--patients", 1000)
    found, sigma = whole["signal"], whole["noise_multiplier"]
    assert found["verdict"] == "workable" and found["patients_needed"] < 1000
    assert found["step"] == pytest.approx(sigma / 32) and found["run"] == pytest.approx(sigma / 32 / 3100**0.5)
    assert found["length"] == pytest.approx(found["run"] * 1_449_708**0.5)
    few = ("--rate", 0.2, "--steps", 100, "--patients", 75)
    for target in (2, 8):
        assert plan(capsys, *few, "--target-epsilon", target)["signal"]["verdict"] == "drowned"
    code, out, _ = run(capsys, "plan", *few, "--target-epsilon", 8)  # of the default network
    assert code == 0 and "Too few patients for any useful ε" in out and "drowned" in out
    # As many as are said to be needed are enough.
    needed = plan(capsys, *few, "--target-epsilon", 8)["signal"]["patients_needed"]
    assert plan(capsys, *few[:-1], needed, "--target-epsilon", 8)["signal"]["verdict"] == "workable"


def manifest(folder: Path, sizes: dict[str, int]) -> Path:
    import numpy as np
    from PIL import Image

    lines = ["case_id,patient_id,site,image,mask,report,split"]
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(folder / "x.png")
    for site, patients in sizes.items():
        for i in range(patients):
            split = "train" if i < patients - 2 else "val" if i == patients - 2 else "test"
            lines += [f"{site}{i}{view},{site}{i},{site},x.png,x.png,Left lung.,{split}" for view in "ab"]
    (folder / "cases.csv").write_text("\n".join(lines))
    return folder / "cases.csv"


def test_every_hospital_has_its_own_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = manifest(tmp_path, {"large": 42, "small": 12})
    (tmp_path / "run.toml").write_text(
        "[privacy]\nenabled = true\nnoise_multiplier = 2.0\n[training]\nbatch_size = 4\nepochs = 2\n[federation]\nrounds = 3\n"
        '[data]\nlaterality = "patient"\n'
    )
    arguments = (tmp_path / "run.toml", "--manifest", table, "--parameters", 1000)
    found = plan(capsys, *arguments)
    assert found["training_patients"] == 50
    large, small = found["sites"]["large"], found["sites"]["small"]
    assert (large["patients"], large["rate"], large["steps"]) == (40, 0.1, 2 * 10 * 3)
    assert (small["patients"], small["rate"], small["steps"]) == (10, 0.4, 2 * 3 * 3)
    for one in (large, small):
        assert one["epsilon"]["pld"] == epsilon([NoisySteps(2.0, one["rate"], one["steps"])], 1e-5)
    kept = plan(capsys, *arguments, "--target-epsilon", 2)["sites"]
    assert all(1.99 < one["epsilon"]["pld"] <= 2 for one in kept.values())
    ledger(tmp_path / "ledger", ["large3"], NoisySteps(1.0, 0.1, 60))  # spent by one patient of one hospital
    spent = plan(capsys, *arguments, "--ledger", tmp_path / "ledger")["sites"]
    assert spent["large"]["epsilon"]["pld"] > large["epsilon"]["pld"] and spent["small"] == small
    code, out, _ = run(capsys, "plan", *arguments, "--set", "training.steps=7")
    assert code == 0 and "large\n" in out and "21 steps" in out


def test_a_plan_under_a_policy_is_what_the_site_will_charge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hospital that lets its number of patients out rounded down to tens draws with the larger rate that follows from it."""
    (tmp_path / "run.toml").write_text("[privacy]\nenabled = true\nnoise_multiplier = 1.0\n[training]\nbatch_size = 4\nsteps = 10\n")
    (tmp_path / "site.toml").write_text("[metrics]\ncase_counts = true\n")
    (tmp_path / "mute.toml").write_text("")
    order = (tmp_path / "run.toml", "--patients", 29, "--steps", 10)
    told = plan(capsys, *order, "--policy", tmp_path / "site.toml")
    assert told["epsilon"]["pld"] == pytest.approx(epsilon([NoisySteps(1.0, 4 / 20, 10)], 1e-5), abs=1e-6)
    assert plan(capsys, *order)["epsilon"]["pld"] == pytest.approx(epsilon([NoisySteps(1.0, 4 / 29, 10)], 1e-5), abs=1e-6)
    code, _, err = run(capsys, "plan", *order, "--policy", tmp_path / "mute.toml")
    assert code == 2 and "set privacy.sample_rate" in err
    code, _, err = run(capsys, "plan", "--rate", 0.1, "--noise", 1, "--steps", 9, "--policy", tmp_path / "site.toml")
    assert code == 2 and "goes with a CONFIG" in err


def test_a_ledgers_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger"
    assert run(capsys, "ledger", "verify", path, "--json")[:1] == (2,)
    assert run(capsys, "ledger", "show", path)[0] == 3
    assert run(capsys, "ledger", "init", path)[0] == 0
    assert run(capsys, "ledger", "init", path)[0] == 3
    made = Ledger.open(path)
    for round in (1, 2):
        made.charge(Charge(NoisySteps(1.0, 0.05, 10), run="ab", round=round), ["a", "b"], None)
    code, out, _ = run(capsys, "ledger", "verify", path)
    assert code == 0 and "intact, 3 entries" in out
    code, out, _ = run(capsys, "ledger", "show", path / "ledger.jsonl", "--json")
    shown = json.loads(out)
    assert code == 0 and shown["epsilon"]["pld"] == epsilon([NoisySteps(1.0, 0.05, 20)], 1e-5) and len(shown["history"]) == 2
    code, out, _ = run(capsys, "ledger", "show", path)
    assert code == 0 and "2 charges of 1 runs" in out and "entry 2" in out

    for form in ((), ("--json",)):
        code, out, _ = run(capsys, "ledger", "show", path, "--delta", 1e-300, *form)
        assert code == 0 and ([p["epsilon"] for p in json.loads(out)["history"]] == [None, None] if form else "ε –" in out)

    content = (path / "ledger.jsonl").read_bytes()
    (path / "ledger.jsonl").write_bytes(content[:-9])
    code, out, _ = run(capsys, "ledger", "verify", path, "--json")
    found = json.loads(out)
    assert code == 2 and found["state"] == "interrupted" and "counts as spent" in found["reason"]
    code, out, _ = run(capsys, "ledger", "show", path, "--json")
    assert code == 0 and json.loads(out)["epsilon"] == shown["epsilon"]
    (path / "ledger.jsonl").write_bytes(content.replace(b'"round":1', b'"round":3'))
    code, out, _ = run(capsys, "ledger", "verify", path, "--json")
    assert code == 2 and json.loads(out)["state"] == "damaged"
    assert run(capsys, "ledger", "show", path)[0] == 3
    (path / "ledger.jsonl").unlink()
    code, out, _ = run(capsys, "ledger", "verify", path, "--json")
    assert code == 2 and json.loads(out)["state"] == "damaged"


def test_a_witness_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, witness = tmp_path / "ledger", tmp_path / "disk2"
    code, out, _ = run(capsys, "ledger", "init", path, "--witness", witness, "--json")
    assert code == 0 and json.loads(out) == {"ledger": str(path), "witness": str(witness)}
    assert run(capsys, "ledger", "verify", path)[0] == 2
    assert run(capsys, "ledger", "verify", path, "--witness", witness)[0] == 0


def test_a_policy_is_shown_with_its_ledger_and_the_installed_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "site.toml"

    def show(text: str) -> tuple[int, dict[str, Any]]:
        path.write_text(text)
        code, out, _ = run(capsys, "policy", path, "--json")
        return code, json.loads(out) if out else {}

    assert show("[privacy]\nepsilon = 4.0\n")[0] == 3  # there is no ledger yet
    Ledger.create(tmp_path / "ledger")
    code, shown = show("[privacy]\nepsilon = 4.0\n")
    assert code == 0 and shown["privacy"]["epsilon"] == 4.0 and shown["spent"] == 0.0 and shown["approved"] is None
    assert len(shown["code"]) == 64
    for allowed, approved in ((shown["code"], True), ("cafe", False)):
        assert show(f'[app]\nallowed = ["{allowed}"]\n')[1]["approved"] is approved
    assert show("[privacy]\nepsilonn = 4.0\n")[0] == 2
