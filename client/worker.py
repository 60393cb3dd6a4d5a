"""The site's worker: answers a SuperNode's messages with the code that is installed here, for apps that its hospital has approved.

It takes the place of Flower's SuperExec under `flower-supernode --isolation process`. Flower's starts a process for every message and runs
in it whatever code the SuperLink sent. This one stays, with network, data and caches in memory, and never runs code that came over the
network: the app's hash must be on the hospital's list, its code must be, byte for byte, the code installed here, and the latter is run.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.memory import is_run
from client.workspace import code_digest, leave_workspace
from tmca_core.config import parse
from tmca_core.digests import SITE_PACKAGES, message_digest, shared_digest, sources_digest, tensors_digest
from tmca_core.errors import ConfigError, LedgerError, PolicyRefusal
from tmca_core.messages import ARRAYS, REFUSED, SETTINGS, part_of
from tmca_core.privacy.policy import load_policy, open_ledger
from tmca_core.record import Record, figures
from tmca_core.wire import tensors_of

log = logging.getLogger(f"flwr.{__name__}")

LARGEST_APP = 50_000_000
"""Bytes of an app's files when unpacked."""
LONGEST_KIND = 64
"""Characters of a message's type that the record keeps."""


@dataclass(frozen=True)
class Runtime:
    """Where a SuperNode hands out its tasks.

    Attributes:
        address: host:port of its Runtime API.
        secret: of its --superexec-auth-secret-file; None: it has none.
        certificates: PEM file of the CA of that API; None: it speaks plain HTTP, which belongs on the loopback interface only.
    """

    address: str
    secret: bytes | None = None
    certificates: Path | None = None

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[RuntimeHttpClient]:
        """A connection, for one task where its token is given."""
        interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="flwr-clientapp" if token else "SuperExec")]
        if token:
            interceptors.append(RuntimeTokenHttpInterceptor(token))
        elif self.secret:
            protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
            interceptors.append(SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=protected))
        client = RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.certificates is None,
            root_certificates=self.certificates.read_bytes() if self.certificates else None,
            interceptors=interceptors,
            retry_invoker=_patient(),
        )
        try:
            yield client
        finally:
            client.close()


def _patient() -> RetryInvoker:
    """Flower's, but that a refused call is an error: Flower's own ends the process then, and a worker stays when a task is over."""
    invoker = make_simple_http_retry_invoker()
    flowers = invoker.should_giveup

    def give_up(error: Exception) -> bool:
        refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)
        return refused or flowers is None or flowers(error)

    invoker.should_giveup = give_up
    return invoker


def work(runtime: Runtime, home: Path, *, poll: float = 0.1, until: Callable[[], bool] = lambda: False) -> None:
    """Answer messages, one at a time, until told to stop; waits for a SuperNode that is not there.

    Args:
        home: the site's folder; its record is in `record` below.
        poll: seconds between two looks for a task.
        until: looked at between two tasks.

    Raises:
        LedgerError: the record is missing or damaged: no message can be answered.
        ConfigError: the SuperNode does not know the secret.
    """
    from client.app import app

    record = Record.open(home / "record")
    if not record.approved():
        log.warning("no app is approved here yet: every run will be refused until `tmca deploy approve` names one.")
    last: int | None = None
    with runtime.client() as client:
        while not until():
            response = _acquire(client, runtime)
            if not response.HasField("task") or not response.token:
                time.sleep(poll)
                continue
            if response.task.run_id != last:  # what was read for one run may have changed on the disk before the next
                leave_workspace()
                last = response.task.run_id
            with runtime.client(response.token) as task:
                _serve(task, app, record)


def _acquire(client: RuntimeHttpClient, runtime: Runtime) -> AcquireTaskResponse:
    try:
        return client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        raise ConfigError(
            f"the SuperNode at {runtime.address} gives this worker no tasks: --secret must name the file of its "
            "--superexec-auth-secret-file, and both machines' clocks must agree."
        ) from None


