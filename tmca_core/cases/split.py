"""Which patients train, which choose the model, and which are kept for the final test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tmca_core.cases.case import Case, Split
from tmca_core.errors import ConfigError, ManifestError
from tmca_core.seeds import numpy_rng

Chosen = dict[str, Split]  # by patient


def assign_splits(cases: Sequence[Case], *, val_fraction: float, test_fraction: float, seed: int, independent: bool = False) -> list[Case]:
    """Every case with its split; all cases of one patient get the same.

    Site by site. Where a site's rows carry a split it is honoured; has it no `val`, part of `train` becomes `val`. Elsewhere
    patients are drawn so that the share of CASES comes near the fractions (patients have very different numbers of cases):
    three patients and more give at least one to each split whose fraction is above 0; of two patients the one with more cases
    trains and the other tests (validates, where `test_fraction` is 0); a single patient trains. A patient seen at several
    sites keeps the split of the first, in the order of names, sites with a split column before the others.

    The draw depends on the seed, the site's name and its set of patients, not on the order of rows.

    `independent`: a patient's split is what its own rows say, or else drawn from the seed and its id alone (no `val` is made up), so that
    one patient more or less changes nothing for any other: only then does the noise of private training, which covers what one patient
    changes of a sum, cover all that it changes. The fractions are then probabilities, and a small site may be left with nothing to test on.

    Args:
        cases: of any number of sites, in any order.
        val_fraction: share of a site's cases for validation, 0 to below 1.
        test_fraction: share of a site's cases for the final test, 0 to below 1.
        seed: of the draw.
        independent: see above.

    Returns:
        The cases in the order given.

    Raises:
        ConfigError: the fractions leave nothing to train on.
        ManifestError: a site's split column is filled in part or puts one patient in two splits, or nothing is left to train on.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"data.val_fraction {val_fraction} and data.test_fraction {test_fraction} must be 0 or more and together below 1: "
            "something must be left to train on."
        )
    by_site: dict[str, list[Case]] = {}
    for case in cases:
        by_site.setdefault(case.site, []).append(case)
    with_column = {site for site, members in by_site.items() if any(case.split for case in members)}
    known = _each_alone(cases, val_fraction, test_fraction, seed) if independent else Chosen()
    for site in sorted(by_site, key=lambda name: (name not in with_column, name)):
        members = by_site[site]
        counts = _cases_per_patient(members)
        if independent:
            chosen = {patient: known[patient] for patient in counts}
        elif site in with_column:
            chosen = _honour(site, members, known, val_fraction, seed)
        else:
            chosen = _draw(_shuffled(counts, seed, site), counts, known, val_fraction, test_fraction)
        if "train" not in chosen.values():
            kept = " and ".join(sorted(set(chosen.values())))
            raise ManifestError(
                f"site '{site}' has no case to train on: its {len(chosen)} patients are all kept for {kept}. "
                "Give one of them the split 'train', or leave the site out."
            )
        known |= chosen
    return [replace(case, split=known[case.patient_id]) for case in cases]


def _cases_per_patient(cases: Sequence[Case]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for case in cases:
        counts[case.patient_id] = counts.get(case.patient_id, 0) + 1
    return counts


def _shuffled(counts: Mapping[str, int], seed: int, site: str) -> list[str]:
    patients = sorted(counts)
    return [patients[i] for i in numpy_rng(seed, "split", site).permutation(len(patients))]


def _each_alone(cases: Sequence[Case], val_fraction: float, test_fraction: float, seed: int) -> Chosen:
    """Every patient's split by its own rows, or else by its id, whoever else there is."""
    chosen: Chosen = {case.patient_id: case.split for case in cases if case.split}
    for patient in {case.patient_id for case in cases} - chosen.keys():
        drawn = float(numpy_rng(seed, "split of a patient", patient).random())
        chosen[patient] = "test" if drawn < test_fraction else "val" if drawn < test_fraction + val_fraction else "train"
    return chosen


def _honour(site: str, cases: Sequence[Case], known: Mapping[str, Split], val_fraction: float, seed: int) -> Chosen:
    """Splits as the manifest says, `val` drawn from `train` where it names none."""
    chosen: Chosen = {}
    first_row: dict[str, int] = {}
    for case in cases:
        if not case.split:
            raise ManifestError(
                f"row {case.row}, column 'split': empty for case '{case.case_id}', while other rows of site '{site}' name a split. "
                "Write train, val or test in every row of the site, or leave the column empty to have patients split from the seed."
            )
        if chosen.setdefault(case.patient_id, case.split) != case.split:
            raise ManifestError(
                f"row {case.row}, column 'split': patient '{case.patient_id}' of site '{site}' is in '{case.split}' here and in "
                f"'{chosen[case.patient_id]}' in row {first_row[case.patient_id]}. A patient belongs to one split; correct the column "
                "or empty it."
            )
        first_row.setdefault(case.patient_id, case.row)
    chosen |= {patient: split for patient, split in known.items() if patient in chosen}
    if "val" not in chosen.values() and val_fraction > 0:
        counts = _cases_per_patient([case for case in cases if chosen[case.patient_id] == "train"])
        free = [patient for patient in _shuffled(counts, seed, site) if patient not in known]
        chosen |= dict.fromkeys(_take(free, counts, val_fraction * sum(counts.values()), len(counts) - 1), "val")
    return chosen


def _draw(order: Sequence[str], counts: Mapping[str, int], known: Mapping[str, Split], val_fraction: float, test_fraction: float) -> Chosen:
    """Splits of the patients, considered in `order`; `known` ones keep theirs."""
    fractions: tuple[tuple[Split, float], ...] = (("test", test_fraction), ("val", val_fraction))
    wanted = [(name, share) for name, share in fractions if share > 0]
    if len(order) == 2 and wanted and not known.keys() & set(order):
        return dict(zip(sorted(order, key=lambda patient: counts[patient]), (wanted[0][0], "train"), strict=True))
    chosen: Chosen = {patient: known.get(patient, "train") for patient in order}
    for position, (name, share) in enumerate(wanted if len(order) > 2 else []):
        there = [patient for patient in order if chosen[patient] == name]
        free = [patient for patient in order if chosen[patient] == "train" and patient not in known]
        training = sum(split == "train" for split in chosen.values())
        later = sum(other not in chosen.values() for other, _ in wanted[position + 1 :])
        target = share * sum(counts.values()) - sum(counts[patient] for patient in there)
        if target > 0 or not there:
            chosen |= dict.fromkeys(_take(free, counts, target, training - 1 - later, at_least_one=not there), name)
    return chosen


def _take(order: Sequence[str], counts: Mapping[str, int], target: float, most: int, *, at_least_one: bool = True) -> list[str]:
    """Patients of `order`, `most` at the most, until the number of their cases is as near to `target` as it gets.

    Patients with more cases than the target are passed over: several patients say more about a network than one.
    """
    if most < 1 or not order:
        return []
    taken: list[str] = []
    cases = 0
    for patient in order:
        nearer = abs(cases + counts[patient] - target) < abs(cases - target)
        if len(taken) < most and counts[patient] <= target and nearer:
            taken.append(patient)
            cases += counts[patient]
    smallest = min(order, key=lambda patient: counts[patient])
    return taken or ([smallest] if at_least_one or counts[smallest] < 2 * target else [])
