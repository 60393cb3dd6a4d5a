"""The SuperLink holds each call of a SuperNode to a signature over the whole of it, and takes each call once.

Flower's signature is over the time alone: for five minutes whoever reads one could send it again with any content. TLS keeps readers
away; this holds where it ends, at a proxy or in a log.
"""

from __future__ import annotations

import binascii
import time
from base64 import b64decode
from hashlib import sha256
from itertools import islice
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink import main
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import RequestResponseEndpoint

from tmca_core.deploy.calls import SIGNATURE, signed_part

KEPT = TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE
"""Seconds for which a call is remembered: until Flower refuses its time."""


class WholeCalls(NodeAuthMiddleware):
    """Flower's own check of key, time and node, and after it that of the whole call."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: dict[bytes, float] = {}  # in the order of arrival

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Answer a call, or refuse it with 401."""

        async def once(request: Request) -> Response:
            if request.url.path.startswith("/v1/fleet/") and request.app.state.enable_supernode_auth:
                self._remember(await run_in_threadpool(_held, request, await request.body()))
            return await call_next(request)

        return await super().dispatch(request, once)

    def _remember(self, call: bytes) -> None:
        now = time.monotonic()
        for old in [old for old, until in islice(self._seen.items(), 4) if until < now]:  # the oldest; one is added at a time
            del self._seen[old]
        if call in self._seen:
            raise HTTPException(401, "this call was made before")
        self._seen[call] = now + KEPT


def _held(request: Request, body: bytes) -> bytes:
    """What is remembered of a call, once its signature is found to be over the whole of it."""
    try:
        key = b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        part = signed_part(request.headers[TIMESTAMP_HEADER], request.url.path, body)
        if verify_signature(bytes_to_public_key(key), part, b64decode(request.headers[SIGNATURE], validate=True)):
            return sha256(key + part).digest()
    except (KeyError, ValueError, TypeError, binascii.Error):
        pass
    raise HTTPException(401, "the call is not signed as a whole: start the SuperNode with `tmca deploy node`")


def hold_to_signatures() -> None:
    """Let a SuperLink that starts from now on in this process ask its SuperNodes for signatures over whole calls."""
    vars(main)["NodeAuthMiddleware"] = WholeCalls
