"""A worker that its SuperNode turns away says why, and one whose task is over stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from client.worker import Runtime, work
from tmca_core.errors import ConfigError
from tmca_core.record import Record


class SuperNode(ThreadingHTTPServer):
    """Answers each call with the next of `answers`, the last again and again; notes what was called."""

    answers: list[tuple[int, bytes]]
    called: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: SuperNode

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.called.append(self.path.rsplit("/", 1)[-1])
        status, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF_MEDIA_TYPE if status == 200 else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    server = SuperNode(("127.0.0.1", 0), _Handler)
    server.called = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_the_secret_there_are_no_tasks_and_the_message_says_what_to_do(supernode: SuperNode, tmp_path: Path) -> None:
    Record.open(tmp_path / "record", make=True)
    supernode.answers = [(401, b"{}")]
    with pytest.raises(ConfigError, match=r"gives this worker no tasks: --secret must name the file"):
        work(Runtime(f"127.0.0.1:{supernode.server_port}", b"wrong"), tmp_path, poll=0.01)
    assert supernode.called == ["acquire-task"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_task_that_its_supernode_no_longer_knows_does_not_end_the_worker(supernode: SuperNode, tmp_path: Path, status: int) -> None:
    """As after the SuperNode was started again, or when the run was stopped."""
    Record.open(tmp_path / "record", make=True)
    task = AcquireTaskResponse(token="of a task that is over")
    task.task.run_id = 1
    supernode.answers = [(200, task.SerializeToString()), (status, b"{}")]

    def enough() -> bool:
        if len(supernode.called) > 1:
            supernode.answers = [(200, AcquireTaskResponse().SerializeToString())]
        return supernode.called.count("acquire-task") >= 3

    work(Runtime(f"127.0.0.1:{supernode.server_port}", b"right"), tmp_path, poll=0.01, until=enough)
    assert "pull-task-input" in supernode.called and "push-task-output" in supernode.called
