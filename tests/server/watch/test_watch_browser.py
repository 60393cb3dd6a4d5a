"""The coordinator's page in a browser: a live federation, photographed; axe-core over it; news that come without a reload."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from browser import accessibility, dumped, grave, needs_browser, photograph
from flwr.app import RecordDict
from made_up_sites import Sites, Tiny, settings
from PIL import Image
from serving import served
from starlette.requests import Request
from starlette.responses import Response

from server import rounds
from server.app import federate
from server.watch.app import watch_app
from tmca_core.run import Run

pytestmark = [pytest.mark.slow, needs_browser]


def test_a_live_federation_is_photographed_and_accessible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())
    config = settings(federation__rounds=6)
    sites, reached, photographed = Sites(config), threading.Event(), threading.Event()

    def wait(content: RecordDict) -> RecordDict:
        reached.set()
        assert photographed.wait(300)
        return content

    def fail(content: RecordDict) -> RecordDict:
        raise ValueError("the scanner is on fire")

    sites.twists["iowa", 4], sites.twists["ghent", 4] = wait, fail
    run = threading.Thread(target=federate, args=(sites.grid(), config, tmp_path / "run", None))
    run.start()
    try:
        assert reached.wait(120)
        with served(watch_app(tmp_path / "run")) as url:
            seen = dumped(url, tmp_path)
            assert "<h1>Round 4 of 6</h1>" in seen and "2 of 3 have answered" not in seen and "1 of 3 has answered" in seen
            assert "s ago" in seen  # the script ran
            for state in ("training", "has answered", "failed"):
                assert state in seen
            for name, dark, width in (("light", False, 1280), ("dark", True, 1280), ("phone", False, 500)):
                with Image.open(photograph(url, tmp_path / f"{name}.png", dark=dark, width=width)) as picture:
                    corner = picture.convert("L").getpixel((2, 2))
                assert isinstance(corner, (int, float)) and (corner < 60) is dark
            page, style = httpx.get(url).text, httpx.get(f"{url}style.css").text
            for dark, width in ((False, 1280), (True, 500)):
                assert grave(accessibility(page, style, tmp_path, dark=dark, width=width)) == []
    finally:
        photographed.set()
        run.join(120)
    assert not run.is_alive()


def test_news_come_into_an_open_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", settings())
    run.log("asked", round=1, phase="train", sites=["ghent"])
    app = watch_app(tmp_path / "run")

    @app.middleware("http")
    async def go_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await call_next(request)
        if request.url.path == "/":  # once it has the page, the run goes on
            run.log("asked", round=2, phase="train", sites=["ghent", "iowa"])
        return answer

    with served(app) as url:
        assert "<h1>Round 2 of 3</h1>" in dumped(url, tmp_path)


def test_the_axe_test_would_find_a_fault(tmp_path: Path) -> None:
    page = "<!DOCTYPE html><html><head></head><body><main><h1>x</h1><img src='a.png'><p style='color:#bbb'>pale</p></main></body></html>"
    rules = {rule for rule, _, _ in grave(accessibility(page, "", tmp_path))}
    assert {"image-alt", "html-has-lang", "color-contrast"} <= rules
