"""Flower ClientApp. `app` is what Flower loads; simulations make theirs with `make_app`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.node import disclosed, simulated
from tmca_core.errors import PolicyRefusal, TmcaError

if TYPE_CHECKING:
    from tmca_core.config import Config

# Below Flower's own logger, so that FLWR_LOG_LEVEL=DEBUG at the site shows the tracebacks too.
log = logging.getLogger(f"flwr.{__name__}")


def make_app(config: Config | None = None) -> ClientApp:
    """A ClientApp that answers `query`, `train` and `evaluate` for the site its node serves.

    The handlers are closures over the configuration only, so that Ray may pickle them; everything resident is in
    `client.workspace`.

    Args:
        config: None: taken from Flower's run-config.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answer("query", config, message, context)

    @app.query("secure")
    def secure(message: Message, context: Context) -> Message:
        return _answer("secure", config, message, context)

    @app.query("check")
    def check(message: Message, context: Context) -> Message:
        return _answer("check", config, message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer("train", config, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer("evaluate", config, message, context)

    return app


def _answer(kind: str, config: Config | None, message: Message, context: Context) -> Message:
    """Open the site and let it answer. An error becomes a reply of one line: Flower would send its whole text."""
    with ExitStack() as around:
        try:
            return _reply(kind, config, message, context, around)
        except Exception as error:
            _log(kind, error)
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            if isinstance(error, PolicyRefusal):
                from tmca_core.messages import REFUSED

                code = REFUSED
            return Message(Error(code, disclosed(error, context.node_config)), reply_to=message)


def _reply(kind: str, config: Config | None, message: Message, context: Context, around: ExitStack) -> Message:
    from client import checking, secure
    from client.site import assess, hold_to_cases, no_hello, place_of, run_of, say_hello, say_no, train
    from client.workspace import enter, hold_to_hospital, name_of, places
    from tmca_core.config import parse
    from tmca_core.logs import about, listen_under_flower
    from tmca_core.messages import SETTINGS, part_of

    settings, node = config if config is not None else parse(context.run_config), context.node_config
    listen_under_flower()
    said: Mapping[str, Any] = part_of(message.content, SETTINGS, ConfigRecord) or {}
    run = str(said.get("run", ""))
    around.enter_context(about(run=run, round=said.get("round"), site=node.get("site")))
    served = places(settings, node)
    if kind == "query" and not served:
        return Message(no_hello(), reply_to=message)
    place = place_of(message.content)
    try:
        hold_to_hospital(settings, node, run)
        site = enter(settings, node, place, None if kind == "query" else run_of(message.content))
    except PolicyRefusal as refusal:
        name = _named(lambda: name_of(settings, node, place))
        if kind != "query" or not name:
            raise
        _log(kind, refusal)
        return Message(say_no(settings, name, disclosed(refusal, node)), reply_to=message)
    around.enter_context(about(site=site.name))
    # A simulation's run holds to its cases itself; after a check they may be put right.
    if kind not in ("query", "check") and not simulated(node):
        hold_to_cases(site, message.content)
    content = {
        "query": lambda: say_hello(site, served),
        "check": lambda: checking.check(site, message.content),
        "train": lambda: train(site, message.content),
        "evaluate": lambda: assess(site, message.content),
        "secure": lambda: secure.answer(site, message.content, node),
    }
    answer = content[kind]()
    hold_to_hospital(settings, node, run)  # what was computed while the hospital paused does not leave either
    return Message(answer, reply_to=message)


def _named(name: Callable[[], str]) -> str:
    """The site's name; "" where it cannot be told."""
    try:
        return name()
    except TmcaError:
        return ""


def _log(kind: str, error: Exception) -> None:
    log.error("the %s message of the server could not be answered: %s: %s", kind, type(error).__name__, " ".join(str(error).split()))
    log.debug("the same with its traceback:", exc_info=error)


app = make_app()
