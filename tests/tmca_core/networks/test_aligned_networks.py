"""What tmca, ssa and tmca-ssa promise beyond every network: maps that explain, losses a case, and reports of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tmca_core.config import parse
from tmca_core.networks import Network, Output, build_network, frozen_digest
from tmca_core.networks.tmca import alike, said
from tmca_core.text.features import TextBatch, TextPipeline
from tmca_core.text.wordpiece import WordPieceEncoder

NAMES = ("tmca", "ssa", "tmca-ssa")
SMALL = {"network.width": 32, "tmca.share": 1.0}
REPORTS = [
    "Dense consolidation in the left lower zone, likely pneumonia.",
    "No focal opacity.",
    "Right lung.",
    "Verschattung im linken Unterfeld.",  # not parsed: what tmca-ssa contrasts
]


def built(settings: Mapping[str, object], reports: list[str] = REPORTS) -> tuple[Network, TextBatch]:
    network = build_network(parse(SMALL | dict(settings)))
    return network, TextPipeline(network.text_encoder, None).encode(reports)


def inputs(count: int = 4, side: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, side, side)
    masks[0, :, side // 2 :, side // 2 :] = 1  # one cell of stride 32
    if count > 2:
        masks[2, :, :, : side // 2] = 1
    if count > 3:
        masks[3] = masks[0]
    return torch.randn(count, 1, side, side, generator=rng), masks


def auxiliary(network: Network, images: Tensor, text: TextBatch, masks: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)  # tmca draws from its bank
    output = network(images, text)
    return {name: loss.per_case for name, loss in network.auxiliary(output, masks).items()}


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_shapes_ranges_and_sums_they_promise(name: str) -> None:
    network, text = built({"network.name": name})
    maps = network.eval()(inputs()[0], text).maps
    expected = {f"enhancement/{s}" for s in (4, 8, 16, 32)} if "tmca" in name else set()
    assert set(maps) == expected | ({"guidance", "plan/fine", "plan/coarse"} if "ssa" in name else set())
    for key, value in maps.items():
        assert value.dtype == torch.float32 and value.min() >= 0 and value.max() <= 1 + 1e-6, key
    if "tmca" in name:
        assert [maps[f"enhancement/{s}"].shape for s in (4, 8, 16, 32)] == [(4, 1, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    if "ssa" in name:
        assert maps["guidance"].shape == (4, 1, 16, 16)
        words = (text.kinds > 0).float()
        torch.testing.assert_close(maps["plan/fine"].sum((2, 3)), words)
        present = torch.stack([(text.kinds == kind).any(1) for kind in (2, 3, 5, 6)], 1).float()
        torch.testing.assert_close(maps["plan/coarse"].sum((2, 3)), present)


@pytest.mark.parametrize("name", ("tmca", "ssa", "tmca-ssa"))
def test_with_the_base_s_weights_the_network_begins_as_the_base(name: str) -> None:
    """Enhancement, transport and gates add nothing at first; zone tokens and the prior's bias do from the start."""
    base, text = built({"network.name": "guide", "seed": 1})
    network, _ = built({"network.name": name, "ssa.tokens": False, "ssa.bias": False})
    assert not network.load_state_dict(base.state_dict(), strict=False).unexpected_keys
    images = inputs()[0]
    assert torch.equal(network.eval()(images, text).logits, base.eval()(images, text).logits)


def test_the_prior_lies_where_the_report_points() -> None:
    network, text = built({"network.name": "ssa"})
    G = network.eval()(inputs()[0], text).maps["guidance"][:, 0]
    left_lower = G[0]  # the patient's left is on the image's right
    assert left_lower[8:, 8:].mean() > 3 * max(left_lower[:, :8].mean(), left_lower[:4].mean())
    assert (G[1] == 1).all()  # no zone, no constraint
    assert G[2][:, :8].mean() > 3 * G[2][:, 8:].mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"network.name": "tmca"},
        {"network.name": "tmca", "tmca.positives": "hard", "tmca.distance": False},
        {"network.name": "tmca", "tmca.alignment": "batch"},
        {"network.name": "ssa"},
        {"network.name": "ssa", "ssa.transport": "coarse", "ssa.prior": "thirds"},
        {"network.name": "tmca-ssa"},
    ],
    ids=str,
)
def test_declared_decomposability_is_what_is_measured(settings: dict[str, object]) -> None:
    network, text = built(settings)
    _, other_text = built(settings, [REPORTS[0], "Effusion at the left base.", "Left lung.", REPORTS[3]])
    images, masks = inputs()
    other_images, other_masks = inputs(seed=1)
    other_images[0], other_images[3], other_masks[1:3] = images[0], images[3], masks[1:3].flip(-1)
    first, second = auxiliary(network, images, text, masks), auxiliary(network, other_images, other_text, other_masks)
    declared = {name: loss.decomposable for name, loss in network.auxiliary(network(images, text), masks).items()}
    assert declared and all(first["alignment"][3] > 0 for name in declared if name == "alignment")
    for row in (0, 3):
        alone = auxiliary(network, images[[row]], built(settings, [REPORTS[row]])[1], masks[[row]])
        for name, values in first.items():
            assert torch.allclose(values[row], second[name][row], atol=2e-5) == declared[name], (name, row)
            assert torch.allclose(values[row], alone[name][0], atol=2e-5) == declared[name], (name, row)


