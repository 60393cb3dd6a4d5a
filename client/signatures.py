"""A SuperNode's signature over each of its calls as a whole."""

from __future__ import annotations

import logging
from base64 import b64encode

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode import fleet_http_connection
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tmca_core.deploy.calls import SIGNATURE, signed_part

log = logging.getLogger(f"flwr.{__name__}")


class SignedCalls(NodeAuthHttpInterceptor):
    """Flower's headers, and a signature over time, path and content."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign a call; where it is refused say why, for Flower ends the SuperNode without a word."""

        def sign(context: ProtobufRequestContext) -> httpx.Response:
            request = context.request
            part = signed_part(request.headers[TIMESTAMP_HEADER], request.url.path, request.content)
            add_headers(request, {SIGNATURE: b64encode(sign_message(self._private_key, part)).decode()})
            return call_next(context)

        response = super().intercept(context, sign)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            log.error(
                "the SuperLink refuses this SuperNode's call (401): its key is not registered, or no longer, or the clock here is wrong; "
                "`tmca deploy join` checks the clock."
            )
        return response


def sign_calls() -> None:
    """Let SuperNodes that start from now on in this process sign their calls as a whole."""
    vars(fleet_http_connection)["NodeAuthHttpInterceptor"] = SignedCalls
