"""The coordinator's page over a run's folder: every state of a run, hostile names, figures for machines, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from made_up_sites import Sites, Tiny, settings
from prometheus_client.parser import text_string_to_metric_families

from server import rounds
from server.app import federate
from server.watch.app import watch_app
from server.watch.following import Follower
from server.watch.sight import Watcher
from tmca_core.errors import FederationError
from tmca_core.run import Run

EVIL = "<script>alert('x')</script>\" onload=alert(1) \n{site}"


def web(folder: Path, **options: Any) -> TestClient:
    return TestClient(watch_app(folder, **options), base_url="http://127.0.0.1")


class Parsed(HTMLParser):
    """The tags of a page with their attributes, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


class Told:
    """A run's folder written event by event, each some seconds after its beginning."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.run = Run.create(folder, settings(**values))
        self.start = datetime.now(UTC).timestamp() - 1000

    def __call__(self, event: str, after: float, /, **fields: Any) -> Told:
        at = datetime.fromtimestamp(self.start + after, UTC).isoformat(timespec="milliseconds")
        self.run.log(event, arm="federated", time=at, **fields)
        return self

    def began(self, *names: str) -> Told:
        self("sites", 0, round=0, present=sorted(names), missing=[], refusing={})
        return self("asked", 1, round=1, phase="train", sites=sorted(names))

    def trained(self, name: str, after: float, round: int = 1) -> Told:
        return self("site_train", after, round=round, site=name, loss=0.5, seconds=None, bytes_up=1000, bytes_down=2000)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def now_of(folder: Path) -> dict[str, str]:
    return {site.news.name: site.now for site in Watcher(folder, 1e6).look().sites}


# --- states -----------------------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
def test_a_run_that_has_ended_shows_its_rounds_its_sites_and_its_faults(tmp_path: Path) -> None:
    config = settings(federation__rounds=3)
    sites = Sites(config)

    def burn(content: object) -> object:
        raise ValueError("the scanner is on fire")

    sites.twists["hannover", 2] = burn
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    page = web(tmp_path / "run").get("/").text
    assert "Finished after 3 rounds" in page and "reaches a Dice of 0.600 per image" in page
    assert "the scanner is on fire" in page and page.count("took part") == 3
    assert page.count('<svg class="spark"') == 3 and '<svg class="chart"' in page
    told = web(tmp_path / "run").get("/health").json()
    assert (told["state"], told["live"], told["stalled"], told["round"], told["rounds"]) == ("ended", False, False, 3, 3)
    sight = Watcher(tmp_path / "run", 600).look()
    assert [(site.news.name, len(site.news.turns), site.dice) for site in sight.sites] == [
        ("ghent", 3, 0.5), ("hannover", 2, 0.6), ("iowa", 3, 0.7),
    ]  # fmt: skip
    assert sum(site.news.up for site in sight.sites) == 8 * summary["bytes"]["up_per_site_round"] and sight.news.lost == 1


@pytest.mark.usefixtures("tiny")
def test_a_run_that_stopped_says_why(tmp_path: Path) -> None:
    config = settings(federation__min_sites=4)
    with pytest.raises(FederationError):
        federate(Sites(config).grid(), config, tmp_path / "run", None)
    page = web(tmp_path / "run").get("/").text
    assert "Stopped before the first round" in page and "3 sites can train, 4 are needed" in page
    # Repeated with what it needs, it is no longer stopped.
    again = federate(Sites(settings(federation__rounds=1)).grid(), settings(federation__rounds=1), tmp_path / "other", None)
    assert again["final"] and web(tmp_path / "other").get("/health").json()["state"] == "ended"


def test_a_round_in_progress_says_who_has_answered_and_who_has_not(tmp_path: Path) -> None:
    told = Told(tmp_path, federation__rounds=8).began("ghent", "hannover", "iowa").trained("ghent", 30)
    told("fault", 40, round=1, site="iowa", phase="train", kind="failed", reason="the site failed: ValueError")
    assert now_of(tmp_path) == {"ghent": "has answered", "hannover": "training", "iowa": "failed"}
    page = web(tmp_path, stalled_after=1e6).get("/news").text
    assert "Round 1 of 8" in page and "1 of 3 has answered" in page and "<html" not in page
    (ghent, *_) = Watcher(tmp_path, 1e6).look().sites
    assert ghent.news.seconds == {1: 29.0}  # it keeps its own seconds, so what was waited counts
    told("asked", 50, round=1, phase="val", sites=["ghent", "hannover", "iowa"])
    assert set(now_of(tmp_path).values()) == {"validating"}


def test_missing_refusing_and_paused_sites_are_named_with_their_reason(tmp_path: Path) -> None:
    told = Told(tmp_path).began("ghent", "hannover", "iowa", "jena")
    rule = "the site refuses: SiteAway: this hospital's policy refuses. Rule: {}; bound: until it resumes."
    refusing = {
        "ghent": rule.format("paused by the hospital"),
        "jena": rule.format("privacy.epsilon"),
        "iowa": rule.format("left by the hospital"),
    }
    told("sites", 60, round=2, present=["hannover"], missing=["ghent", "iowa", "jena", "kiel"], refusing=refusing)
    told("asked", 61, round=2, phase="train", sites=["hannover"])
    assert now_of(tmp_path) == {
        "ghent": "paused by its hospital", "hannover": "training", "iowa": "has left this run", "jena": "refuses", "kiel": "missing",
    }  # fmt: skip
    page = web(tmp_path).get("/").text
    assert "Rule: privacy.epsilon" in page and "It took part before, and is not connected now." in page
    # It resumes.
    told("sites", 90, round=3, present=["ghent", "hannover"], missing=["iowa", "jena", "kiel"], refusing={"jena": "no"})
    told("asked", 91, round=3, phase="train", sites=["ghent", "hannover"])
    assert now_of(tmp_path)["ghent"] == "training"


def test_an_empty_folder_and_one_that_is_not_there_say_so_and_then_show_the_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        client = web(folder)
        assert "No run here yet" in client.get("/").text and client.get("/health").json()["state"] == "empty"
        assert 'tmca_run_state{state="empty"} 1.0' in client.get("/metrics").text
    client = web(tmp_path / "later", stalled_after=1e6)
    assert "No run here yet" in client.get("/news").text
    told = Told(tmp_path / "later", federation__min_sites=2)
    assert "Waiting for sites" in client.get("/news").text
    told("sites", 0, round=0, present=["ghent"], missing=[], refusing={})
    assert "1 site is there, 2 are needed" in client.get("/news").text
    told.began("ghent", "iowa")
    assert "Round 1 of 3" in client.get("/news").text


def test_no_news_for_too_long_is_said_and_a_long_round_is_not_too_long(tmp_path: Path) -> None:
    told = Told(tmp_path).began("ghent").trained("ghent", 10)
    quiet = web(tmp_path, stalled_after=300).get("/health")
    assert quiet.status_code == 503 and quiet.json()["stalled"] and quiet.json()["last_event_seconds"] > 900
    assert "No news in round 1" in web(tmp_path, stalled_after=300).get("/").text
    told("round", 20, round=1, dice_image=None, seconds=900.0, completed=["ghent"], failed={}, surplus=[], refused=[])
    told("asked", 21, round=2, phase="train", sites=["ghent"])
    fine = web(tmp_path, stalled_after=300).get("/health")  # three times the last round
    assert fine.status_code == 200 and fine.json()["live"] and fine.json()["stalled_after_seconds"] == 2700


# --- reading while somebody writes -------------------------------------------------------------------
def test_a_torn_line_waits_for_its_end_and_one_that_stays_torn_is_passed_over(tmp_path: Path) -> None:
    Told(tmp_path).began("ghent")
    follower = Follower(tmp_path)
    before = follower.look().events
    line = json.dumps({"event": "site_train", "arm": "federated", "round": 1, "site": "ghent", "bytes_up": 7, "bytes_down": 8})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line[:30])
        file.flush()
        assert follower.look().events == before
        file.write(line[30:] + "\n" + line[:25] + "\n" + "[1, 2]\n" + line + "\n")
        file.flush()
        assert follower.look().events == before + 2
        assert follower.look().site("ghent").up == 14


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    Told(tmp_path).began("ghent").trained("ghent", 5)
    follower = Follower(tmp_path)
    assert follower.look().sites["ghent"].turns == {1}
    path = tmp_path / "metrics.jsonl"
    first = path.read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "new").write_bytes(first)
    (tmp_path / "new").replace(path)
    assert not follower.look().sites["ghent"].turns
    path.unlink()
    assert follower.look().events == 0


def test_a_round_that_a_resumed_run_repeats_counts_once(tmp_path: Path) -> None:
    told = Told(tmp_path).began("ghent").trained("ghent", 5)
    told("round", 6, round=1, dice_image=0.4, seconds=5.0, completed=["ghent"], failed={}, surplus=[], refused=[])
    told("asked", 7, round=1, phase="train", sites=["ghent"])  # killed before the checkpoint was written
    sight = Watcher(tmp_path, 1e6).look()
    assert (len(sight.news.done), sight.news.round) == (0, 1)
    told.trained("ghent", 9)
    assert Watcher(tmp_path, 1e6).look().news.site("ghent").turns == {1}


def test_a_run_of_an_earlier_version_is_shown_too(tmp_path: Path) -> None:
    run = Run.create(tmp_path, settings())
    for name in ("ghent", "iowa"):
        run.log("site_train", arm="federated", round=1, site=name, loss=0.5, seconds=2.0, bytes_up=5, bytes_down=6)
        run.log("site_eval", arm="federated", round=1, site=name, dice_image=0.5, ci95=None, loss=0.1, cases=3)
    run.log("round", arm="federated", round=1, dice_image=0.5, seconds=4.0, completed=["ghent", "iowa"], failed={})
    run.log("site_test", arm="federated", round=1, site="iowa", dice_image=0.5)
    run.write_json("run.json", {"final": {"dice_image": 0.5}})
    sight = Watcher(tmp_path, 600).look()
    assert sight.state == "ended" and sight.age is not None and sight.age < 600
    assert [site.now for site in sight.sites] == ["took part", "took part"]


def test_damaged_files_of_the_run_are_said_and_hide_nothing_else(tmp_path: Path) -> None:
    Told(tmp_path).began("ghent")
    (tmp_path / "config.toml").write_text("[nonsense")
    (tmp_path / "run.json").write_text("{")
    page = web(tmp_path, stalled_after=1e6).get("/")
    assert page.status_code == 200 and "config.toml cannot be read" in page.text and "training" in page.text


# --- privacy ----------------------------------------------------------------------------------------
def test_what_a_private_run_has_spent_is_shown_while_it_runs(tmp_path: Path) -> None:
    from tmca_core.privacy.accounting import NoisySteps, epsilon

    values = {"privacy__enabled": True, "privacy__noise_multiplier": 1.0, "privacy__sample_rate": 0.1, "federation__weighting": "uniform"}
    told = Told(tmp_path, **values).began("ghent", "iowa")
    record = {"dice_image": None, "seconds": 1.0, "surplus": [], "worst_dice": None}
    told("round", 9, round=1, completed=["ghent"], failed={"iowa": "it refuses"}, refused=["iowa"], **record)
    told("round", 19, round=2, completed=["ghent", "iowa"], failed={}, refused=[], **record)
    watcher = Watcher(tmp_path, 1e6)
    watcher.look()
    watcher._spending._worker.shutdown(wait=True)
    found = {site.news.name: site.epsilon for site in watcher.look().sites}
    assert found["iowa"] == pytest.approx(epsilon([NoisySteps(1.0, 0.1, 2)], 1e-5, coarse=True))
    assert found["ghent"] == pytest.approx(epsilon([NoisySteps(1.0, 0.1, 4)], 1e-5, coarse=True))


# --- hostile input, and the door ---------------------------------------------------------------------
def test_hostile_names_and_reasons_are_text(tmp_path: Path) -> None:
    told = Told(tmp_path).began(EVIL, EVIL + "x" * 5000, EVIL + "y" * 5000).trained(EVIL, 5)
    told("fault", 6, round=1, site=EVIL, phase="train", kind="<b>", reason="<img src=x onerror=alert(2)>")
    told("note", 7, round=1, text="</p><script>alert(3)</script>")
    told("site_eval", 8, round=1, site=EVIL, dice_image=0.5, ci95=None, loss=None, cases=None)
    told(
        "round",
        9,
        round=1,
        dice_image=0.5,
        seconds=1.0,
        completed=[EVIL],
        failed={},
        surplus=[],
        refused=[],
        worst_site=EVIL,
        worst_dice=0.5,
    )
    client = web(tmp_path, stalled_after=1e6)
    for path in ("/", "/news"):
        text = client.get(path).text
        parsed = Parsed(text)
        assert not {"img", "b", "iframe"} & {tag for tag, _ in parsed.found} and "alert(1)" in text and "x" * 100 not in text
        assert [given for tag, given in parsed.found if tag == "script"] == ([{"src": "live.js", "defer": None}] if path == "/" else [])
        assert not any(name.startswith("on") for _, given in parsed.found for name in given)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    labels = [sample.labels["site"] for sample in families["tmca_site_up"].samples]
    assert len(set(labels)) == 3 and all(len(label) < 100 for label in labels)  # as different as the names are


def test_figures_for_prometheus_are_of_the_text_format_with_units_and_labels(tmp_path: Path) -> None:
    Told(tmp_path, federation__rounds=8).began("ghent", "iowa").trained("ghent", 30)
    answer = web(tmp_path, stalled_after=1e6).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["tmca_run_state", "running"] == 1 and samples["tmca_run_state", "ended"] == 0
    assert samples[("tmca_rounds_planned",)] == 8 and samples[("tmca_round",)] == 1
    assert samples["tmca_site_turns_total", "ghent"] == 1 and samples["tmca_site_turns_total", "iowa"] == 0
    assert samples["tmca_site_sent_bytes_total", "ghent"] == 1000 and samples["tmca_site_received_bytes_total", "ghent"] == 2000
    assert samples["tmca_site_training_seconds_total", "ghent"] == 29


@pytest.mark.parametrize("path", ["/", "/news", "/style.css", "/live.js", "/health", "/metrics", "/no-such-page"])
def test_nothing_can_be_written_and_nothing_from_elsewhere_is_let_in(tmp_path: Path, path: str) -> None:
    client = web(tmp_path)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
        assert client.request(method, path).status_code == 405
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"(https?:)?//[a-z]", answer.text.replace("// ", "")) or path == "/metrics"
    assert " style=" not in answer.text


def test_only_the_names_it_was_told_are_answered(tmp_path: Path) -> None:
    for name in ("127.0.0.1:8080", "localhost", "[::1]:8080"):
        assert web(tmp_path).get("/", headers={"host": name}).status_code == 200
    for name in ("evil.example", "", "127.0.0.1.evil.example", "[::1"):
        assert web(tmp_path).get("/", headers={"host": name}).status_code == 421
    assert web(tmp_path, names=["Coordinator.example"]).get("/", headers={"host": "coordinator.example:443"}).status_code == 200


def test_what_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    told, client = Told(tmp_path).began("ghent"), web(tmp_path, stalled_after=1e6)
    tag = client.get("/news").headers["etag"]
    assert client.get("/news", headers={"if-none-match": tag}).status_code == 304
    told.trained("ghent", 5)
    assert client.get("/news", headers={"if-none-match": tag}).status_code == 200


# --- the command ------------------------------------------------------------------------------------
def test_the_command_says_where_the_page_is_serves_it_and_ends_when_told(tmp_path: Path) -> None:
    import httpx

    command = [sys.executable, "-m", "tmca_core.cli", "watch", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout
        where = json.loads(process.stdout.readline())["url"]
        try:
            assert httpx.get(f"{where}health", timeout=60).json()["state"] == "empty"
            taken = subprocess.run([*command[:5], "--port", where.split(":")[2].strip("/")], capture_output=True, text=True, check=False)
            assert taken.returncode == 2 and "Choose another --port" in taken.stderr
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
