"""The recipes parse, name what exists, and run on the fixtures of the public layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmca_core.cli import main
from tmca_core.config import Config, load
from tmca_core.report.published import PUBLISHED

FOLDER = Path(__file__).parents[2] / "simulations" / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.toml") if path.stem != "chest-films")
DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"
LAYOUTS = Path(__file__).parents[2] / "../shared/data/layouts"
# Every recipe runs on another layout's fixture, so that each has been tried once. None of them holds the data set that the recipe is for.
FIXTURES = {
    "qata-cov19": ("languide", "languide/QaTa-COV19-v2"),
    "mosmed-plus": ("lvit", "lvit/QaTa-Covid19"),
    "kvasir-seg": ("prolearn", "prolearn/QaTa"),
    "cvc-clinicdb": ("sgseg", "sgseg/QaTa"),
}


def test_there_is_a_recipe_for_every_public_data_set():
    assert {path.stem for path in RECIPES} == set(FIXTURES) == set(PUBLISHED)


def test_the_recipe_for_ones_own_films_changes_the_network_only():
    own = {key for key, value in load(FOLDER / "chest-films.toml").flat().items() if value != Config().flat()[key]}
    assert own == {"network.name", "network.image_encoder", "network.image_weights"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_what_exists(path):
    import tmca_core.networks.build
    import tmca_core.text.wordpiece  # noqa: F401  (both register what they define)
    from tmca_core.networks.encoders.interface import IMAGE_ENCODERS
    from tmca_core.networks.interface import NETWORKS
    from tmca_core.text.encoders import TEXT_ENCODERS

    config = load(path)
    assert config.network.name in NETWORKS.names()
    assert config.network.image_encoder in IMAGE_ENCODERS.names() and config.network.text_encoder in TEXT_ENCODERS.names()
    assert config.evaluation.published == path.stem and PUBLISHED[path.stem]
    assert config.data.manifest == str(path.parent / path.stem / "manifest.csv")  # beside the recipe
    endoscopy = path.stem in ("kvasir-seg", "cvc-clinicdb")
    assert config.data.channels == (3 if endoscopy else 1) and config.data.image_size == 224
    assert config.data.laterality == {"mosmed-plus": "auto"}.get(path.stem, "image")
    assert (config.ssa.prior == "off") is endoscopy
    assert path.name in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_a_fixture(path, tmp_path, capsys):
    layout, folder = FIXTURES[path.stem]
    if not (LAYOUTS / folder).is_dir():
        pytest.skip("the fixtures of the public layouts are not here")

    def tmca(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 0, printed.err
        return printed.out

    tmca("data", "convert", layout, LAYOUTS / folder, tmp_path / "data")
    smaller = {
        "data.image_size": 64,
        "data.cache_dir": tmp_path / "cache",
        "network.image_encoder": "convnext-mini",
        "network.image_weights": "",
        "network.width": 16,
        "training.steps": 2,
        "training.batch_size": 2,
        "training.threads": 1,
        "federation.rounds": 1,
        "evaluation.bootstrap": 20,
        "evaluation.examples": 2,
    }
    sets = [part for key, value in smaller.items() for part in ("--set", f"{key}={value}")]
    result = json.loads(tmca("train", path, "--manifest", tmp_path / "data/manifest.csv", "--out", tmp_path / "run", "--json", *sets))
    assert result["network"] == "tmca-ssa" and result["final"]["cases"] == 3 and result["final"]["dice_image"] is not None
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Beside published figures" in page and "Why the mask is where it is" in page
    assert all(figure.method in page.replace("&#39;", "'") for figure in PUBLISHED[path.stem])
