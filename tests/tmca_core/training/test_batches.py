from __future__ import annotations

import pytest
import torch

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.config import Config, parse
from tmca_core.text.features import TextPipeline
from tmca_core.text.wordpiece import WordPieceEncoder
from tmca_core.training.batches import Batch, training_batches

SMALL = {"data.image_size": 32, "training.batch_size": 8, "training.epochs": 2, "augmentation.noise": 0.02, "augmentation.rotate": 5.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> TextPipeline:
    return TextPipeline(WordPieceEncoder(dim=16, layers=1, heads=2), None)


def data(count: int = 60) -> CaseTensors:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    masks = (images > 128).to(torch.uint8)
    texts = [f"Consolidation in the {('left', 'right')[i % 2]} lung." for i in range(count)]
    cases = [Case(f"c{i}", f"p{i}", "a", None, None, text, text, "patient") for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return CaseTensors(cases, images, masks)


def batches(config: Config, pipeline: TextPipeline) -> list[Batch]:
    return list(training_batches(data(), pipeline, config, round=1, site="a", device=CPU))


def test_missing_reports_change_no_image_and_no_other_report(pipeline: TextPipeline) -> None:
    plain, hidden = batches(parse(SMALL), pipeline), batches(parse(SMALL | {"augmentation.no_report": 0.3}), pipeline)
    missing = torch.cat([~(batch.text.kinds > 0).any(1) for batch in hidden])
    assert len(missing) == 120 and 0.15 < missing.float().mean() < 0.45
    for one, other in zip(plain, hidden, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        told = (other.text.kinds > 0).any(1)
        assert (one.text.kinds > 0).any(1).all()
        assert torch.equal(one.text.zones[told], other.text.zones[told]) and not other.text.zones[~told].any()
        assert (other.text.certainty[~told] == 0).all() and (other.text.mask[~told].sum(1) == 2).all()


def test_which_reports_are_missing_depends_on_seed_site_and_round_alone(pipeline: TextPipeline) -> None:
    config = parse(SMALL | {"augmentation.no_report": 0.5})
    runs = [batches(config, pipeline) for _ in range(2)]
    assert all(torch.equal(a.text.kinds, b.text.kinds) for a, b in zip(*runs, strict=True))
    first, second = ((batch.text.kinds > 0).any(1) for batch in runs[0][:2])
    assert not torch.equal(first, second)
