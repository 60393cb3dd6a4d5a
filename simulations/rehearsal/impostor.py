"""A server that pretends to be the coordinator: it speaks TLS with the certificate it is given, and prints every request that it gets."""

from __future__ import annotations

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Ears(BaseHTTPRequestHandler):
    """Hears a request out, and has no answer."""

    def do_POST(self) -> None:
        """Say what came, with how much in it."""
        print(f"HEARD {self.path} {self.headers.get('Content-Length')}", flush=True)
        self.send_error(500)


def main(port: int, certificate: str, key: str) -> None:
    """Listen on the loopback interface until told to stop."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Ears)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
