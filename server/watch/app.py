"""The application: one page, its news, its style and script, `/health` and `/metrics`; nothing can be written to it."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.watch.figures import exposition, health
from server.watch.page import render
from server.watch.sight import Watcher
from tmca_core.pages.look import style
from tmca_core.pages.serving import new_app, with_tag


def watch_app(folder: Path, *, stalled_after: float = 600.0, names: Collection[str] = ()) -> FastAPI:
    """The page over a run's folder.

    Args:
        folder: the run's; it need not exist yet.
        stalled_after: seconds without an event until the run counts as stalled; a round may take three times the longest before.
        names: of hosts that it answers to (`tmca_core.pages.serving.new_app`).
    """
    app, watcher = new_app(names), Watcher(folder, stalled_after)
    here = folder.resolve().name
    script = (files("tmca_core.pages") / "live.js").read_text(encoding="utf-8")

    fixed = {"style.css": (style(), "text/css"), "live.js": (script, "text/javascript")}

    def read(request: Request, part: str) -> Response:
        if part in fixed:
            return with_tag(request, *fixed[part])
        sight = watcher.look()
        if part == "health":
            found = health(sight)
            return JSONResponse(found, 503 if found["stalled"] else 200)
        if part == "metrics":
            return Response(exposition(sight), media_type=CONTENT_TYPE_LATEST)
        if part not in ("", "news"):
            raise HTTPException(404, "There is no such page.")
        return with_tag(request, render(sight, here, whole=not part), "text/html")

    app.add_api_route("/{part:path}", read, methods=["GET"], response_model=None)
    return app
