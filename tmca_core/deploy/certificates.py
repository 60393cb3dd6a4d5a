"""The private CA of a federation, and what it certifies: the coordinator's server and its operators. EC P-384, SHA-384."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tmca_core.deploy.keys import PrivateKey, PublicKey, new_key, read_bytes, write_new
from tmca_core.errors import ConfigError

EARLIER = timedelta(hours=1)
"""Certificates are valid from a little before they are made, for clocks that are slow."""


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    def certify(self, name: str, public: PublicKey, days: int, hosts: Sequence[str] = ()) -> x509.Certificate:
        """A certificate for a server that is reached at `hosts`; without hosts for an operator, as a client."""
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(name, self.certificate.subject, public, min(_until(days), self.certificate.not_valid_after_utc))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        return builder.sign(self.key, hashes.SHA384())


def open_authority(folder: Path, name: str, days: int) -> Authority:
    """The CA in ca.crt and ca.key of a folder; made where neither is there.

    Args:
        name: of the federation.
        days: that a new one is valid.

    Raises:
        ConfigError: one of the two is missing, they do not belong together, or the certificate has expired.
    """
    place, secret = folder / "ca.crt", folder / "ca.key"
    if not place.exists() and not secret.exists():
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} federation CA")])
        builder = _builder(subject, subject, key.public_key(), _until(days))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        certificate = builder.sign(key, hashes.SHA384())
        write_new(secret, key_pem(key), private=True)
        write_new(place, certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(certificate, key)
    for file in (place, secret):
        if not file.exists():
            raise ConfigError(
                f"{file} is missing: put it back from your backup. Without it nothing new can be certified; a new CA takes a new "
                "folder, and every site needs the new ca.crt."
            )
    certificate, key = load_certificate(place), load_pem_key(secret)
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{secret} is not the key of {place}: put both back from the same backup.")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"the CA {place} expired on {_day(certificate)}: start in a new folder, and give every site the new ca.crt.")
    return Authority(certificate, key)


def server_hosts(host: str) -> tuple[str, ...]:
    """What the server certificate is made out to: the coordinator's host, and the names that its own programs use."""
    return tuple(dict.fromkeys((host, "localhost", "127.0.0.1")))


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and addresses that a server certificate is made out to."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def issue_server(folder: Path, authority: Authority, host: str, days: int) -> x509.Certificate:
    """The server certificate in server.crt and server.key of a folder; made where neither is there.

    Raises:
        ConfigError: one of them is missing, or the certificate is of another host or CA or has expired.
    """
    place, secret = folder / "server.crt", folder / "server.key"
    if not place.exists() and not secret.exists():
        key = new_key()
        certificate = authority.certify(host, key.public_key(), days, server_hosts(host))
        write_new(secret, key_pem(key), private=True)
        write_new(place, certificate.public_bytes(serialization.Encoding.PEM))
        return certificate
    again = f"Move {place} and {secret} away and run `tmca deploy init` again: a new certificate of the same CA is made"
    if not place.exists() or not secret.exists():
        raise ConfigError(f"of {place} and {secret} one is missing. {again}.")
    certificate = load_certificate(place)
    if host not in hosts_of(certificate):
        made = ", ".join(hosts_of(certificate)) or "nothing"
        raise ConfigError(
            f"{place} is made out to {made}, and federation.toml now says '{host}'. {again}; then change COORDINATOR in "
            "every site's site.env."
        )
    if not issued(certificate, authority.certificate):
        raise ConfigError(f"{place} is not of the CA in {folder / 'ca.crt'}. {again}.")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{place} expired on {_day(certificate)}. {again}; sites need not do anything.")
    return certificate


def issue_operator(folder: Path, authority: Authority, name: str, days: int) -> x509.Certificate | None:
    """An operator's certificate in operator.crt of a folder; made where operator.csr holds a request. None: there is none yet.

    Raises:
        ConfigError: the request is damaged or not for an elliptic-curve key, or the certificate is of another CA or has expired.
    """
    place, request = folder / "operator.crt", folder / "operator.csr"
    if not place.exists():
        if not request.exists():
            return None
        try:
            asked = x509.load_pem_x509_csr(read_bytes(request))
        except ValueError as error:
            raise ConfigError(
                f"{request} is no certificate request: {error}. Make one with `tmca deploy key DIR --operator {name}`."
            ) from None
        public = asked.public_key()
        if not asked.is_signature_valid or not isinstance(public, PublicKey):
            raise ConfigError(
                f"{request} is not signed by an elliptic-curve key of its own. Make one with `tmca deploy key DIR --operator {name}`."
            )
        # Only the key is taken from the request: its name and purposes are the federation's to say.
        write_new(place, authority.certify(name, public, days).public_bytes(serialization.Encoding.PEM))
    certificate = load_certificate(place)
    if not issued(certificate, authority.certificate):
        raise ConfigError(f"{place} is not of this federation's CA: move it away and run `tmca deploy init` again.")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(
            f"{place} expired on {_day(certificate)}. Move it away and run `tmca deploy init` again: the key in operator.csr is certified "
            f"anew, and '{name}' gets the new operator.crt. Who is no operator any more is taken out of federation.toml."
        )
    return certificate


def operator_request(key: PrivateKey, name: str) -> bytes:
    """What an operator sends to be certified, PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether a CA signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # InvalidSignature, ValueError or TypeError, by what differs; each means no
        return False
    return True


def load_certificate(path: Path) -> x509.Certificate:
    """A PEM certificate.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(read_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{path} is no PEM certificate: {error}.") from None


def load_pem_key(path: Path) -> PrivateKey:
    """An elliptic-curve key in PEM, without a passphrase.

    Raises:
        ConfigError: it cannot be read, or is another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(read_bytes(path), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no PEM key: {error}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is no elliptic-curve key.")
    return key


def key_pem(key: PrivateKey) -> bytes:
    """A key as servers read it; not encrypted."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(*form, serialization.NoEncryption())


def fingerprint(certificate: x509.Certificate) -> str:
    """sha256 of a certificate, in pairs of hex digits, as it is read out over the telephone."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _builder(name: str | x509.Name, issuer: x509.Name, public: PublicKey, until: datetime) -> x509.CertificateBuilder:
    subject = name if isinstance(name, x509.Name) else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(datetime.now(UTC) - EARLIER).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(*, ca: bool) -> x509.KeyUsage:
    unused = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    return x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False, **unused)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _until(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