@pytest.mark.parametrize("level", range(4))
def test_every_level_is_contrasted(level: int) -> None:
    network, text = built({"network.name": "tmca"})
    images, masks = inputs()
    torch.manual_seed(3)
    hidden = network(images, text).hidden
    values = network._contrast(hidden, level, masks)  # type: ignore[operator]
    assert values[0] > 0 and values[1] == 0 and values[2] > 0 and values[3] > 0  # the second has no target


def test_a_case_without_a_report_and_one_that_is_all_target_are_not_held_against_anything() -> None:
    network, text = built({"network.name": "tmca"}, ["", "Left lung."])
    settings = network.tmca
    images, masks = inputs(2)
    torch.manual_seed(3)
    hidden = network(images, text).hidden

    def margins(masks: Tensor) -> Tensor:
        values = []
        for network.tmca in (settings.model_copy(update={"distance": False}), settings):  # type: ignore[operator, union-attr]
            values.append(hidden["wanted"] * network._contrast(hidden, 1, masks))  # type: ignore[operator]
        return values[1] - values[0]

    masks[:] = 1
    assert margins(masks).tolist() == [0, 0]
    masks[..., :32] = 0
    without, own = margins(masks).tolist()
    assert without == 0 and own > 0


@pytest.mark.parametrize("positives", ["soft", "hard"])
@pytest.mark.parametrize("added", ["no report", "no target"])
def test_in_the_batch_a_case_without_report_or_target_is_held_against_nobody(added: str, positives: str) -> None:
    settings = {"network.name": "tmca", "tmca.alignment": "batch", "tmca.positives": positives}
    reports = ["Left lung.", "The left lung.", "Right lung."]
    images, masks = inputs(4)
    masks[:3] = masks[0]
    masks[1] = masks[0].flip(-1)
    masks[3] = 0 if added == "no target" else masks[0]
    network, text = built(settings, [*reports, "" if added == "no report" else "Left lung."])
    together = auxiliary(network, images, text, masks)["alignment"]
    alone = auxiliary(network, images[:3], built(settings, reports)[1], masks[:3])["alignment"]
    torch.testing.assert_close(together[:3], alone, atol=1e-5, rtol=1e-5)
    assert (alone > 0).all() and together[3] == 0


@pytest.mark.parametrize("alignment", ["bank", "batch"])
def test_hard_positives_are_equal_texts_alone(alignment: str) -> None:
    reports = ["Left lung.", "The left lung.", "Right lung."]
    found = {}
    for positives in ("soft", "hard"):
        network, text = built({"network.name": "tmca", "tmca.alignment": alignment, "tmca.positives": positives}, reports)
        torch.manual_seed(3)
        output = network(inputs(3)[0], text)
        found[positives] = network._likeness(output.hidden, torch.ones(3, dtype=torch.bool))  # type: ignore[operator]
    assert found["soft"][1] > 0.1 and found["hard"][1] == 0  # others name that zone, none in the same words


def test_reports_are_alike_by_zones_or_by_text() -> None:
    texts = ["Left lung.", "The left lung.", "No focal opacity.", "No focal opacity.", "Clear.", "Possible opacity in the left lung."]
    network, text = built({"network.name": "tmca"}, texts)
    same = alike(said(network.read(text), ""), "", "")  # type: ignore[operator]
    assert same.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3], [4, 4], [5, 5]]


def test_the_bank_speaks_the_phrases_that_are_read_and_repeats_nothing() -> None:
    network, _ = built({"network.name": "tmca", "network.phrases": "descriptive,diagnostic"})
    bank = network.bank(torch.device("cpu"))  # type: ignore[operator]
    assert bank.certainty.max() == 0 and len(bank.identity.unique()) == len(bank) > 5


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"tmca.alignment": "off"}, {"alignment"}),
        ({"tmca.enhancement": False}, {"enhancement"}),
        ({"ssa.transport": "off"}, {"transport"}),
        ({"ssa.penalty": 0.0}, {"outside"}),
        ({"ssa.prior": "off"}, {"outside"}),
    ],
)
def test_modules_are_switched_off_one_by_one(settings: dict[str, object], gone: set[str]) -> None:
    network, text = built({"network.name": "tmca-ssa"} | settings)
    images, masks = inputs()
    assert set(auxiliary(network, images, text, masks)) == {"alignment", "enhancement", "transport", "outside"} - gone


