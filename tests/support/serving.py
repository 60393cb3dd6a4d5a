"""A page served in this process, as its command serves it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from tmca_core.pages.serving import address, listen


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of the page while it is served."""
    bound = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address(bound)
    finally:
        server.should_exit = True
        thread.join(30)
