"""The one registry pattern: a name, an entry (mostly a factory), and an error that lists what exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from tmca_core.errors import ConfigError

F = TypeVar("F")


class Registry(Generic[F]):
    """Factories by name.

    Example:
        >>> shapes: Registry[Callable[[], str]] = Registry("shape")
        >>> @shapes.register("square")
        ... def square() -> str:
        ...     return "four corners"
        >>> shapes["square"]()
        'four corners'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that files a factory under `name`; a second one of that name is an error."""

        def file(factory: F) -> F:
            if name in self._factories:
                raise ConfigError(f"{self.kind} '{name}' is registered twice.")
            self._factories[name] = factory
            return factory

        return file

    def __getitem__(self, name: str) -> F:
        if name not in self._factories:
            raise ConfigError(f"unknown {self.kind} '{name}'; known: {', '.join(self.names())}.")
        return self._factories[name]

    def names(self) -> list[str]:
        """Registered names, sorted."""
        return sorted(self._factories)
