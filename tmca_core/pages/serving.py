"""A small local web server: bound where it is told, answering to its own names only, letting in nothing from elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Awaitable, Callable, Collection
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tmca_core.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}
LOCAL = ("127.0.0.1", "localhost", "::1")


def new_app(names: Collection[str], methods: Collection[str] = ("GET",)) -> FastAPI:
    """An application without any page yet.

    Args:
        names: of hosts that it answers to beside those of this machine alone: a page that any name may lead to can be read by a stranger's
            web site whose name was made to point here.
        methods: of HTTP that it knows; others are answered with 405.
    """
    from fastapi import FastAPI
    from starlette.responses import PlainTextResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    known = {*LOCAL, *(name.lower() for name in names)}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response: Response
        if request.method not in methods:
            response = PlainTextResponse("This page can only be read.\n", 405, {"Allow": ", ".join(methods)})
        elif host_of(request.headers.get("host", "")) not in known:
            response = PlainTextResponse("This page is not served under that name (see its --name).\n", 421)
        else:
            response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


def host_of(header: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def with_tag(request: Request, content: str, kind: str) -> Response:
    """The content, or word that it is what the browser has already."""
    from starlette.responses import Response

    tag = f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(content, media_type=kind, headers={"ETag": tag})


def listen(host: str, port: int) -> socket.socket:
    """A socket that the page can be served at.

    Args:
        host: name or address of an interface of this machine.
        port: 0: any that is free.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"nothing can be served at {host}, port {port}: {said}. Choose another --port (0: any that is free).") from None


def address(bound: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = bound.getsockname()[:2]
    name = {str(IPv4Address(0)): LOCAL[0], str(IPv6Address(0)): LOCAL[2]}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def serve(app: FastAPI, bound: socket.socket) -> None:
    """Answer until somebody stops this (Ctrl-C, SIGTERM)."""
    import uvicorn

    settings = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[bound])
