"""`tmca deploy node`: Flower's SuperNode, which signs its calls whole, looks for messages several times a second and not every three, and
outlives a worker that is stopped in the middle of a task.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Annotated, Any

import typer


def node(
    arguments: Annotated[list[str], typer.Argument(metavar="-- ARGUMENTS", help="Arguments of flower-supernode, after two dashes.")],
    poll: Annotated[float, typer.Option(min=0.05, max=3, help="Longest pause between two looks for a message, seconds.")] = 0.3,
) -> None:
    """Run flower-supernode with a shorter pause between two looks for a message, and a signature over the whole of each call."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    from client.signatures import sign_calls

    # Flower 1.41 has no setting for it: its main loop, which is this module, sleeps 3 s where nothing has come, 0.5 s until an answer has.
    vars(start_client_internal)["time"] = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, poll))})
    sign_calls()
    answer_for_the_stopped()
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def answer_for_the_stopped() -> None:
    """Have the SuperNode itself tell the server that a task ended without an answer.

    It serves one message at a time and waits for its answer. Flower 1.41 answers for a worker that falls silent after it has read the
    message, and waits for ever where it had not read it yet, or was stopped and said so.
    """
    from flwr.common.constant import SubStatus
    from flwr.supercore.constant import TaskType
    from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR, InMemoryNodeState

    finish, expire = InMemoryNodeState.finish_task, InMemoryNodeState._on_task_tokens_expired

    def answer(state: Any, tasks: Iterable[Any]) -> None:
        runs = {task.run_id for task in tasks if task.type == TaskType.CLIENT_APP}
        with state.lock_msg_store:
            for entry in state.msg_store.values():
                if entry.message.metadata.run_id in runs and not entry.message.metadata.reply_to_message_id:
                    entry.is_retrieved = True  # of others it makes no answer
        if runs:
            state._store_error_replies(runs, CLIENT_APP_CRASHED_ERROR)

    def finish_task(state: Any, task_id: int, sub_status: str, details: str) -> bool:
        finished = finish(state, task_id, sub_status, details)
        if finished and sub_status == SubStatus.FAILED:
            answer(state, state.get_tasks(task_ids=[task_id]))
        return finished

    def _on_task_tokens_expired(state: Any, tasks: list[Any]) -> None:
        answer(state, tasks)
        expire(state, tasks)

    node_state: Any = InMemoryNodeState
    node_state.finish_task, node_state._on_task_tokens_expired = finish_task, _on_task_tokens_expired
