"""The hospital's page as an application: at a secret address of this computer, and its buttons only for who was served the page."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from client.standing import leave, pause, resume
from client.view.page import Desk, render
from tmca_core.errors import TmcaError
from tmca_core.pages.look import style
from tmca_core.pages.serving import new_app, with_tag

LARGEST_FORM = 4096
"""Bytes."""
_SAID = {"pause": "Paused. Nothing is answered any more.", "resume": "Resumed.", "leave": "The run is left for good."}


def view_app(desk: Desk, key: str) -> FastAPI:
    """The page.

    Args:
        desk: where it looks.
        key: part of its address that nobody can guess: other users of this computer reach the port too.
    """
    app, token = new_app((), ("GET", "POST")), secrets.token_urlsafe(32)
    fixed = {
        "style.css": (style(), "text/css"),
        "live.js": ((files("tmca_core.pages") / "live.js").read_text(encoding="utf-8"), "text/javascript"),
    }

    def read(request: Request, given: str, part: str) -> Response:
        _hold_to(key, given)
        if part in fixed:
            return with_tag(request, *fixed[part])
        if part not in ("", "news"):
            raise HTTPException(404, "There is no such page.")
        said = _SAID.get(request.query_params.get("done", ""), "")
        return with_tag(request, render(desk.look(), whole=not part, token=token, said=said), "text/html")

    async def act(request: Request, given: str, part: str) -> Response:
        _hold_to(key, given)
        form = await _form(request)
        if not _same(form.get("token", ""), token) or not _from_here(request):
            raise HTTPException(403, "This button was not pressed on this page. Reload it and press again.")
        await run_in_threadpool(_change, desk, part, form)
        return RedirectResponse(f"/{key}/?done={part}", 303)

    app.add_api_route("/{given}/{part:path}", read, methods=["GET"], response_model=None)
    app.add_api_route("/{given}/{part}", act, methods=["POST"], response_model=None)
    return app


def new_key() -> str:
    """A part of an address that nobody can guess."""
    return secrets.token_urlsafe(32)


def _hold_to(key: str, given: str) -> None:
    if not _same(given, key):
        raise HTTPException(404, "Nothing here. Open the address that `tmca site view` has printed.")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())


def _from_here(request: Request) -> bool:
    """Whether a browser says that the request comes from this page; other programs say nothing."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    return origin in (None, f"http://{request.headers.get('host')}") and site in (None, "same-origin")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, "No form of this page is that long.")
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


def _change(desk: Desk, what: str, form: Mapping[str, str]) -> None:
    try:
        if what == "pause":
            pause(desk.state)
        elif what == "resume":
            resume(desk.state)
        elif what == "leave":
            run = form.get("run", "")
            if form.get("sure") != "yes" or run not in {known.name for known in desk.look().runs}:
                raise HTTPException(400, "Choose the run, and say that you are sure.")
            leave(desk.state, run)
        else:
            raise HTTPException(404, "There is no such button.")
    except TmcaError as error:
        raise HTTPException(409, str(error)) from None
