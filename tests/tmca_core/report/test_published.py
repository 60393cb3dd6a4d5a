"""Published figures: one table, named by the configuration, pooled and per image apart."""

from typing import get_args

import pytest

from tmca_core.config import EvaluationSettings
from tmca_core.report.published import PUBLISHED, figures


def test_the_configuration_names_the_data_sets_of_the_table():
    assert set(get_args(EvaluationSettings.model_fields["published"].annotation)) == {"", *PUBLISHED}


def test_pooled_and_per_image_never_mix():
    for name, known in PUBLISHED.items():
        pooled, image = figures(name, pooled=True), figures(name, pooled=False)
        assert len(pooled) + len(image) == len(known)
        assert {f.metric for f in pooled} <= {"pooled", "pooled?"} and {f.metric for f in image} <= {"per image"}
        assert [f.dice for f in image] == sorted((f.dice for f in image), reverse=True)
    assert [f.method for f in figures("qata-cov19", pooled=False)] == ["C2Seg", "RecLMIS", "LViT", "U-Net"]
    assert figures("elsewhere", pooled=True) == []


@pytest.mark.parametrize("figure", [f for known in PUBLISHED.values() for f in known], ids=lambda f: f"{f.method}-{f.metric}")
def test_figures_are_possible(figure):
    assert 0 < figure.dice < 1 and 2015 <= figure.year <= 2026
    if figure.iou is not None:
        # One mask: IoU = Dice / (2 - Dice). A mean of IoUs lies between that of the mean Dice (Jensen) and the mean Dice itself.
        assert figure.dice / (2 - figure.dice) - 0.001 <= figure.iou < figure.dice