def _beat(client: RuntimeHttpClient) -> bool:
    """Say that a task is being worked on. Whether it is still wanted shows when its answer is pushed."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError:
        return False
    return True


def _serve(client: RuntimeHttpClient, app: ClientApp, record: Record) -> None:
    """Answer the message of one task."""
    beat = HeartbeatSender(lambda: _beat(client))
    beat.start()
    context: Context | None = None
    status, details = SubStatus.FAILED, "the worker was stopped"
    try:
        message, context, run, fab = pull_task_input(client)
        reply = answer(app, message, context, fab, record)
        push_message(client, reply, context)
        status, details = SubStatus.COMPLETED, ""
        log.info("run %s: answered a %s message.", run.run_id, message.metadata.message_type)
    except Exception as error:
        details = type(error).__name__
        log.error("a task could not be served: %s: %s", details, error)
        log.debug("the same with its traceback:", exc_info=error)
    finally:
        push_task_output(client, context, status, details)
        if beat.is_running:
            beat.stop()


def answer(app: ClientApp, message: Message, context: Context, fab: Fab, record: Record) -> Message:
    """The reply to a message; before it is returned, the record says that it leaves.

    Args:
        app: the installed ClientApp.
        fab: the app that came with the message; its code is compared and never run.

    Returns:
        The app's reply; an error reply where the app is not approved, or where the record cannot be written.
    """
    about = {
        "app": hashlib.sha256(fab.content).hexdigest(),
        "asked": message.metadata.message_type[:LONGEST_KIND],
        "flower_run": str(message.metadata.run_id),
    }
    try:
        try:
            return _answered(app, message, context, fab, record, about)
        except LedgerError:
            raise
        except Exception as error:  # a message may hold anything, and whoever sent it is told that it was not answered
            log.error("a %s message cannot be answered: %s: %s", about["asked"], type(error).__name__, error)
            record.note("refused", reason=f"The message cannot be answered: {type(error).__name__}.", **about)
            return _failed(message, type(error).__name__)
    except LedgerError as error:
        log.error("a %s message is not answered: %s", about["asked"], error)
        return _failed(message, LedgerError.__name__)


def _answered(app: ClientApp, message: Message, context: Context, fab: Fab, record: Record, about: dict[str, Any]) -> Message:
    """See `answer`; `about` gets what the message asks for."""
    about |= _facts(message)
    if refused := vet(fab, record):
        log.error("a %s message is refused: %s", about["asked"], refused)
        record.note("refused", reason=refused, **about)
        return Message(Error(REFUSED, f"{PolicyRefusal.__name__}: this hospital's policy refuses. {refused}"), reply_to=message)
    reply = app(message=message, context=context)
    record.note("answered", code=code_digest(), **about, **_told(reply), **_ground(context, reply))
    return reply


def _failed(message: Message, kind: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{kind}: details are in the site's own log"), reply_to=message)


def vet(fab: Fab, record: Record) -> str:
    """Why an app may not be answered here; "" where it may."""
    digest = hashlib.sha256(fab.content).hexdigest()
    if digest != fab.hash_str:
        return f"The app is announced as {fab.hash_str[:12]}… and is {digest[:12]}…."
    if digest not in record.approved():
        return f"The app {digest} is not approved here: its hospital reads it and runs `tmca deploy approve`."
    if (code := app_digest(fab.content)) != code_digest():
        return f"The app's code ({code[:12] or 'none'}) is not the code installed here ({code_digest()[:12]}): install the same version."
    return ""


def app_digest(content: bytes) -> str:
    """`sources_digest` of the code in an app; "" where it cannot be read or unpacks to more than any app of ours."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in members) > LARGEST_APP:
                return ""
            files: dict[str, bytes] = {}
            for info in members:
                if info.filename.split("/")[0] in SITE_PACKAGES:
                    with archive.open(info) as file:
                        files[info.filename] = file.read(LARGEST_APP)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):  # all that zipfile raises
        return ""
    return sources_digest(files)


def _facts(message: Message) -> dict[str, Any]:
    """What a message asks for; its run and round only where they are what a server of ours calls them.

    Raises:
        UpdateRejected: its tensors cannot be read.
    """
    content = message.content
    settings: Mapping[str, Any] = part_of(content, SETTINGS, ConfigRecord) or {}
    run, round = settings.get("run"), settings.get("round")
    tensors = tensors_digest(content)
    return {
        "run": run if isinstance(run, str) and is_run(run) else "",
        "round": round if isinstance(round, int) and not isinstance(round, bool) and round >= 0 else 0,
        "request": message_digest(content, tensors),
        "weights": shared_digest(content, tensors),
    }


def _ground(context: Context, reply: Message) -> dict[str, str]:
    """What an answer stands on: the run's settings, and the newest entry of the hospital's ledger where it has a policy.

    Raises:
        ConfigError: the settings or the hospital's policy cannot be read, and it was answered all the same.
        LedgerError: the ledger is damaged.
    """
    if reply.has_error():
        return {}
    found = {"config": parse(context.run_config).digest()}
    if place := context.node_config.get("policy"):
        found["ledger"] = open_ledger(load_policy(Path(str(place)))).read().entries[-1]["hash"]
    return found


def _told(reply: Message) -> dict[str, Any]:
    """What a reply says."""
    if reply.has_error():
        return {"error": reply.error.reason, "digest": hashlib.sha256((reply.error.reason or "").encode()).hexdigest()}
    values = {name: figures(record) for name, record in reply.content.items() if isinstance(record, (ConfigRecord, MetricRecord))}
    return {
        "digest": message_digest(reply.content),
        "tensors": len(tensors_of(part_of(reply.content, ARRAYS, ArrayRecord) or {})),
        "values": values,
    }
