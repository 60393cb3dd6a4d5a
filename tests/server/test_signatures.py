"""A SuperNode's calls are signed whole, and the SuperLink takes each once. The rehearsal does it between real processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException, Request
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.superlink import main
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.supernode import fleet_http_connection
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.signatures import SignedCalls, sign_calls
from server import signatures
from server.signatures import KEPT, WholeCalls, _held, hold_to_signatures
from tmca_core.deploy.calls import SIGNATURE

PATH, BODY = "/v1/fleet/push-messages", b"what a site has to say"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    vars(main)["NodeAuthMiddleware"] = NodeAuthMiddleware
    vars(fleet_http_connection)["NodeAuthHttpInterceptor"] = NodeAuthHttpInterceptor


def sent() -> httpx.Request:
    """A call as a SuperNode's client sends it."""
    key = ec.generate_private_key(ec.SECP384R1())
    caught: list[httpx.Request] = []

    def network(context: ProtobufRequestContext) -> httpx.Response:
        caught.append(context.request)
        return httpx.Response(200)

    request = httpx.Request("POST", f"https://localhost:1{PATH}", content=BODY)
    SignedCalls(key, key.public_key()).intercept(ProtobufRequestContext("", SendNodeHeartbeatRequest(), request), network)
    return caught[0]


def received(headers: Mapping[str, str], path: str = PATH) -> Request:
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request(scope)


def test_a_call_is_taken_as_it_was_signed_and_not_otherwise() -> None:
    headers = dict(sent().headers)
    assert _held(received(headers), BODY)
    other = dict(sent().headers)
    for request, body in (
        (received(headers), BODY + b"."),
        (received(headers, "/v1/fleet/unregister-node"), BODY),
        (received({**headers, "flwr-timestamp": other["flwr-timestamp"]}), BODY),
        (received({**headers, SIGNATURE: other[SIGNATURE]}), BODY),
        (received({**headers, SIGNATURE: "no base64"}), BODY),
        (received({name: value for name, value in headers.items() if name != SIGNATURE}), BODY),
    ):
        with pytest.raises(HTTPException) as refused:
            _held(request, body)
        assert refused.value.status_code == 401


def test_a_call_is_taken_once_and_forgotten_when_flower_would_refuse_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signatures.time, "monotonic", lambda: now[0])
    calls = WholeCalls(app=lambda *_: None)
    calls._remember(b"a")
    calls._remember(b"b")
    with pytest.raises(HTTPException, match="made before"):
        calls._remember(b"a")
    now[0] += KEPT + 1
    calls._remember(b"c")
    assert list(calls._seen) == [b"c"]


def test_a_refused_supernode_says_what_to_look_at(caplog: pytest.LogCaptureFixture) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    context = ProtobufRequestContext("", SendNodeHeartbeatRequest(), httpx.Request("POST", f"https://localhost:1{PATH}", content=BODY))
    logger = logging.getLogger("flwr.client.signatures")
    logger.addHandler(caplog.handler)
    try:
        SignedCalls(key, key.public_key()).intercept(context, lambda _: httpx.Response(401))
    finally:
        logger.removeHandler(caplog.handler)
    assert "its key is not registered, or no longer, or the clock here is wrong" in caplog.text


def test_what_is_replaced_is_what_flower_uses() -> None:
    hold_to_signatures()
    sign_calls()
    assert [entry.cls for entry in main._get_middleware()].count(WholeCalls) == 1  # type: ignore[comparison-overlap]
    assert fleet_http_connection.NodeAuthHttpInterceptor is SignedCalls  # type: ignore[comparison-overlap]
