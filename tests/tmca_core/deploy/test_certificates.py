"""The CA and what it certifies: read back with OpenSSL's own eyes through real handshakes."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tmca_core.deploy.certificates import (
    Authority,
    hosts_of,
    issue_operator,
    issue_server,
    issued,
    key_pem,
    open_authority,
    operator_request,
)
from tmca_core.deploy.keys import new_key, write_new
from tmca_core.errors import ConfigError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return open_authority(tmp_path / "ca", "lungs", 3650)


def handshake(server: Path, client: ssl.SSLContext, host: str, ca: Path | None = None) -> str:
    """ "ok", or why a TLS client does not trust the server, or the server not the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    if ca:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            accepted, _ = listener.accept()
            try:
                with context.wrap_socket(accepted, server_side=True) as wrapped:
                    wrapped.sendall(b"ok")
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                client.wrap_socket(raw, server_hostname=host) as wrapped,
            ):
                return wrapped.recv(2).decode() or "closed"
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except OSError as error:
            return type(error).__name__
        finally:
            thread.join()


def trusting(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def test_the_server_is_trusted_under_its_name_and_no_other(authority: Authority, tmp_path: Path) -> None:
    issue_server(tmp_path, authority, "fl.example.org", 30)
    ca = trusting(tmp_path / "ca" / "ca.crt")
    assert handshake(tmp_path, ca, "fl.example.org") == "ok"
    assert handshake(tmp_path, ca, "127.0.0.1") == "ok"  # the SuperExec beside it
    assert "Hostname mismatch" in handshake(tmp_path, ca, "other.example.org")
    open_authority(tmp_path / "foreign", "lungs", 30)
    assert "unable to get local issuer" in handshake(tmp_path, trusting(tmp_path / "foreign" / "ca.crt"), "fl.example.org")


def test_an_operator_is_a_client_and_the_server_is_none(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca" / "ca.crt"
    issue_server(tmp_path, authority, "localhost", 30)
    key = new_key()
    write_new(tmp_path / "operator.key", key_pem(key), private=True)
    write_new(tmp_path / "operator.csr", operator_request(key, "anna"))
    certificate = issue_operator(tmp_path, authority, "anna", 30)
    assert certificate is not None and issued(certificate, authority.certificate)
    operator, impostor = trusting(ca), trusting(ca)
    operator.load_cert_chain(tmp_path / "operator.crt", tmp_path / "operator.key")
    impostor.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    assert handshake(tmp_path, operator, "localhost", ca) == "ok"
    assert handshake(tmp_path, impostor, "localhost", ca) != "ok"
    assert handshake(tmp_path, trusting(ca), "localhost", ca) != "ok"


def test_an_operator_gets_the_name_that_the_federation_says_whatever_the_request_says(authority: Authority, tmp_path: Path) -> None:
    write_new(tmp_path / "operator.csr", operator_request(new_key(), "root"))
    certificate = issue_operator(tmp_path, authority, "anna", 30)
    assert certificate is not None and certificate.subject.rfc4514_string() == "CN=anna"
    (tmp_path / "operator.crt").unlink()
    (tmp_path / "operator.csr").write_text("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
    with pytest.raises(ConfigError, match="no certificate request"):
        issue_operator(tmp_path, authority, "anna", 30)


def test_no_certificate_outlives_the_ca(tmp_path: Path) -> None:
    short = open_authority(tmp_path / "ca", "lungs", 5)
    certificate = issue_server(tmp_path, short, "localhost", 300)
    assert certificate.not_valid_after_utc == short.certificate.not_valid_after_utc
    assert certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=6)


def test_keys_are_their_owners_alone_and_a_lost_or_foreign_half_is_told(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    issue_server(tmp_path, authority, "localhost", 30)
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    other = open_authority(tmp_path / "other", "lungs", 30)
    with pytest.raises(ConfigError, match=r"not of the CA"):
        issue_server(tmp_path, other, "localhost", 30)
    with pytest.raises(ConfigError, match=r"made out to localhost, 127\.0\.0\.1, and federation\.toml now says 'fl\.example'"):
        issue_server(tmp_path, authority, "fl.example", 30)
    (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        open_authority(folder, "lungs", 30)
    (folder / "ca.key").unlink()
    with pytest.raises(ConfigError, match="put it back from your backup"):
        open_authority(folder, "lungs", 30)
    (folder / "ca.key").write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigError, match="no elliptic-curve key"):
        open_authority(folder, "lungs", 30)


def test_an_expired_server_certificate_is_told_and_can_be_made_anew(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    old = authority.certify("localhost", key.public_key(), 0, ("localhost",))  # ended at the moment it was made
    write_new(tmp_path / "server.crt", old.public_bytes(serialization.Encoding.PEM))
    write_new(tmp_path / "server.key", key_pem(key), private=True)
    assert "certificate has expired" in handshake(tmp_path, trusting(tmp_path / "ca" / "ca.crt"), "localhost")
    with pytest.raises(ConfigError, match=r"expired on .* Move"):
        issue_server(tmp_path, authority, "localhost", 30)
    (tmp_path / "server.crt").unlink()
    (tmp_path / "server.key").unlink()
    assert hosts_of(issue_server(tmp_path, authority, "localhost", 30)) == ("localhost", "127.0.0.1")


def test_an_expired_operator_certificate_is_told_and_made_anew_from_the_same_request(authority: Authority, tmp_path: Path) -> None:
    key = new_key()
    write_new(tmp_path / "operator.csr", operator_request(key, "anna"))
    old = authority.certify("anna", key.public_key(), 0)  # ended at the moment it was made
    write_new(tmp_path / "operator.crt", old.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match=r"operator\.crt expired on .* Move it away"):
        issue_operator(tmp_path, authority, "anna", 30)
    (tmp_path / "operator.crt").unlink()
    renewed = issue_operator(tmp_path, authority, "anna", 30)
    assert renewed is not None and renewed.public_key() == key.public_key() and renewed.not_valid_after_utc > datetime.now(UTC)
