"""The cases of one phantom site: patients, films, opacities and reports, then pixels in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.phantom import anatomy, lesions, organs, scanner
from tmca_core.cases.phantom.anatomy import Parameters, Patient
from tmca_core.cases.phantom.grammar import Report, write_report
from tmca_core.cases.phantom.lesions import Opacity
from tmca_core.cases.phantom.scanner import Exposure
from tmca_core.cases.phantom.sites import Site, make_site
from tmca_core.config import PhantomSettings
from tmca_core.errors import ConfigError
from tmca_core.seeds import numpy_rng, torch_rng

BATCH = 8  # films rendered together: small enough for a processor's cache


@dataclass(frozen=True)
class Film:
    """Everything about a film but its pixels.

    Attributes:
        case: as the generator hands it out.
        patient: organs shared by a patient's films.
        parameters: the patient's body and this exposure's position.
        opacities: all of them; those with `named` make the mask.
        exposure: of the scanner.
        report: in both side conventions.
    """

    case: Case
    patient: Patient
    parameters: Parameters
    opacities: Sequence[Opacity]
    exposure: Exposure
    report: Report


def plan_site(settings: PhantomSettings, index: int) -> tuple[Site, list[Film]]:
    """The films of one site before rendering: a function of the seed, the shift and `index`; fewer cases are a prefix.

    Example:
        >>> site, films = plan_site(PhantomSettings(cases=4), 0)
        >>> films[0].case.case_id
        'phantom-00-p000-1'
    """
    site = make_site(settings.seed, index, settings.shift)
    films: list[Film] = []
    person = 0
    while len(films) < settings.cases:
        films += _plan_patient(settings.seed, index, person, site)
        person += 1
    return site, films[: settings.cases]


def _plan_patient(seed: int, index: int, person: int, site: Site) -> Iterator[Film]:
    rng = numpy_rng(seed, "phantom", index, "patient", person)
    female = bool(rng.random() < 0.48)
    age = int(np.clip(rng.normal(57, 17), 18, 95))
    patient = anatomy.draw_patient(rng, female)
    supine_often = rng.random() < site.supine  # the bedridden stay in bed
    for number in range(1, 1 + int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        supine = bool(rng.random() < (0.9 if supine_often else 0.05))
        position = anatomy.draw_position(rng, supine)
        opacities = lesions.plan(site, position, rng)
        exposure = scanner.draw_exposure(site, rng, supine)
        report = write_report(opacities, site, rng)
        patient_id = f"{site.name}-p{person:03d}"
        case_id = f"{patient_id}-{number}"
        case = Case(
            case_id=case_id,
            patient_id=patient_id,
            site=site.name,
            image=Path("images") / f"{case_id}.png",
            masks=(Path("masks") / f"{case_id}.png",),
            report=report.text if site.laterality == "patient" else report.mirrored,
            text=report.text,
            laterality=site.laterality,
            metadata={"view": "AP" if supine else "PA", "sex": "F" if female else "M", "age": str(age)},
        )
        yield Film(case, patient, {**patient.body, **position}, opacities, exposure, report)


def render(settings: PhantomSettings, index: int, site: Site, films: Sequence[Film], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels of a site's films, batch by batch.

    Yields:
        (B, 1, S, S) uint8 images and (B, MOST, S, S) bool masks, one an opacity in the order of `Film.opacities`.
    """
    for start in range(0, len(films), BATCH):
        batch = films[start : start + BATCH]
        parameters = [film.parameters for film in batch]
        chest = anatomy.chest(parameters, [film.patient.warp for film in batch], size)
        left, masks = lesions.render(chest, parameters, [film.opacities for film in batch])
        ray = organs.attenuation(chest, organs.air(chest).mul_(left), [film.patient for film in batch])
        noise = torch_rng(settings.seed, "phantom", index, "grain", start, size)
        yield scanner.expose(ray, site, [film.exposure for film in batch], noise), masks


def check_shape(size: int, channels: int = 1) -> None:
    """Refuse images that cannot be made.

    Raises:
        ConfigError: saying what can.
    """
    if size < 32 or channels not in (1, 3):
        raise ConfigError(f"the phantom has images of 32 pixels and more with 1 or 3 channels; got size {size}, channels {channels}.")


def generate_site(settings: PhantomSettings, index: int, *, size: int, channels: int = 1) -> CaseTensors:
    """All cases of the site at `index`.

    Args:
        settings: `settings.sites` plays no part.
        index: of the site.
        size: image side, pixels, at least 32.
        channels: 1 or 3 (three equal ones).

    Raises:
        ConfigError: `size` or `channels` is out of its bounds.
    """
    check_shape(size, channels)
    site, films = plan_site(settings, index)
    images = torch.empty((len(films), 1, size, size), dtype=torch.uint8)
    masks = torch.empty((len(films), 1, size, size), dtype=torch.uint8)
    for i, (pixels, each) in enumerate(render(settings, index, site, films, size)):
        at = slice(i * BATCH, i * BATCH + len(pixels))
        images[at] = pixels
        masks[at] = lesions.union(each, [film.opacities for film in films[at]], named_only=True)
    return CaseTensors([film.case for film in films], images.repeat(1, channels, 1, 1) if channels > 1 else images, masks)


def generate(settings: PhantomSettings, *, size: int, channels: int = 1, only: Collection[int] | None = None) -> dict[str, CaseTensors]:
    """The phantom's sites, by name.

    A site's cases depend on the seed, the shift and the site's index alone: not on how many sites there are or are asked for.

    Args:
        settings: sites, cases a site, shift and seed.
        size: image side, pixels; the anatomy of a seed is the same at every size.
        channels: 1 or 3.
        only: indices of the sites wanted; None: all.

    Returns:
        "phantom-00", "phantom-01" … to cases in memory; `Case.image` and `Case.masks` are names that `write` would use.

    Raises:
        ConfigError: an index in `only`, `size` or `channels` is out of its bounds.

    Example:
        >>> sites = generate(PhantomSettings(sites=2, cases=4), size=64)
        >>> sites["phantom-01"].images.shape
        torch.Size([4, 1, 64, 64])
    """
    wanted = range(settings.sites) if only is None else sorted(set(only))
    beyond = [index for index in wanted if not 0 <= index < settings.sites]
    if beyond:
        raise ConfigError(f"phantom sites {beyond} do not exist: there are {settings.sites}, counted from 0. Raise phantom.sites.")
    cases = [generate_site(settings, index, size=size, channels=channels) for index in wanted]
    return {one.cases[0].site: one for one in cases}
