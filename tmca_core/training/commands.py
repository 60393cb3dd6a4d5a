"""`tmca train`, `tmca evaluate` and `tmca predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmca_core.cli import emit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tmca_core.cases.segments import SegmentRules
    from tmca_core.config import Config
    from tmca_core.networks import Network
    from tmca_core.text.features import TextPipeline

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="A setting, e.g. training.epochs=3; may be repeated.")]
Manifest = Annotated[Path | None, typer.Option("--manifest", help="Table of cases (CSV or Parquet); without it the phantom is used.")]


def train(
    config_file: Annotated[Path | None, typer.Argument(help="Configuration (TOML).")] = None,
    manifest: Manifest = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; the same folder resumes.")] = None,
    site: Annotated[str, typer.Option(help="Train on this site alone; without it on all sites pooled.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of splits, weights and augmentation.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The hospital's site.toml, whose ledger pays for privacy.enabled=true.")] = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Train on one machine: all sites pooled, or one alone."""
    from tmca_core.cases.sites import load_sites
    from tmca_core.config import load
    from tmca_core.console import RoundTable, run_folder
    from tmca_core.errors import ConfigError, ManifestError, PolicyRefusal
    from tmca_core.report.html import write_report
    from tmca_core.run import Run
    from tmca_core.training.centralised import keep_data, train_centralised

    config = load(config_file, assignments or []).with_values(given({"data.manifest": manifest, "seed": seed}))
    if config.privacy.enabled and policy is None:
        raise PolicyRefusal("a private training needs a ledger to be charged to: name the hospital's policy with --policy site.toml.")
    if policy is not None and not config.privacy.enabled:
        raise ConfigError("--policy is of private training: set privacy.enabled=true and the noise or ε, or leave the policy out.")
    run = Run(run_folder(out or config.simulation.out, "train"))
    sites = load_sites(config)
    if site and site not in sites:
        raise ManifestError(f"no site '{site}' in the manifest; sites: {', '.join(sites)}.")
    chosen = {site: sites[site]} if site else sites
    with run.held(), RoundTable(config.federation.rounds, quiet=as_json) as table:
        Run.create(run.folder, config)
        keep_data(run, chosen)
        private = None
        if policy is not None:
            from tmca_core.privacy.centralised import PrivateTraining

            private = PrivateTraining.under(policy, run)
        summary = train_centralised(config, chosen, run, arm=f"local:{site}" if site else "pooled", on_event=table, private=private)
        report = write_report(run)
    emit(as_json, summary, f"{headline(summary)}\nreport: {report}")


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints/round-NNN.")],
    manifest: Annotated[Path, typer.Option("--manifest", help="Table of cases with masks.")],
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json and cases.csv.")],
    split: Annotated[
        Literal["auto", "test", "val", "train", "all"],
        typer.Option(help="Cases to evaluate; auto: the manifest's test rows, else those that the run did not train on, else all."),
    ] = "auto",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on the cases of a manifest."""
    import csv
    import json
    import sys

    from tmca_core.cases.sites import manifest_of, masked_cases
    from tmca_core.run import write_atomically
    from tmca_core.training.device import resolve_device
    from tmca_core.training.evaluation import evaluate as measure
    from tmca_core.training.evaluation import summarise
    from tmca_core.training.selection import select_cases, splits_of_run

    config, network, pipeline = load_model(checkpoint, assignments or [])
    settings = config.data
    table = manifest_of(manifest, settings)
    data, skipped = masked_cases(table, settings)
    # Chosen only now: the side convention is measured on all cases, as for training.
    chosen = select_cases(data.cases, splits_of_run(checkpoint), split)
    data = data.subset(chosen.indices)
    scores = measure(network, data, pipeline, settings=config.evaluation, device=resolve_device(config.training))
    bad = [*table.skipped, *skipped]
    summary = {
        **summarise(scores, bootstrap=config.evaluation.bootstrap, seed=config.seed, targets=settings.target_names),
        "cases": len(scores),
        "split": dict(chosen.counts),
        "without_mask": sum(not case.masks for case in table.cases),
        "skipped": [{"row": s.row, "column": s.column, "reason": s.reason} for s in bad],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "evaluation.json", json.dumps(summary, indent=1, allow_nan=False))
    with (out / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        several = [f"dice:{name}" for name in settings.target_names] if len(settings.target_names) > 1 else []
        writer.writerow(["case_id", "patient_id", "site", "dice", "iou", "hd95_px", "laterality_error", "dice_swapped", *several])
        for s in scores:
            row = [s.case_id, s.patient_id, s.site, s.dice, s.iou, s.hd95, s.laterality_error, s.counterfactual.get("swapped")]
            writer.writerow([*row, *(target.dice for target in s.targets)])
    skips = "".join(f"\nskipped row {s.row}, column '{s.column}': {s.reason}" for s in bad)
    if chosen.warning:
        print(chosen.warning, file=sys.stderr)
    emit(as_json, summary, f"{headline(summary)}\n{chosen.line}{skips}\nwritten: {out / 'evaluation.json'}, {out / 'cases.csv'}")


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints/round-NNN.")],
    image: Annotated[Path, typer.Option("--image", "--dicom", help="PNG, JPEG, DICOM or NIfTI.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Mask to write. NAME.png: 0 and 255, the image's size, of several targets NAME-TARGET.png each. NAME.dcm: DICOM SEG over "
            "the film, a segment a target."
        ),
    ],
    report: Annotated[str, typer.Option(help="The report's text; without it the mask follows from the image alone.")] = "",
    laterality: Annotated[Literal["patient", "image"], typer.Option(help="Whose left the report means.")] = "patient",
    codes: Annotated[Path | None, typer.Option(help="Labels and codes of segments (TOML, a table a target), for NAME.dcm.")] = None,
    without_person: Annotated[
        bool, typer.Option("--without-person", help="NAME.dcm takes over the film's UIDs and geometry, and nothing that names somebody.")
    ] = False,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Segment one image as its report says.

    Several targets may overlap, which no single picture of labels could show: each has a PNG, or a segment, of its own.
    """
    import math

    import torch

    from tmca_core.cases.images import read_image
    from tmca_core.cases.manifest import in_patient_sides
    from tmca_core.cases.resize import resize_image
    from tmca_core.cases.segments import load_codes
    from tmca_core.errors import ConfigError
    from tmca_core.text.findings import parse
    from tmca_core.training.batches import prepare_images
    from tmca_core.training.device import resolve_device
    from tmca_core.training.evaluation import inference

    if out.suffix.lower() not in (".png", ".dcm"):
        raise ConfigError(f"--out {out}: the mask is written as PNG or DICOM SEG; give a name that ends in .png or .dcm.")
    rules = load_codes(codes)
    config, network, pipeline = load_model(checkpoint, assignments or [])
    device = resolve_device(config.training)
    pixels = read_image(image, config.data.channels)
    size, threshold = config.data.image_size, config.evaluation.threshold
    tensor = torch.from_numpy(resize_image(pixels, size)).reshape(1, size, size, -1).permute(0, 3, 1, 2)
    text = in_patient_sides(report.strip(), laterality)
    batch = pipeline.encode([text]).to(device)
    with inference(network):
        logits = network(prepare_images(tensor.to(device)), batch).logits
        logits = torch.nn.functional.interpolate(logits.float(), size=pixels.shape[:2], mode="bilinear", align_corners=False)
    masks = (logits[0] > math.log(threshold / (1 - threshold))).cpu().numpy()
    names = config.data.target_names
    files = _write_masks(dict(zip(names, masks, strict=True)), out, image, rules, config.network.name, network, not without_person)
    image_only = not network.uses_text or not bool(batch.kinds.any())
    shares = [float(mask.mean()) for mask in masks]
    found = [{"mask": str(file), "area_share": share} for file, share in zip(files, shares, strict=True)]
    own: dict[str, Any] = found[0] if len(names) == 1 else {"targets": dict(zip(names, found, strict=True))}
    side = parse(text).side
    result = {**own, "height": masks.shape[1], "width": masks.shape[2], "side": side, "image_only": image_only}
    shown = [str(file) if files.count(file) == 1 else f"{file}, {name}" for file, name in zip(files, names, strict=True)]
    lines = "\n".join(f"{file}: {100 * share:.1f} % of the image" for file, share in zip(shown, shares, strict=True))
    why = "the report says nothing" if network.uses_text else "this network reads no report"
    emit(as_json, result, f"{lines}; {f'from the image alone: {why}' if image_only else f'the report names side: {side}'}")


