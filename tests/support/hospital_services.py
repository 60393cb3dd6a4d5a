"""A small PACS (DICOMweb) and a small FHIR server on a real socket, with TLS, client certificates and tokens where a test wants them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = tuple[int, str, bytes]


@dataclass
class HospitalServices:
    """Serves below /dicom-web the DICOM files in `films`, and below /fhir the resources in `resources`.

    Attributes:
        token: that requests must carry; "": any may come.
        tls: (certificate, key, authority of clients or None); None: plain http.
        special: path → answer, in the place of all else.
        page: resources on a page of a FHIR search, and answers on a page of QIDO.
        asked: (path with query, headers) of every request.
    """

    films: Path | None = None
    resources: list[dict[str, Any]] = field(default_factory=list)
    token: str = ""
    tls: tuple[Path, Path, Path | None] | None = None
    special: dict[str, Callable[[], Answer]] = field(default_factory=dict)
    page: int = 2
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> HospitalServices:
        services = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                services.asked.append((self.path, dict(self.headers)))
                status, kind, body = services.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                if kind.startswith("Location:"):
                    self.send_header("Location", kind.removeprefix("Location:"))
                else:
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.tls[:2])
            if self.tls[2]:
                context.load_verify_locations(self.tls[2])
                context.verify_mode = ssl.CERT_REQUIRED
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that does not trust us hangs up
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, target: str, authorization: str) -> Answer:
        if self.token and authorization != f"Bearer {self.token}":
            return 401, "text/plain", b"who are you?"
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path in self.special:
            return self.special[path]()
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["dicom-web"] and self.films:
            return self._pacs(parts[1:], query)
        if parts[:1] == ["fhir"]:
            return self._fhir(parts[1:], query)
        return 404, "text/plain", b"nothing here"

    def _pacs(self, parts: list[str], query: dict[str, list[str]]) -> Answer:
        assert self.films
        held = [(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in sorted(self.films.rglob("*.dcm"))]
        levels = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        for level, value in zip(levels, parts[1::2], strict=False):
            held = [(path, ds) for path, ds in held if ds.get(level) == value]
        if len(parts) == 6:
            if not held:
                return 404, "text/plain", b""
            body = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + held[0][0].read_bytes() + b"\r\n--cut--\r\n"
            return 200, 'multipart/related; type="application/dicom"; boundary=cut', body
        for name, wanted in query.items():
            if name not in ("limit", "offset"):
                held = [(path, ds) for path, ds in held if str(ds.get(name)) == wanted[0]]
        own = levels[len(parts) // 2]
        unique = {ds.get(own): ds for _, ds in held}
        start = int(query.get("offset", ["0"])[0])
        shown = list(unique.values())[start : start + min(self.page, int(query.get("limit", ["9"])[0]))]
        if not shown:
            return 204, "application/dicom+json", b""
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality")
        answers = [{f"{ds[key].tag:08X}": {"vr": ds[key].VR, "Value": [str(ds[key].value)]} for key in keys if key in ds} for ds in shown]
        return 200, "application/dicom+json", json.dumps(answers).encode()

    def _fhir(self, parts: list[str], query: dict[str, list[str]]) -> Answer:
        kind = "application/fhir+json"
        if len(parts) == 2:
            found = [one for one in self.resources if [one["resourceType"], one["id"]] == parts]
            return (200, kind, json.dumps(found[0]).encode()) if found else (404, kind, b"{}")
        start = int(query.get("_offset", ["0"])[0])
        held = [one for one in self.resources if one["resourceType"] == parts[0]]
        bundle: dict[str, Any] = {"resourceType": "Bundle", "entry": [{"resource": one} for one in held[start : start + self.page]]}
        if start + self.page < len(held):
            bundle["link"] = [{"relation": "next", "url": f"{self.url}/fhir/{parts[0]}?_offset={start + self.page}"}]
        return 200, kind, json.dumps(bundle).encode()


def certificates(folder: Path) -> dict[str, Path]:
    """PEM files: `ca`; `server` and `client` with `server-key` and `client-key`, signed by it; and a `stranger` that signed itself."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, issued: x509.Name, ca: bool) -> Path:
        built = (
            x509.CertificateBuilder()
            .subject_name(issuer if ca else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(issued)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
            .sign(by, hashes.SHA256())
        )
        path = folder / f"{name}.pem"
        path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        (folder / f"{name}-key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return path

    sign("ca", authority, authority, issuer, True)
    for name in ("server", "client"):
        sign(name, ec.generate_private_key(ec.SECP256R1()), authority, issuer, False)
    own = ec.generate_private_key(ec.SECP256R1())
    sign("stranger", own, own, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stranger")]), False)
    return {path.stem: path for path in folder.glob("*.pem")}
