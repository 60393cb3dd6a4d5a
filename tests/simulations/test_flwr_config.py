"""pyproject.toml's Flower tables: every setting of the schema with its default, so that `flwr run --run-config` knows it.

`python tests/simulations/test_flwr_config.py` writes the block anew after the schema has changed.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from tmca_core.config import Config, parse

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
BEGIN = "# Run-config: every setting and its default, written by `python tests/simulations/test_flwr_config.py`.\n"
END = "# End of the run-config.\n"


def block() -> str:
    """The tables below [tool.flwr.app.config]."""
    sections: dict[str, list[str]] = {"": []}
    for key, value in Config().flat().items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}\n")
    tables = [f"[tool.flwr.app.config{'.' + section if section else ''}]\n{''.join(lines)}" for section, lines in sections.items()]
    return BEGIN + "\n".join(tables) + END


def test_the_run_config_is_the_schema() -> None:
    from flwr.common.config import flatten_dict

    app = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]
    found, expected = flatten_dict(app["config"]), Config().flat()
    advice = "pyproject.toml's [tool.flwr.app.config] is not the schema's: run `python tests/simulations/test_flwr_config.py`."
    assert found == expected, advice
    assert parse(found) == Config(), advice


def test_the_apps_are_where_the_tables_say() -> None:
    import importlib

    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    components = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["components"]
    for kind, cls in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, _, attribute = components[kind].partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), cls)


def write() -> None:
    text = PYPROJECT.read_text()
    start, end = text.index(BEGIN), text.index(END) + len(END)
    PYPROJECT.write_text(text[:start] + block() + text[end:])


if __name__ == "__main__":
    write()