def _write_masks(
    masks: dict[str, NDArray[np.bool_]],
    out: Path,
    image: Path,
    codes: dict[str, SegmentRules],
    name: str,
    network: Network,
    person: bool,
) -> list[Path]:
    """Write them as the suffix of `out` says; returns the file of each."""
    import numpy as np
    from PIL import Image

    from tmca_core import __version__
    from tmca_core.cases.segments import write_segments
    from tmca_core.networks.start import start_digest

    if out.suffix.lower() == ".dcm":
        weights = start_digest(network.state_dict())
        version = f"{__version__}+{weights[:16]}"
        write_segments(image, masks, out, codes=codes, algorithm=f"tmca-fl {name}", version=version, person=person)
        return [out] * len(masks)
    files = [out] if len(masks) == 1 else [out.with_name(f"{out.stem}-{target}{out.suffix}") for target in masks]
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, mask in zip(files, masks.values(), strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    return files


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Those options that the user gave, paths as absolute text."""
    return {k: str(v.expanduser().resolve()) if isinstance(v, Path) else v for k, v in values.items() if v is not None}


def headline(summary: dict[str, Any]) -> str:
    """The two lines that a person wants first."""
    final, counter = summary["final"], summary.get("counterfactual") or {}
    sides = final.get("laterality_error")
    if final["dice_image"] is None:
        return "no Dice: every site's policy withholds it"
    pooled = "" if final["dice_pooled"] is None else f", {final['dice_pooled']:.3f} pooled"
    lines = f"Dice {final['dice_image']:.3f} per image{pooled}; worst site {final['worst_site']}"
    if final.get("withheld"):
        lines += f"\nmean over the sites, each counting the same: {', '.join(final['withheld'])} keep figures by their policies"
    if sides is not None:
        lines += f"; {100 * sides:.1f} % of the predicted area on the wrong side"
    if all(counter.get(name) is not None for name in ("true", "swapped", "shuffled", "empty")):
        lines += f"\nreport true {counter['true']:.3f}, sides swapped {counter['swapped']:.3f}, another case's {counter['shuffled']:.3f}, "
        lines += f"empty {counter['empty']:.3f} (Dice against the true mask)"
    if final.get("per_target"):
        lines += "\nper target " + ", ".join(f"{name} {figures['dice_image']:.3f}" for name, figures in final["per_target"].items())
    if final.get("without_report"):
        lines += "\n{cases} cases without a report {dice_image:.3f}".format(**final["without_report"])
    return lines


def load_model(checkpoint: Path, assignments: list[str]) -> tuple[Config, Network, TextPipeline]:
    """The network of a checkpoint, on its device, with the configuration of its run.

    Raises:
        WeightsError: no such checkpoint, or its tensors do not fit.
    """
    from tmca_core import config as configuration
    from tmca_core.errors import WeightsError
    from tmca_core.networks import build_network
    from tmca_core.run import Run, load_checkpoint
    from tmca_core.training.centralised import build_pipeline
    from tmca_core.training.device import resolve_device, set_threads

    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    if (folder / "config.toml").exists():
        rounds = Run(folder).checkpoints()
        if not rounds:
            raise WeightsError(f"{folder} has no complete checkpoint yet.")
        folder = rounds[-1]
    home = next((parent for parent in folder.parents if (parent / "config.toml").exists()), None)
    if home is None or not (folder / "model.safetensors").exists():
        raise WeightsError(f"{checkpoint} is no checkpoint: give a run's folder (with config.toml) or its checkpoints/round-NNN.")
    config = configuration.load(home / "config.toml", assignments)
    set_threads(config.training)
    network = build_network(config, started=False)
    saved = load_checkpoint(folder)
    average = {k.removeprefix("average/"): v for k, v in saved.training.items() if k.startswith("average/")}
    weights = {**network.state_dict(), **saved.weights, **average}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{folder} does not fit the network of {home / 'config.toml'}: {error}") from None
    return config, network.to(resolve_device(config.training)), build_pipeline(network, config)
