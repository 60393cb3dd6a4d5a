"""A record notices changes; two records of the same run agree or say where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tmca_core.deploy.records import compare
from tmca_core.digests import message_digest, sources_digest, weights_digest
from tmca_core.errors import ConfigError, LedgerError
from tmca_core.record import Record, astray

ASKED = {"run": "r1", "asked": "train", "round": 1}


def both(
    tmp_path: Path, *, request: str = "q", code: str = "c", digest: str = "d", weights: str = "w", config: str = "s"
) -> tuple[Path, Path]:
    """A run's folder and a site's record of the same single turn; the site's as told."""
    coordinator = Record.open(tmp_path / "run" / "record", make=True)
    coordinator.note("began", run="r1", round=0, config="s", code="c")
    coordinator.note("asked", **ASKED, sites={"ghent": "q", "lyon": "p"}, weights="w")
    coordinator.note("received", **ASKED, sites={"ghent": "d"})
    site = Record.open(tmp_path / "ghent", make=True)
    site.note("approved", app="a", code="c", by="somebody", note="")
    site.note("answered", app="a", code=code, config=config, **ASKED, request=request, weights=weights, digest=digest)
    return tmp_path / "run", tmp_path / "ghent"


def test_approvals_are_those_not_revoked_since(tmp_path: Path) -> None:
    record = Record.open(tmp_path, make=True)
    for kind, app in (("approved", "a"), ("approved", "b"), ("revoked", "a"), ("approved", "c"), ("revoked", "c"), ("approved", "c")):
        record.note(kind, app=app)  # type: ignore[arg-type]
    assert sorted(record.approved()) == ["b", "c"]


def test_a_record_is_made_once_and_only_when_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no record"):
        Record.open(tmp_path)
    Record.open(tmp_path, make=True).note("approved", app="a")
    assert list(Record.open(tmp_path, make=True).approved()) == ["a"]


@pytest.mark.parametrize("change", ["app", "remove", "add"])
def test_a_changed_record_is_refused(tmp_path: Path, change: str) -> None:
    record = Record.open(tmp_path, make=True)
    record.note("approved", app="good")
    record.note("refused", app="bad", reason="not approved")
    path = tmp_path / "record.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = {"app": [line.replace("good", "evil") for line in lines], "remove": lines[:1] + lines[2:], "add": [*lines, lines[1]]}
    path.write_text("".join(changed[change]))
    with pytest.raises(LedgerError, match="damaged"):
        Record.open(tmp_path).approved()


def test_a_lost_record_is_not_begun_anew(tmp_path: Path) -> None:
    Record.open(tmp_path, make=True).note("approved", app="a")
    (tmp_path / "record.jsonl").unlink()
    with pytest.raises(LedgerError, match="existed here"):
        Record.open(tmp_path, make=True)


def test_two_honest_records_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, site = both(tmp_path)
    compare(run, [f"ghent={site}"], as_json=True)
    assert json.loads(capsys.readouterr().out)["sites"] == {"ghent": {"agreed": 1, "lost": 0}}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"request": "other"}, "the site was asked other…"),
        ({"code": "other"}, "the site ran code other…"),
        ({"digest": "other"}, "the coordinator has an answer d…"),
        ({"weights": "other"}, "the site got weights other…, the coordinator says w…"),
        ({"config": "other"}, "the site was set other…"),
    ],
)
def test_two_records_that_differ_are_named(tmp_path: Path, told: dict[str, str], message: str) -> None:
    run, site = both(tmp_path, **told)
    with pytest.raises(LedgerError, match=message):
        compare(run, [f"ghent={site}"])


def test_sites_that_got_different_weights_in_one_round_are_named(tmp_path: Path) -> None:
    coordinator = Record.open(tmp_path / "run" / "record", make=True)
    coordinator.note("began", run="r1", round=0, config="s", code="c")
    for name, weights in (("ghent", "w"), ("lyon", "x")):  # each told truly, and each site's record agrees with its own
        coordinator.note("asked", **ASKED, sites={name: f"q-{weights}"}, weights=weights)
        coordinator.note("received", **ASKED, sites={name: f"d-{name}"})
        site = Record.open(tmp_path / name, make=True)
        site.note("answered", app="a", code="c", config="s", **ASKED, request=f"q-{weights}", weights=weights, digest=f"d-{name}")
    with pytest.raises(LedgerError, match="round 1 begins from weights w… and, for lyon, from x…"):
        compare(tmp_path / "run", [f"ghent={tmp_path / 'ghent'}", f"lyon={tmp_path / 'lyon'}"])


def test_a_round_begins_from_the_model_before_it_also_where_the_run_was_started_again() -> None:
    def entry(kind: str, round: int, weights: str = "", asked: str = "train") -> dict[str, Any]:
        return {"kind": kind, "run": "r1", "round": round, "weights": weights, "asked": asked, "sites": {"ghent": "q"}}

    honest = [
        *(entry("began", 0), entry("model", 0, "w0"), entry("asked", 1, "w0"), entry("asked", 1, "average", "evaluate")),
        *(entry("model", 1, "w1"), entry("asked", 2, "w1"), entry("model", 2, "w2"), entry("asked", 3, "w2")),
        # Stopped before the checkpoint of round 2 was on the disk: it is done again, with other noise.
        *(entry("began", 1), entry("asked", 2, "w1"), entry("model", 2, "v2"), entry("asked", 3, "v2")),
    ]
    assert astray(honest) == []
    assert len(astray([*honest, entry("asked", 3, "x")])) == 1
    assert len(astray([*honest, entry("model", 3, "v3"), entry("asked", 4, "x")])) == 1
    assert len(astray([*honest, entry("model", 2, "x")])) == 1
    assert len(astray([*honest, entry("began", 1), entry("asked", 2, "x")])) == 1


def test_an_answer_that_was_lost_on_its_way_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, site = both(tmp_path)
    Record.open(site).note("answered", app="a", code="c", config="s", **ASKED, request="q", weights="w", digest="late")
    compare(run, [f"ghent={site}"])
    assert "1 left the site and did not count" in capsys.readouterr().out


def test_a_pair_without_a_folder_is_explained(tmp_path: Path) -> None:
    run, _ = both(tmp_path)
    with pytest.raises(ConfigError, match="'ghent' is not NAME=FOLDER"):
        compare(run, ["ghent"])


def test_weights_digest_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(3)},
        {"c": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0])},
    ]
    assert weights_digest(dict(reversed(base.items()))) == weights_digest(base)
    assert len({weights_digest(one) for one in [base, *others]}) == 6
    strided = {"a": torch.tensor([1.0, 0.0, 2.0])[::2], "b": torch.tensor(3)}
    assert weights_digest(strided) == weights_digest(base)


def test_message_digest_sees_every_record() -> None:
    found = {message_digest({"settings": {"round": round, "key": key}}) for round in (1, 2) for key in (b"x", b"y")}
    assert len(found) == 4


def test_sources_digest_goes_by_what_a_site_runs() -> None:
    base = {"client/a.py": b"x", "tmca_core/b.json": b"y"}
    assert sources_digest({**base, "server/c.py": b"z", "client/notes.md": b"n", "pyproject.toml": b"t"}) == sources_digest(base)
    assert sources_digest({**base, "client/c.py": b""}) != sources_digest(base)
    assert sources_digest(dict(reversed(base.items()))) == sources_digest(base)
