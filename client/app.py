"""Flower ClientApp. `app` is what Flower loads; simulations make theirs with `make_app`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.node import disclosed, simulated

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

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer("train", config, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer("evaluate", config, message, context)

    return app


def _answer(kind: str, config: Config | None, message: Message, context: Context) -> Message:
    """Open the site and let it answer. An error becomes a reply of one line: Flower would send its whole text."""
    try:
        from client.site import assess, hold_to_cases, no_hello, place_of, say_hello, train
        from client.workspace import open_site, places
        from tmca_core.config import parse

        settings, node = config if config is not None else parse(context.run_config), context.node_config
        served = places(settings, node)
        if kind == "query" and not served:
            return Message(no_hello(), reply_to=message)
        if settings.privacy.enabled:
            from client.private import refuse_outside_of_simulations

            refuse_outside_of_simulations(simulated(node))
        site = open_site(settings, node, place_of(message.content))
        if kind != "query" and not simulated(node):  # a simulation's run holds to its cases itself
            hold_to_cases(site, message.content)
        content = {
            "query": lambda: say_hello(site, served),
            "train": lambda: train(site, message.content),
            "evaluate": lambda: assess(site, message.content),
        }
        return Message(content[kind](), reply_to=message)
    except Exception as error:
        log.error("the %s message of the server could not be answered: %s: %s", kind, type(error).__name__, " ".join(str(error).split()))
        log.debug("the same with its traceback:", exc_info=error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, disclosed(error, context.node_config)), reply_to=message)


app = make_app()
