"""Check, convert and generate data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.cases.hospital.commands import dicom, fhir, key
from tmca_core.cli import emit
from tmca_core.errors import LateralityError, ManifestError
from tmca_core.text.screen.commands import screen

if TYPE_CHECKING:
    from tmca_core.cases.check import CheckReport
    from tmca_core.cases.decode import Progress

app = typer.Typer(help="Check, convert and generate data.", no_args_is_help=True, add_completion=False)
app.command()(screen)
app.command()(key)
app.command()(dicom)
app.command()(fhir)

SHOWN = 50  # bad rows on the terminal; JSON has all
CEILING_CASES, CEILING_SIZE = 200, 128  # that the phantom's image-only ceiling is measured on

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


class BadCase(StrEnum):
    """What bad rows do."""

    skip = "skip"
    fail = "fail"


class MissingReport(StrEnum):
    """What a row without a report is."""

    skip = "skip"
    use = "use"


class Convention(StrEnum):
    """Side convention of reports."""

    auto = "auto"
    patient = "patient"
    image = "image"


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(metavar="M", help="The manifest: CSV or Parquet.")],
    on_bad_case: Annotated[
        BadCase, typer.Option(help="fail: bad rows end with exit code 2; skip: they are only counted. All are listed.")
    ] = BadCase.fail,
    laterality: Annotated[Convention, typer.Option(help="Side convention of reports where the manifest states none.")] = Convention.auto,
    trust_laterality: Annotated[bool, typer.Option("--trust-laterality", help="Go on although the masks show another convention.")] = False,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side at which cases are decoded, pixels.")] = 128,
    targets: Annotated[str, typer.Option(help="Names of several targets, comma-separated, each with a column 'mask:NAME'.")] = "",
    missing_reports: Annotated[
        MissingReport, typer.Option(help="use: a row without a report is a case, not a bad row.")
    ] = MissingReport.skip,
    as_json: AsJson = False,
) -> None:
    """Read every row and file of a manifest; name each bad one; measure which side "left" means."""
    from tmca_core.cases.check import check_manifest, refused
    from tmca_core.config import parse

    names = parse({"data.targets": targets}).data.target_names
    try:
        with progress_bar("reading cases") as progress:
            report = check_manifest(
                manifest,
                laterality=laterality.value,
                trust=trust_laterality,
                size=size,
                targets=names,
                missing_reports=missing_reports.value,
                progress=progress,
            )
    except ManifestError as error:
        if as_json:
            emit(True, refused(str(error)).to_json(), "")
        raise
    emit(as_json, report.to_json(), _summary(report))
    if report.error:
        raise (LateralityError if report.cases else ManifestError)(report.error)
    if report.skipped and on_bad_case is BadCase.fail:
        bad, rows = len(report.skipped), len(report.skipped) + report.cases
        first = f" The first: {report.skipped[0]}" if as_json else ""
        raise ManifestError(
            f"{manifest}: {bad} of {rows} rows cannot be used.{first} Mend or remove them, or go on without: --on-bad-case skip."
        )


@app.command()
def convert(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help="lvit, languide, sgseg or prolearn.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The data set's folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder for the manifest and its files.")],
    on_bad_case: Annotated[
        BadCase, typer.Option(help="skip: entries without image, mask or report are left out and listed.")
    ] = BadCase.fail,
    as_json: AsJson = False,
) -> None:
    """Turn a public data set's layout into a manifest."""
    from tmca_core.cases.layouts import convert as convert_layout

    _done(convert_layout(layout, source, destination, on_bad_case=on_bad_case.value), as_json)


@app.command()
def phantom(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the manifest and its files.")],
    sites: Annotated[int, typer.Option(min=1, help="Hospitals.")] = 4,
    cases: Annotated[int, typer.Option(min=1, help="Cases a hospital.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the films, pixels.")] = 256,
    shift: Annotated[float, typer.Option(min=0, max=2, help="Strength of the differences between hospitals; 0: none.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Generate chest-film-like cases with reports, without any patient."""
    from tmca_core.cases.phantom import image_only_ceiling, write
    from tmca_core.config import PhantomSettings

    manifest = write(directory, sites=sites, cases=cases, seed=seed, size=size, shift=shift)
    # A second or so at most: the Dice of whole opacities hardly depends on the size of the films, nor on more cases.
    fewer = min(sites, CEILING_CASES // 4)  # a site has at least four cases
    some = PhantomSettings(sites=fewer, cases=min(cases, CEILING_CASES // fewer), seed=seed, shift=shift)
    ceiling = image_only_ceiling(some, size=min(size, CEILING_SIZE))
    said = (
        f"Mean Dice that an image-only network can reach here: {ceiling.best:.2f}; all opacities, named or not, give {ceiling.union:.2f} "
        f"({ceiling.cases} cases). More needs the report."
    )
    _done(manifest, as_json, {"image_only_ceiling": {"best": ceiling.best, "union": ceiling.union}}, said)


def _done(manifest: Path, as_json: bool, more: Mapping[str, Any] | None = None, said: str = "") -> None:
    from tmca_core.cases.manifest import read_manifest

    written = read_manifest(manifest)
    value = {"manifest": str(manifest), "cases": len(written.cases), "skipped": len(written.skipped), **(more or {})}
    text = f"{manifest}: {len(written.cases)} cases. Next: tmca data check {manifest}"
    emit(as_json, value, f"{text}\n{said}" if said else text)


def _summary(report: CheckReport) -> str:
    facts, sides = report.facts, report.laterality
    lines = [str(skip) for skip in report.skipped[:SHOWN]]
    if len(report.skipped) > SHOWN:
        lines.append(f"… and {len(report.skipped) - SHOWN} more bad rows (--json lists all)")
    lines += [f"note: {warning}" for warning in report.warnings]
    lines.append(f"{report.cases} cases of {report.patients} patients; {len(report.skipped)} of {facts['rows']} rows skipped")
    lines.append("sites: " + ", ".join(f"{site} {number}" for site, number in report.sites.items()))
    lines.append("splits: " + ", ".join(f"{split} {number}" for split, number in facts["splits"].items()))
    if facts["image_sizes"]["smallest"]:
        small, large = ("{} × {}".format(*facts["image_sizes"][end]) for end in ("smallest", "largest"))
        lines.append(
            f"images: {facts['distinct_images']} different, from {small} to {large} pixels; "
            f"reports: {facts['distinct_reports']} different, {facts['without_report']} missing"
        )
    lines.append(f"masks: {facts['empty_masks']} empty, {facts['without_mask']} cases without")
    agreement = "" if sides["agreement"] is None else f" ({sides['agreement']:.1%} of {sides['one_sided_cases']} one-sided cases)"
    lines.append(f"laterality: declared {sides['declared'] or 'nothing'}, measured {sides['measured'] or 'nothing'}{agreement}")
    if len(report.site_laterality) > 1:
        for site, of_site in report.site_laterality.items():
            share = "no one-sided case" if of_site["agreement"] is None else f"{of_site['agreement']:.1%} of {of_site['one_sided_cases']}"
            lines.append(f"  {site}: declared {of_site['declared'] or 'nothing'}, measured {of_site['measured'] or 'nothing'} ({share})")
    return "\n".join(lines)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar on a terminal, a plain line every 1,000 cases off it; on stderr."""
    if not sys.stderr.isatty():

        def say(done: int, total: int) -> None:
            if done % 1000 == 0:
                print(f"{what}: {done} of {total}", file=sys.stderr)

        yield say
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