OFF = {
    "tmca.enhancement": (False, ("aligner.enhance.", "aligner.back.")),
    "ssa.transport": ("off", ("transport.",)),
    "ssa.prior": ("off", ("prior.", "zone_tokens", "gates.", "biases")),
    "ssa.tokens": (False, ("zone_tokens",)),
    "ssa.gate": (False, ("gates.",)),
    "ssa.bias": (False, ("biases",)),
}


@pytest.mark.parametrize("switch", OFF)
def test_a_switch_removes_its_tensors_and_nothing_else(switch: str) -> None:
    value, prefixes = OFF[switch]
    whole, without = (set(built({"network.name": "tmca-ssa"} | off)[0].state_dict()) for off in ({}, {switch: value}))
    assert without < whole
    assert whole - without == {name for name in whole if name.startswith(prefixes)}


@pytest.mark.parametrize("switch", ["ssa.tokens", "ssa.gate", "ssa.bias"])
def test_each_way_of_the_prior_alone_moves_the_mask_and_switched_off_none_does(switch: str) -> None:
    off = {"network.name": "ssa", "ssa.tokens": False, "ssa.gate": False, "ssa.bias": False}
    images = inputs(1)[0]
    moved = {}
    for on in (False, True):
        network, text = built(off | {switch: on}, ["Left lung."])
        with torch.no_grad():
            for gate in network.gates:  # type: ignore[union-attr]
                gate.fill_(0.5)
        elsewhere = replace(text, zones=text.zones.roll(3, 1))  # the same words
        network.eval()
        moved[on] = not torch.equal(network(images, text).logits, network(images, elsewhere).logits)
    assert moved == {False: False, True: True}


def test_enhancement_and_transport_move_the_mask_once_they_have_learned() -> None:
    for name, switch, off in (("tmca", "tmca.enhancement", False), ("ssa", "ssa.transport", "off")):
        base = {"network.name": name, "ssa.prior": "off"}
        images, same = inputs()[0], []
        for settings in (base, base | {switch: off}):
            network, text = built(settings)
            guide, _ = built({"network.name": "guide"})
            with torch.no_grad():
                for key, parameter in network.named_parameters():
                    if key.startswith(("aligner.", "transport.")):
                        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            same.append(torch.equal(network.eval()(images, text).logits, guide.eval()(images, text).logits))
        assert same == [False, True], name


def test_every_level_that_has_a_bias_of_the_prior_reads_it() -> None:
    network, text = built({"network.name": "ssa"})
    network(inputs()[0], text).logits.square().mean().backward()
    assert network.biases.grad.ne(0).all()  # type: ignore[union-attr]


AWKWARD = {
    "no words": ["", "   ", "\n"],
    "all the same": ["Left lung."] * 3,
    "one token": ["opacity"] * 3,
    "punctuation": ["...", "!?", "-"],
    "contradictory": ["Unilateral infection, upper left lung and lower right lung."] * 3,
    "unknown script": ["Затемнение слева.", "左肺。", "🫁"],
    "long": ["Opacity in the left lower zone. " * 60, "Left.", "Right lung."],
}


