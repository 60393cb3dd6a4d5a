"""Rows: a site's own signed call, sent by somebody else: again, with other content, too late, in another's name."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.outsiders import knock, trusting
from simulations.rehearsal.stage import Stage
from tmca_core.deploy.calls import SIGNATURE, signed_part
from tmca_core.deploy.keys import KEY, load_site_key

BEAT = "/v1/fleet/send-node-heartbeat"
"""A call that changes nothing but when a site was last heard of."""


def replayed(stage: Stage) -> str:
    """A call as it was made, once more."""
    call = _call(stage, stage.names[0])
    answers = [_send(stage, *call), _send(stage, *call)]
    expect(answers == [200, 401], f"answered with {answers}")
    return "200 to the site's own call, 401 to the same call again"


def altered(stage: Stage) -> str:
    """The headers of a call that was kept from arriving, with another content and to another path."""
    body, headers = _call(stage, stage.names[0])
    other = SendNodeHeartbeatRequest.FromString(body)
    other.heartbeat_interval = 86400.0
    answers = [_send(stage, other.SerializeToString(deterministic=True), headers)]
    answers.append(knock(stage.fleet, "/v1/fleet/deactivate-node", trusting(stage), body, headers))
    unsigned = {name: value for name, value in headers.items() if name != SIGNATURE}
    answers.append(_send(stage, body, unsigned))
    expect(answers == [401, 401, 401], f"answered with {answers}")
    answers.append(_send(stage, body, headers))
    expect(answers[-1] == 200, f"the call itself was answered with {answers[-1]}")
    return "401 to other content, to another path, and without the signature over the whole; 200 to the call as it was signed"


def stale(stage: Stage) -> str:
    """A call of a while ago, and one from the future."""
    answers = [_send(stage, *_call(stage, stage.names[0], ago=seconds)) for seconds in (600, -60)]
    expect(answers == [401, 401], f"answered with {answers}")
    return "401 to a call that was signed 10 minutes ago, 401 to one of the next minute"


def anothers_name(stage: Stage) -> str:
    """A hospital signs with its own registered key, in the name of another hospital's SuperNode."""
    first, second = stage.names[:2]
    answer = _send(stage, *_call(stage, first, claims=second))
    expect(answer == 401, f"answered with {answer}")
    return f"401: '{first}' cannot speak for '{second}'"


def _send(stage: Stage, body: bytes, headers: dict[str, str]) -> int | str:
    return knock(stage.fleet, BEAT, trusting(stage), body, headers)


def _call(stage: Stage, site: str, *, ago: float = 0.0, claims: str = "") -> tuple[bytes, dict[str, str]]:
    """Content and headers of a heartbeat, as a site's SuperNode would make it.

    Args:
        ago: seconds since it was made.
        claims: the site in whose name it is; "": its own.
    """
    key = load_site_key(stage.site(site) / KEY)
    beat = SendNodeHeartbeatRequest(node=Node(node_id=stage.node(claims or site)), heartbeat_interval=30.0)
    body, timestamp = beat.SerializeToString(deterministic=True), (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()
    signed = {FLEET_HTTP_SIGNATURE_HEADER: timestamp.encode("ascii"), SIGNATURE: signed_part(timestamp, BEAT, body)}
    headers = {name: b64encode(sign_message(key, part)).decode() for name, part in signed.items()}
    public = b64encode(public_key_to_bytes(key.public_key())).decode()
    return body, {**headers, TIMESTAMP_HEADER: timestamp, FLEET_HTTP_PUBLIC_KEY_HEADER: public}


ROWS = (
    Row("replayed-call", "intrusion", "a site's signed call, sent again", "401", replayed),
    Row("altered-call", "intrusion", "a site's signed call with other content, or to another path", "401", altered),
    Row("stale-call", "intrusion", "a site's signed call of ten minutes ago, and of the next minute", "401", stale),
    Row("anothers-name", "intrusion", "a site's signed call in the name of another site", "401", anothers_name),
)  # fmt: skip
