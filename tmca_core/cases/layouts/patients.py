"""Patients behind the images of public layouts, which name none: neighbouring slices must not be in two splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tmca_core.cases.case import Split
from tmca_core.cases.layouts.listing import Item

# What the published file names say of the patient; the group is the patient's name.
NAMINGS = {
    "BIMCV subject (QaTa-COV19)": re.compile(r"(sub-s\d+)_ses-", re.I),  # sub-S09412_ses-E24141_run-1_bp-chest_vp-ap_dx
    "BIMCV subject (QaTa-COV19 as renamed by ProLearn)": re.compile(r"cxr_(s\d+)-e\d+", re.I),  # cxr_s09315-e21849-r1
    "CT study of Morozov (MosMedData+)": re.compile(r"((?:\d+_)?morozov_study_\d+)_\d+$", re.I),  # Morozov_study_0255_14
    "CT case of Jun (MosMedData+)": re.compile(r"((?:\d+_)?jun_.+?)(?:_\d+|_slice.*)$", re.I),  # Jun_radiopaedia_10_85902_3_case12_107
    "TCGA patient (MoNuSeg)": re.compile(r"(tcga-[0-9a-z]{2}-[0-9a-z]{4})", re.I),  # TCGA-18-5592-01Z-00-DX1
    "BIDS subject": re.compile(r"(sub-[0-9a-z]+)_", re.I),
}


def patient_of(name: str) -> tuple[str, str]:
    """(patient, naming) of an image's stem; (the stem itself, "") where no published naming fits."""
    for naming, pattern in NAMINGS.items():
        if match := pattern.match(name):
            return match[1].lower(), naming
    return name, ""


def describe(items: Sequence[Item]) -> str:
    """One sentence on where the patients come from."""
    found = Counter(naming for item in items for _, naming in [patient_of(item.name)] if naming)
    alone = len(items) - sum(found.values())
    parts = [f"{count} images by {naming}" for naming, count in found.most_common()]
    if alone:
        parts.append(f"{alone} images whose names tell no patient, each counted as a patient of its own")
    return "Patients: " + "; ".join(parts) + "."


def settle_splits(items: Sequence[Item]) -> tuple[list[Split | str], list[str]]:
    """One split a patient, and what was changed for it.

    A patient in `test` and elsewhere goes to `test` as a whole, so that the published test cases stay and none of their patients
    trains; one in `train` and `val` goes where most of the cases are. Where that would take more than half of the training
    cases away (MosMedData+ splits by slice: nearly every test slice has a neighbour in train), the splits of the data set are
    given up and left empty: patients are then split from the seed.

    Returns:
        A split (or "") for every item, and the notes.
    """
    splits: list[Split | str] = [item.split for item in items]
    notes: list[str] = []
    for site in sorted({item.site for item in items}):
        members = [i for i, item in enumerate(items) if item.site == site]
        places: dict[str, Counter[str]] = {}
        for i in members:
            places.setdefault(patient_of(items[i].name)[0], Counter())[items[i].split] += 1
        shared = {patient: counts for patient, counts in places.items() if len(counts) > 1}
        if not shared:
            continue
        home = {patient: "test" if counts["test"] else max(("train", "val"), key=counts.__getitem__) for patient, counts in shared.items()}
        settled = {i: home.get(patient_of(items[i].name)[0], items[i].split) for i in members}
        moved = sum(settled[i] != items[i].split for i in members)
        told = f"{site}: {len(shared)} of {len(places)} patients have images in more than one split"
        before, after = (sum(split == "train" for split in kind) for kind in ([items[i].split for i in members], settled.values()))
        if 2 * after < before:
            for i in members:
                splits[i] = ""
            notes.append(
                f"{told}, and one split a patient would leave {after} of {before} training cases. The published split is given up "
                "(column 'layout_split' keeps it); patients will be split from the seed."
            )
            continue
        for i in members:
            splits[i] = settled[i]
        notes.append(
            f"{told}. Each was put into one split as a whole, 'test' first ({moved} cases moved, training cases {before} → {after}); "
            "column 'layout_split' keeps the published split. Figures do not compare with papers that trained on these patients."
        )
    return splits, notes