@pytest.mark.parametrize("name", ("guide", *NAMES))
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_awkward_reports_and_masks_leave_losses_and_gradients_finite(name: str, kind: str, precision: str) -> None:
    network, text = built({"network.name": name}, AWKWARD[kind])
    images, masks = inputs(3)
    masks[0], masks[1] = 0, 1  # empty, and all target
    images[2] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = network(images, text)
    losses = [loss.per_case for loss in network.auxiliary(output, masks).values()]
    total = output.logits.float().mean() + sum(loss.mean() for loss in losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_text_features_of_zero_leave_everything_finite(name: str) -> None:
    network, text = built({"network.name": name})
    network.text.forward = lambda ids, mask: torch.zeros(*ids.shape, 128)  # type: ignore[union-attr, method-assign]
    images, masks = inputs()
    output = network(images, text)
    (output.logits.mean() + sum(loss.per_case.mean() for loss in network.auxiliary(output, masks).values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ("guide", *NAMES))
def test_a_missing_report_is_the_learned_token_and_nothing_else(name: str) -> None:
    network, text = built({"network.name": name}, ["", "Left lung.", "Right lower zone opacity, likely infective."])
    alone = built({"network.name": name}, [""])[1]
    images = inputs(3)[0]
    network.eval()
    before = network(images, text).logits
    torch.testing.assert_close(before[:1], network(images[:1], alone).logits, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        network.no_report.add_(torch.randn(network.no_report.shape))  # type: ignore[operator, union-attr]
    after = network(images, text).logits
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    torch.testing.assert_close(before[1:], after[1:], atol=1e-5, rtol=1e-4)


def test_sites_with_another_bank_are_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"network.name": "tmca-ssa"}
    pinned = frozen_digest(built(settings)[0])
    assert pinned == frozen_digest(built(settings)[0])
    monkeypatch.setattr("tmca_core.networks.tmca.bank_digest", lambda: "another")
    assert pinned != frozen_digest(built(settings)[0])


@pytest.mark.parametrize("name", NAMES)
def test_several_targets_have_a_channel_each(name: str) -> None:
    network, text = built({"network.name": name, "data.targets": "lung,heart,effusion"})
    images, masks = inputs()
    output = network(images, text)
    assert output.logits.shape == (4, 3, 64, 64)
    assert all(loss.per_case.shape == (4,) for loss in network.auxiliary(output, masks.expand(-1, 3, -1, -1)).values())


@pytest.mark.parametrize("frozen", (False, True))
@pytest.mark.parametrize("name", ("guide", *NAMES))
def test_gradients_a_case_by_vmap_equal_those_of_a_loop(name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What private training will rest on: one case's gradient, mapped over cases, for every network, contrast included."""
    monkeypatch.setattr(WordPieceEncoder, "frozen", frozen)
    network, text = built({"network.name": name})
    network.vectorised = True
    network.ready(torch.device("cpu"))
    assert (text.features is not None) is frozen
    images, masks = inputs()
    parameters = {n: p.detach() for n, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, mask: Tensor, tokens: Tensor, *report: Tensor) -> Tensor:
        first = (None, tokens[None]) if frozen else (tokens[None], None)
        one = TextBatch(*first, *(part[None] for part in report))
        output: Output = torch.func.functional_call(network, parameters, (image[None], one))
        total = output.logits.sigmoid().mean()
        return total + sum(aux.per_case.sum() for aux in network.auxiliary(output, mask[None]).values())

    tokens = text.features if frozen else text.ids
    assert tokens is not None
    parts = (tokens, text.mask, text.zones, text.kinds, text.certainty, text.identity)
    torch.manual_seed(0)
    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * 8), randomness="same")(parameters, images, masks, *parts)
    for i in range(len(images)):
        torch.manual_seed(0)
        alone = torch.func.grad(loss)(parameters, images[i], masks[i], *(part[i] for part in parts))
        for key, value in alone.items():
            torch.testing.assert_close(mapped[key][i], value, atol=2e-5, rtol=2e-3, msg=key)


def test_of_both_methods_the_contrast_leaves_out_what_the_parser_places() -> None:
    """Placing is what the contrast teaches; where zones are known the prior places already."""
    reports = ["Left lower zone.", "Unilateral opacity, left and right lung.", "Verschattung im linken Unterfeld.", "No opacity.", ""]
    network, text = built({"network.name": "tmca-ssa"}, reports)
    images, masks = inputs(5)
    masks[:] = masks[2]
    assert [value > 0 for value in auxiliary(network, images, text, masks)["alignment"].tolist()] == [False, True, True, False, False]
    network, text = built({"network.name": "tmca-ssa", "ssa.prior": "off"}, reports)
    assert [value > 0 for value in auxiliary(network, images, text, masks)["alignment"].tolist()] == [True] * 4 + [False]
    network, text = built({"network.name": "tmca-ssa", "tmca.contrasted": "all"}, reports)
    assert [value > 0 for value in auxiliary(network, images, text, masks)["alignment"].tolist()] == [True] * 4 + [False]
    network, text = built({"network.name": "tmca-ssa"}, ["Left lower zone."] * 5)
    assert "words" not in network(images, text).hidden  # and none is computed for nothing


def test_the_contrast_is_taken_on_a_share_of_the_steps() -> None:
    network, text = built({"network.name": "tmca", "tmca.share": 0.25})
    images, masks = inputs()
    torch.manual_seed(0)
    taken = [network.auxiliary(network(images, text), masks)["alignment"].per_case.sum().item() > 0 for _ in range(60)]
    assert 5 <= sum(taken) <= 25
    assert not network.eval()(images, text).hidden


def test_the_same_draws_give_the_same_losses() -> None:
    network, text = built({"network.name": "tmca"})
    images, masks = inputs()
    first, second = (auxiliary(network, images, text, masks)["alignment"] for _ in range(2))
    assert torch.equal(first, second)
