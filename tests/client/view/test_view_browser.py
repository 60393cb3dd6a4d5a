"""The hospital's page in a browser: accessible in light and dark, and its button pressed by a click."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from browser import accessibility, dumped, grave, needs_browser, photograph
from serving import served
from starlette.requests import Request
from starlette.responses import Response

from client import standing
from client.view.app import new_key, view_app
from client.view.page import Desk
from tmca_core.privacy.accounting import NoisySteps
from tmca_core.privacy.ledger import Budget, Charge, Ledger

pytestmark = [pytest.mark.slow, needs_browser]


def test_the_page_is_accessible_and_its_button_works(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "ghent" / "0b").mkdir(parents=True)
    (tmp_path / "site.toml").write_text("[privacy]\nepsilon = 4.0\n")
    Ledger.create(tmp_path / "ledger").charge(Charge(NoisySteps(1.0, 0.05, 20), run="0b", round=1), ["p1"], Budget(4.0, 1e-5))
    key = new_key()
    app = view_app(Desk(state, [tmp_path / "site.toml"]), key)

    @app.middleware("http")
    async def click(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Somebody presses Pause: the page's own script file ends with it, once."""
        answer = await call_next(request)
        if not request.url.path.endswith("live.js") or standing.read_standing(state).paused:
            return answer
        body = b"".join([part async for part in answer.body_iterator])  # type: ignore[attr-defined]
        pressed = b'\ndocument.getElementById("pause").click();'
        return Response(body + pressed, media_type="text/javascript", headers={"Cache-Control": "no-store"})

    with served(app) as base:
        url = f"{base}{key}/"
        standing.pause(state)
        photograph(url, tmp_path / "light.png")
        page, style = httpx.get(url).text, httpx.get(f"{url}style.css").text
        for dark, width in ((False, 1280), (True, 500)):
            assert grave(accessibility(page, style, tmp_path, dark=dark, width=width)) == []
        standing.resume(state)
        assert "ghent is paused" in dumped(url, tmp_path, moment=0)
        assert standing.read_standing(state).paused
