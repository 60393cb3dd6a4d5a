"""A hospital's web service (DICOMweb, FHIR) over HTTPS: its own certificate authority, a token or a client certificate, bounded answers."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmca_core.errors import ConfigError, TmcaError

if TYPE_CHECKING:
    import httpx

MOST_JSON = 256 << 20  # bytes of one page of answers
HERE = ("localhost", "127.0.0.1", "::1")
RETRIES = 2  # of a connection that could not be made


class ServiceError(TmcaError):
    """A hospital's service does not answer, refuses, or answers with what cannot be read. No message holds what it said of a person."""


@dataclass(frozen=True)
class Access:
    """How a service is reached.

    Attributes:
        url: its base address.
        token: file with a bearer token, re-read for every request, so that it can be renewed meanwhile; None: none.
        ca: certificate authority that signed the server's certificate; None: those that the system trusts.
        certificate, key: PEM of the client, for mutual TLS; a key that stands in the certificate's file needs no `key`.
        insecure: plain http to another machine is allowed.
        seconds: a request may take without a sign of life.
    """

    url: str
    token: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    seconds: float = 60.0


class Service:
    """One service; use as a context manager. Only addresses below its own are ever asked, so that no token goes elsewhere."""

    def __init__(self, access: Access) -> None:
        import httpx

        self.access = access
        try:
            self.base = httpx.URL(access.url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise ConfigError(f"'{access.url}' is no address: {error}.") from None
        if self.base.scheme not in ("http", "https") or not self.base.host or self.base.userinfo:
            raise ConfigError(f"'{self.base.host or access.url}': give an https address without a password; a token has a file, --token.")
        if self.base.scheme == "http" and self.base.host not in HERE and not access.insecure:
            raise ConfigError(
                f"http://{self.base.host} would carry patients' data in the open. Give its https address, or --insecure where the way "
                "there is protected otherwise."
            )
        # No redirect is followed, no proxy or password of the environment taken: the token goes to this address and nowhere else.
        transport = httpx.HTTPTransport(verify=_trust(access), trust_env=False, retries=RETRIES)
        self._client = httpx.Client(transport=transport, timeout=access.seconds, trust_env=False, follow_redirects=False)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def address(self, path: str) -> httpx.URL:
        """An address of this service, from a path or another address.

        Raises:
            ServiceError: it is of another server, or above the base.
        """
        import httpx

        try:
            found = self.base.join(path)
        except httpx.InvalidURL:
            raise ServiceError(f"{self.base.host} names an address that is none.") from None
        same = (found.scheme, found.host, found.port) == (self.base.scheme, self.base.host, self.base.port)
        if not same or not f"{found.path}/".startswith(self.base.path):
            raise ServiceError(f"{self.base.host} refers to an address that is not below {self.base.path}: it is not followed.")
        return found

    def json(self, path: str, parameters: Mapping[str, Any] | None = None, accept: str = "application/json") -> Any:
        """A JSON answer; None where the service says that there is nothing (204, or an empty body).

        Raises:
            ServiceError: it does not answer, refuses, or the answer is no JSON.
        """
        _, data = self.get(path, accept, parameters, most=MOST_JSON)
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{self.base.host} answers with what is no JSON ({type(error).__name__}): is the address right?") from None

    def get(self, path: str, accept: str, parameters: Mapping[str, Any] | None = None, *, most: int) -> tuple[str, bytes]:
        """The content type and the bytes of an answer of at most `most` bytes.

        Raises:
            ServiceError: it does not answer, refuses, or sends more.
        """
        import httpx

        address, data = self.address(path), bytearray()
        if parameters:
            address = address.copy_merge_params(parameters)
        try:
            with self._client.stream("GET", address, headers={"Accept": accept, **self._token()}) as response:
                self._hold_to_status(response)
                for chunk in response.iter_bytes():  # unpacked already, so that a bomb is noticed
                    data += chunk
                    if len(data) > most:
                        raise ServiceError(f"{self.base.host} sends more than {most >> 20} MB in one answer: it is not taken.")
                return response.headers.get("content-type", ""), bytes(data)
        except httpx.HTTPError as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise ServiceError(f"{self.base.host}:{self.base.port or self.base.scheme} does not answer: {text}.") from None

    def _hold_to_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status < 300:
            return
        advice = {
            401: ": give a valid token with --token",
            403: ": this account may not read it",
            404: ": is the address right?",
            406: ": it cannot send this object in a form that is asked for",
        }
        why = advice.get(status, ": it sends on to another address; give that one" if status < 400 else "")
        raise ServiceError(f"{self.base.host} answers with {status}{why}.")

    def _token(self) -> dict[str, str]:
        if self.access.token is None:
            return {}
        try:
            token = self.access.token.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the token {self.access.token}: {error}.") from None
        if not token or len(token.split()) != 1:
            raise ConfigError(f"{self.access.token} holds no token: one word, as the service gave it.")
        return {"Authorization": f"Bearer {token}"}


def _trust(access: Access) -> ssl.SSLContext:
    """Who the server must be, and who we are."""
    try:
        context = ssl.create_default_context(cafile=str(access.ca) if access.ca else None)
        if access.certificate:
            context.load_cert_chain(str(access.certificate), str(access.key) if access.key else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates for {access.url} cannot be used: {error}. Give PEM files.") from None
    return context
