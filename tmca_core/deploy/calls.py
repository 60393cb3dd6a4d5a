"""What a SuperNode signs of each of its calls: when, which, and with what content. Flower 1.41 signs the time alone."""

from __future__ import annotations

import hashlib

SIGNATURE = "tmca-signature"
"""Header with the signature over `signed_part`, base64; beside Flower's own headers, which stay."""


def signed_part(timestamp: str, path: str, body: bytes) -> bytes:
    """What is signed: whoever reads a call cannot send its signature with another content, or to another path."""
    return f"{timestamp}\n{path}\n{hashlib.sha256(body).hexdigest()}".encode()
