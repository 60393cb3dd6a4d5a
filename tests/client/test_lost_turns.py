"""SCAFFOLD's variates where a reply is lost on its way, and where a site has lost what it kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from safetensors.torch import load_file
from tiny_runs import tiny
from torch import Tensor

import client.app
import server.app
from client.workspace import open_workspace
from simulations.inprocess import run_in_process
from tmca_core.config import Config
from tmca_core.messages import SETTINGS, TRAIN

LOSER = "phantom-00"


def simulated(config: Config, out: Path, before: Callable[[int], None], lost: tuple[int, ...] = ()) -> None:
    """A federation with `before(round)` called before each turn of the first site, whose replies of the rounds `lost` never arrive."""
    open_workspace.cache_clear()
    config = config.with_values({"simulation.out": str(out)})
    app = client.app.make_app(config)

    def wrapped(message: Message, context: Context) -> Message:
        if message.metadata.message_type != TRAIN or context.node_config["partition-id"] != 0:
            return app(message, context)
        round = int(str(message.content.config_records[SETTINGS]["round"]))
        before(round)
        reply = app(message, context)
        if round in lost:
            raise ConnectionError("lost on its way")
        return reply

    run_in_process(server.app.make_app(config, out, lambda event: None), wrapped, 3)  # type: ignore[arg-type]


def remembered(out: Path, site: str, round: int) -> dict[str, Tensor]:
    """A site's file."""
    (path,) = (out / "sites" / site).glob(f"*/round-{round:03d}.safetensors")
    return load_file(path)


def group(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("compression", ["none", "int8", "topk"])
def test_the_servers_variate_stays_the_mean_of_what_the_sites_have_sent(tmp_path: Path, compression: str) -> None:
    config = tiny(
        tmp_path / "cache",
        federation__algorithm="scaffold",
        federation__compression=compression,
        federation__compression_share=0.1,
        federation__weighting="uniform",
        federation__rounds=5,
        federation__min_sites=1,
        evaluation__every=5,
        evaluation__bootstrap=0,
    )
    out = tmp_path / "run"
    simulated(config, out, lambda round: None, lost=(2, 3))
    variate = group(load_file(out / "checkpoints" / "round-005" / "training.safetensors"), "fold/extra")
    files = [remembered(out, f"phantom-{k:02d}", 5) for k in range(3)]
    assert len(variate) > 10
    for name, c in variate.items():
        # c_k of a site, less what compression still holds back of it.
        sent = [file[f"kept/{name}"] - file.get(f"residual/extra/{name}", torch.zeros(())) for file in files]
        torch.testing.assert_close(c, torch.stack(sent).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("gone", "found"), [((2,), "of round 1"), ((1, 2), "of no round")])
def test_a_site_that_has_lost_its_file_goes_on_with_the_newest_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: tuple[int, ...], found: str
) -> None:
    config = tiny(tmp_path / "cache", federation__algorithm="scaffold", evaluation__every=3, evaluation__bootstrap=0)
    out = tmp_path / "run"
    first: dict[str, Tensor] = {}

    def lose(round: int) -> None:
        if round == 3:
            first.update(group(remembered(out, LOSER, 1), "kept"))
            for number in gone:
                for path in (out / "sites" / LOSER).glob(f"*/round-{number:03d}.safetensors"):
                    path.unlink()

    with caplog.at_level(logging.ERROR, logger="client.site"):
        simulated(config, out, lose)
    stood_on = group(remembered(out, LOSER, 3), "settled")
    expected = first if gone == (2,) else {}
    assert first and stood_on.keys() == expected.keys()
    assert all(torch.equal(stood_on[name], expected[name]) for name in expected)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "client.site"]
    assert f"kept in round 2, and the newest that is found in {out}" in said and found in said
