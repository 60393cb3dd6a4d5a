"""The hospital's page: what it shows of ledgers, runs and gain, who may open it, and who may press its buttons."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fastapi.testclient import TestClient

from client import standing
from client.view.accounts import Books, more_rounds
from client.view.app import new_key, view_app
from client.view.page import Desk
from client.view.runs import dice_of
from tmca_core.errors import ConfigError
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Budget, Charge, Ledger

STEP = NoisySteps(1.0, 0.05, 20)
BUDGET = Budget(4.0, 1e-5)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A hospital with two runs on its ledger, the second with Dice of its own."""
    (tmp_path / "site.toml").write_text("[privacy]\nepsilon = 4.0\n")
    ledger = Ledger.create(tmp_path / "ledger")
    patients = [f"p{k}" for k in range(30)]
    for run, rounds in (("0a", 1), ("0b", 2)):
        ledger.note("agreed", run=run, terms={"private": True, "noise_multiplier": 1.0, "sample_rate": 0.05, "steps": 40})
        for round in range(1, rounds + 1):
            ledger.charge(Charge(STEP, run=run, round=round), patients, BUDGET)
            ledger.note("evaluation", run=run, round=round, split="val")
    folder = tmp_path / "state" / "ghent" / "0b"
    folder.mkdir(parents=True)
    scores = [{"round": 1, "split": "val", "dice_image": 0.4}, {"round": 2, "split": "val", "dice_image": 0.55}]
    scores.append({"round": 2, "split": "test", "dice_image": 0.6})
    (folder / "scores.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores) + '{"round": 3, "spl')
    return tmp_path


class Page:
    """The page as its owner has it open."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.state, self.key = folder / "state", new_key()
        self.app = view_app(Desk(self.state, [folder / "site.toml"], **options), self.key)
        self.web = TestClient(self.app, base_url="http://127.0.0.1:8090", follow_redirects=False)

    def read(self, part: str = "") -> str:
        answer = self.web.get(f"/{self.key}/{part}")
        assert answer.status_code == 200, answer.text
        return answer.text

    def token(self) -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.read())
        assert found
        return found[1]

    def press(self, what: str, *, key: str = "", headers: dict[str, str] | None = None, **form: str) -> int:
        given = {"token": self.token(), **form}
        return self.web.post(f"/{key or self.key}/{what}", data=given, headers=headers).status_code


# --- what is shown ----------------------------------------------------------------------------------
def test_spent_left_and_every_entry_are_shown(site: Path) -> None:
    page = Page(site).read()
    spent = epsilon([STEP] * 3, 1e-5)
    assert f"{spent:.2f} is spent" in page and f"{4.0 - spent:.2f} is left" in page and "ghent takes part" in page
    assert page.count("Terms of a run agreed on") == 2 and page.count("paid for</td>") == 3 and "Ledger made" in page
    assert "noise σ 1.0, sampling rate 0.05, 20 steps, 30 patients" in page
    (account,) = Books([site / "site.toml"]).look()
    assert account.rounds is not None
    rounds = lambda more: epsilon([NoisySteps(1.0, 0.05, 20 * (3 + more))], 1e-5)  # noqa: E731
    assert rounds(account.rounds) <= 4.0 < rounds(account.rounds + 1)


@pytest.mark.parametrize(("limit", "fitting"), [(0.5, 0), (1.0, 1), (7.9, 7), (8.0, 8), (1e9, 1024)])
def test_how_many_more_rounds_fit(limit: float, fitting: int) -> None:
    def after(more: list[Any]) -> float:
        return sum(step.steps for step in more) / STEP.steps

    assert more_rounds(STEP, limit, after) == fitting


def test_a_ledger_that_grows_is_read_again_and_a_damaged_one_is_said(site: Path) -> None:
    page = Page(site)
    before = page.read("news")
    Ledger.open(site / "ledger").charge(Charge(STEP, run="0c", round=1), ["p1"], BUDGET)
    after = page.read("news")
    assert f"{epsilon([STEP] * 4, 1e-5):.2f} is spent" in after and after != before and "<code>0c</code>" in after
    (site / "ledger" / "ledger.jsonl").write_text("")
    assert "Nothing is released: the privacy ledger" in page.read("news")


def test_the_gain_is_shown_where_both_are_known(site: Path) -> None:
    assert "To see the gain" in Page(site).read() and "reaches a Dice of 0.600" in Page(site).read()
    for name, file, dice in (("alone", "run.json", 0.5), ("together", "evaluation.json", 0.62)):
        (site / name).mkdir()
        (site / name / file).write_text(json.dumps({"final": {"dice_image": dice, "per_site": {"ghent": {"dice_image": dice}}}}))
    assert "our own model alone 0.500: +0.100" in Page(site, alone=site / "alone").read()
    assert "our own model alone 0.500: +0.120" in Page(site, alone=site / "alone", together=site / "together").read()
    with pytest.raises(ConfigError, match="holds no measured model"):
        dice_of(site)


def test_hostile_names_are_text(site: Path) -> None:
    Ledger.open(site / "ledger").note("figures", count=1, purpose="<img src=x>", names=["<script>alert(1)</script>"])
    text = Page(site).read()

    class Tags(HTMLParser):
        found: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.found.append(tag)

    Tags().feed(text)
    assert "img" not in Tags.found and Tags.found.count("script") == 1 and "alert(1)" in text


# --- the buttons ------------------------------------------------------------------------------------
def test_buttons_pause_resume_and_leave(site: Path) -> None:
    page = Page(site)
    assert page.press("pause") == 303 and standing.read_standing(page.state).paused
    assert "ghent is paused" in page.read() and "Paused. Nothing is answered any more." in page.read("?done=pause")
    assert page.press("resume") == 303 and not standing.read_standing(page.state).paused
    assert page.press("leave", run="0b") == 400  # not sure
    assert page.press("leave", run="0f", sure="yes") == 400  # never asked here
    assert page.press("leave", run="../0b", sure="yes") == 400
    assert not standing.read_standing(page.state).left
    assert page.press("leave", run="0b", sure="yes") == 303 and set(standing.read_standing(page.state).left) == {"0b"}
    assert '<option value="0b">' not in page.read() and '<option value="0a">' in page.read()


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)
def test_a_button_pressed_from_another_page_does_nothing(site: Path, headers: dict[str, str]) -> None:
    page = Page(site)
    assert page.press("pause", headers=headers) == 403
    assert not standing.read_standing(page.state).paused
    own = {"origin": "http://127.0.0.1:8090", "sec-fetch-site": "same-origin"}
    assert page.press("pause", headers=own) == 303


def test_without_the_page_s_token_or_its_address_nothing_is_shown_and_nothing_happens(site: Path) -> None:
    page = Page(site)
    for token in ("", "x", page.key, page.token()[:-1]):
        assert page.press("pause", token=token) == 403
    for key in ("x", page.key[:-1], page.key + "x", "é", page.token()):
        assert page.press("pause", key=key) == 404
        for part in ("", "news", "style.css", "live.js"):
            assert page.web.get(f"/{key}/{part}").status_code == 404
    assert page.web.get("/").status_code == 404
    assert page.web.get(f"/{page.key}/", headers={"host": "evil.example"}).status_code == 421
    assert page.web.post(f"/{page.key}/pause", content=b"token=" + b"x" * 5000).status_code == 413
    assert page.web.get(f"/{page.key}/pause").status_code == 404 and page.press("explode") == 404
    assert page.web.put(f"/{page.key}/pause").status_code == 405
    assert not standing.read_standing(page.state).paused
    assert Page(site).key != page.key


def test_a_standing_that_cannot_be_read_is_said_and_the_button_fails(site: Path) -> None:
    page = Page(site)
    (page.state / standing.FILE).write_text("{")
    assert "answers nothing: its standing cannot be read" in page.read()
    assert page.press("resume") == 409


def test_without_a_policy_the_page_says_what_that_means(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    key = new_key()
    text = TestClient(view_app(Desk(tmp_path / "state"), key), base_url="http://127.0.0.1").get(f"/{key}/").text
    assert "No policy was named" in text and "No run has asked through this folder yet" in text
