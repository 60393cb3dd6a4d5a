"""The phantom's pixels: reproducible, the same at every size, and masks where the anatomy allows them."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tmca_core.cases.case import ZONES
from tmca_core.cases.phantom import anatomy, generate, image_only_ceiling, lesions, scanner
from tmca_core.cases.phantom.ceiling import dice
from tmca_core.cases.phantom.films import plan_site, render
from tmca_core.cases.phantom.lesions import COUNTS, MOST, target_prior
from tmca_core.cases.phantom.sites import make_site
from tmca_core.config import PhantomSettings
from tmca_core.errors import ConfigError

HASH = """
import hashlib
from tmca_core.cases.phantom import generate
from tmca_core.config import PhantomSettings
one = generate(PhantomSettings(sites=3, cases=12, seed=7), size=64, only=[2])["phantom-02"]
reports = "".join(case.report for case in one.cases).encode()
print(hashlib.sha256(one.images.numpy().tobytes() + one.masks.numpy().tobytes() + reports).hexdigest())
"""


def digest(cases):
    reports = "".join(case.report for case in cases.cases).encode()
    return hashlib.sha256(cases.images.numpy().tobytes() + cases.masks.numpy().tobytes() + reports).hexdigest()


@pytest.fixture(scope="module")
def four():
    return generate(PhantomSettings(sites=4, cases=40, seed=3), size=128)


def pixel_dice(a, b):
    a, b = a.bool(), b.bool()
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def test_same_bits_in_another_process_whatever_its_threads():
    here = digest(generate(PhantomSettings(sites=3, cases=12, seed=7), size=64)["phantom-02"])
    for threads in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", HASH],
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert there.stdout.strip() == here


def test_a_site_depends_on_nothing_but_seed_and_index():
    few = generate(PhantomSettings(sites=2, cases=10, seed=1), size=32)
    many = generate(PhantomSettings(sites=9, cases=10, seed=1), size=32, only={1, 8})
    assert list(few) == ["phantom-00", "phantom-01"] and list(many) == ["phantom-01", "phantom-08"]
    assert digest(few["phantom-01"]) == digest(many["phantom-01"])
    assert digest(few["phantom-00"]) != digest(few["phantom-01"])
    other = generate(PhantomSettings(sites=2, cases=10, seed=2), size=32)
    assert digest(other["phantom-00"]) != digest(few["phantom-00"])


def test_fewer_cases_are_a_prefix():
    long, short = (generate(PhantomSettings(sites=1, cases=n, seed=4), size=64)["phantom-00"] for n in (21, 11))
    assert digest(long.subset(range(11))) == digest(short)


def test_shapes_types_and_ids(four):
    for name, cases in four.items():
        assert cases.images.shape == cases.masks.shape == (40, 1, 128, 128)
        assert cases.images.dtype == cases.masks.dtype == torch.uint8
        assert set(cases.masks.unique().tolist()) <= {0, 1}
        assert {case.site for case in cases.cases} == {name}
        assert len({case.case_id for case in cases.cases}) == 40
        assert all(case.patient_id.startswith(name + "-p") and case.split == "" for case in cases.cases)
        per_patient = np.unique([case.patient_id for case in cases.cases], return_counts=True)[1]
        assert per_patient.max() <= 3 and 1 < 40 / len(per_patient) < 2.2
        assert {case.metadata["view"] for case in cases.cases} <= {"AP", "PA"}
        assert {case.metadata["sex"] for case in cases.cases} == {"F", "M"}
        assert all(18 <= int(case.metadata["age"]) <= 95 for case in cases.cases)
        # A film uses the grey range: black air beside the body, bright mediastinum.
        assert cases.images.float().flatten(1).std(1).min() > 35


def test_three_channels_are_one_repeated():
    cases = generate(PhantomSettings(sites=1, cases=4), size=32, channels=3)["phantom-00"]
    assert cases.images.shape == (4, 3, 32, 32)
    assert torch.equal(cases.images[:, 0], cases.images[:, 2])


def test_bounds_are_refused():
    with pytest.raises(ConfigError, match=r"\[4\] do not exist: there are 4"):
        generate(PhantomSettings(sites=4, cases=4), size=32, only=[0, 4])
    with pytest.raises(ConfigError, match="size 16, channels 1"):
        generate(PhantomSettings(cases=4), size=16)
    with pytest.raises(ConfigError, match="channels 2"):
        generate(PhantomSettings(cases=4), size=32, channels=2)


def test_same_anatomy_and_mask_at_every_size():
    wanted = PhantomSettings(sites=4, cases=16, seed=11)
    small, large = generate(wanted, size=128), generate(wanted, size=256)
    for name, cases in small.items():
        halves = torch.nn.functional.avg_pool2d(large[name].masks.float(), 2) >= 0.5
        for a, b in zip(cases.masks, halves, strict=True):
            assert pixel_dice(a, b) > 0.95
        halved = torch.nn.functional.avg_pool2d(large[name].images.float(), 2)
        for a, b in zip(cases.images.float(), halved, strict=True):
            assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.97
        assert [case.report for case in cases.cases] == [case.report for case in large[name].cases]


def test_films_of_one_patient_share_the_anatomy():
    _, films = plan_site(PhantomSettings(cases=60, seed=0), 0)
    first = next(film for film in films if film.case.case_id.endswith("-2"))
    twin = next(film for film in films if film.case.case_id == first.case.case_id[:-1] + "1")
    shared = set(anatomy.BODY)
    assert {name: first.parameters[name] for name in shared} == {name: twin.parameters[name] for name in shared}
    assert first.patient is twin.patient
    assert first.parameters["shift_x"] != twin.parameters["shift_x"]


def test_masks_lie_in_the_lung_of_the_named_side_and_zone():
    wanted = PhantomSettings(sites=4, cases=40, seed=5)
    band = {"U": (0.15, 0.40), "M": (0.35, 0.56), "L": (0.54, 0.82)}
    for index in range(4):
        site, films = plan_site(wanted, index)
        masks = torch.cat([each for _, each in render(wanted, index, site, films, 96)])
        assert int(masks.sum(1).max()) <= 1  # disjoint
        for film, each in zip(films, masks, strict=True):
            chest = anatomy.chest([film.parameters], [film.patient.warp], 96)
            assert not (each.any(0) & (chest.inside[0] <= 0)).any()
            assert not each[len(film.opacities) :].any()
            for opacity, mask in zip(film.opacities, each, strict=False):
                assert 0.002 < mask.float().mean() < 0.15
                rows, columns = torch.nonzero(mask, as_tuple=True)
                on_left = chest.x[0][rows, columns] > 0
                assert bool(on_left.all() if opacity.side == "left" else (~on_left).all())
                assert (columns.float().mean() > 48) == (opacity.side == "left")  # the patient's left is on the image's right
                low, high = band[opacity.zones[0][1]][0], band[opacity.zones[-1][1]][1]
                assert low < float(chest.y[0][rows, columns].mean()) < high


def test_right_dome_is_higher_and_the_heart_lies_left():
    _, films = plan_site(PhantomSettings(cases=20, seed=2), 0)
    chest = anatomy.chest([film.parameters for film in films], [film.patient.warp for film in films], 128)
    lung = chest.inside > 0
    for i, film in enumerate(films):
        x, y, u = chest.x[i], chest.y[i], chest.u[i]
        under = (chest.from_dome[i] < 0) & ((u - 0.2).abs() < 0.02)
        right, left = (float(y[under & side].min()) for side in (x < 0, x > 0))
        assert right < left - 0.005, film.case.case_id
        heart = (chest.from_heart[i] < 0) & (y > 0.6) & (y < 0.75)
        reach_right, reach_left = -float(x[heart].min()), float(x[heart].max())
        assert reach_left > 1.3 * reach_right
        # Cardiothoracic ratio: normal is up to 0.5 upright, wider when lying.
        assert 0.34 < (reach_left + reach_right) / (2 * film.parameters["half_width"]) < 0.60
    assert 0.25 < lung.float().mean() < 0.45


def test_opacities_brighten_the_film_inside_their_masks_only():
    wanted = PhantomSettings(sites=1, cases=24, seed=9, shift=0)
    site, films = plan_site(wanted, 0)
    bare = [replace(film, opacities=()) for film in films]
    with_them = list(render(wanted, 0, site, films, 128))
    without = list(render(wanted, 0, site, bare, 128))
    gains = []
    for (image, masks), (plain, none) in zip(with_them, without, strict=True):
        assert not none.any()
        change = image.float() - plain.float()
        some = masks.any(1, keepdim=True)
        gains += [float(one[mask].mean()) for one, mask in zip(change, some, strict=True) if mask.any()]
        far = torch.nn.functional.max_pool2d(some.float(), 17, stride=1, padding=8) == 0
        assert change[far].abs().mean() < 1
    assert min(gains) > 12 and np.median(gains) > 30


def test_the_marker_lies_on_the_side_it_names():
    for index in range(6):
        wanted = PhantomSettings(sites=6, cases=8, seed=0)
        site, films = plan_site(wanted, index)
        images = torch.cat([image for image, _ in render(wanted, index, site, films, 128)])
        for film, image in zip(films, images, strict=True):
            x, y = film.exposure.marker
            assert (x > 0.5) == (site.marker == "L")
            half = int(0.6 * site.marker_height * 128)
            row, column = int(y * 128), int(x * 128)
            there = image[0, max(0, row - half) : row + half, max(0, column - half) : column + half]
            mirrored = image[0].flip(1)[max(0, row - half) : row + half, max(0, column - half) : column + half]
            assert there.max() > 230 and there.max() > mirrored.max() + 30


def test_without_shift_all_sites_are_alike_and_with_it_they_differ():
    same = [make_site(3, index, 0.0) for index in range(8)]
    assert len({repr(replace(site, name="", marker="L")) for site in same}) == 1
    assert {site.laterality for site in same} == {"patient"}
    differing = [make_site(3, index, 1.0) for index in range(8)]
    assert [site.laterality for site in differing] == ["patient", "patient", "patient", "image"] * 2
    assert len({site.window for site in differing}) == len({site.size for site in differing}) == 8
    assert len({int(np.argmax(site.styles)) for site in differing}) == 4


def test_sizes_are_in_the_range_that_small_images_show():
    ceiling = image_only_ceiling(PhantomSettings(sites=4, cases=60, seed=21), size=96)
    assert 0.03 < ceiling.median_area < 0.06


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_image_alone_cannot_solve_it(shift):
    """Measured 0.57 for 4 sites × 100 cases; text allows 1. The margin asked for is 0.15 below what networks with text reach."""
    ceiling = image_only_ceiling(PhantomSettings(sites=4, cases=60, seed=1, shift=shift), size=64)
    assert ceiling.cases == 240
    assert max(ceiling.union, ceiling.largest) <= ceiling.best + 0.02  # `best` maximises the expectation, not the luck of the draw
    assert 0.45 < ceiling.best < 0.65


def test_ceiling_agrees_with_pixels():
    """Slow oracle: Dice of the union of all opacities, counted in pixels."""
    wanted = PhantomSettings(sites=1, cases=24, seed=6)
    site, films = plan_site(wanted, 0)
    masks = torch.cat([each for _, each in render(wanted, 0, site, films, 64)])
    target = generate(wanted, size=64)["phantom-00"].masks
    scores = [pixel_dice(each.any(0), mask[0]) for each, mask in zip(masks, target, strict=True)]
    assert image_only_ceiling(wanted, size=64).union == pytest.approx(np.mean(scores), abs=1e-9)


def test_ceiling_by_hand():
    # Two equal opacities, one named: both predicted 2·1/(2+1), one predicted ½·1 + ½·0.
    areas = [10.0, 10.0]
    assert dice(areas, (0, 1), (0,)) == pytest.approx(2 / 3)
    assert dice(areas, (1,), (0,)) == 0
    assert dice(areas, (), ()) == 1
    assert dice(areas, (0,), ()) == 0
    for count in COUNTS:
        prior = target_prior(count)
        assert sum(prior.values()) == pytest.approx(1)
        chance = [sum(share for subset, share in prior.items() if i in subset) for i in range(count)]
        assert chance == pytest.approx([chance[0]] * count)  # evenly drawn: nothing in the image favours one


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 200), shift=st.floats(0, 2))
def test_every_plan_is_sound(seed, index, shift):
    site, films = plan_site(PhantomSettings(cases=12, seed=seed, shift=shift), index)
    assert len(films) == 12 and sum(site.styles) == pytest.approx(1) and sum(site.kinds.values()) == pytest.approx(1)
    for film in films:
        zones = [zone for opacity in film.opacities for zone in opacity.zones]
        assert len(film.opacities) <= MOST and len(zones) == len(set(zones)) and set(zones) <= set(ZONES)
        assert any(opacity.named for opacity in film.opacities) == bool(film.opacities)
        if len(film.opacities) > 1:
            assert not all(opacity.named for opacity in film.opacities)
            assert {opacity.side for opacity in film.opacities} == {"left", "right"}
        assert all(opacity.side == ("left" if opacity.x > 0 else "right") for opacity in film.opacities)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 50))
def test_a_mask_is_empty_exactly_on_negative_films(seed, index):
    wanted = PhantomSettings(sites=51, cases=8, seed=seed)
    _, films = plan_site(wanted, index)
    masks = next(iter(generate(wanted, size=64, only=[index]).values())).masks
    assert [bool(mask.any()) for mask in masks] == [bool(film.opacities) for film in films]


@pytest.mark.parametrize("sigma", [0.2, 0.9, 2.5])
def test_shifted_sums_agree_with_a_convolution(sigma):
    image = torch.rand((3, 40, 40), generator=torch.Generator().manual_seed(0))
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    square = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = functional.pad(image[:, None], (reach,) * 4, mode="replicate")
    slow = functional.conv2d(padded, square[None, None])[:, 0]
    assert torch.allclose(scanner.blurred(image, sigma), slow, atol=1e-6)
    means = functional.avg_pool2d(image[:, None], 3, stride=1)[:, 0]
    assert torch.allclose(scanner.separable(image, (1 / 3, 1 / 3)), means, atol=1e-6)


def test_the_union_takes_the_named_or_all():
    masks = torch.zeros((1, MOST, 2, 2), dtype=torch.bool)
    masks[0, 0, 0, 0] = masks[0, 1, 1, 1] = True
    _, films = plan_site(PhantomSettings(cases=40, seed=1), 0)
    some = next(film.opacities for film in films if len(film.opacities) == 2)
    pair = [[replace(some[0], named=False), replace(some[1], named=True)]]
    assert lesions.union(masks, pair, named_only=True).tolist() == [[[[0, 0], [0, 1]]]]
    assert lesions.union(masks, pair, named_only=False).tolist() == [[[[1, 0], [0, 1]]]]
