"""`tmca data key`, `tmca data dicom` and `tmca data fhir`: a hospital's films and reports into a manifest without names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from tmca_core.cases.hospital.films import Imported
    from tmca_core.cases.hospital.reports import Matched
    from tmca_core.cases.hospital.service import Access, Service
    from tmca_core.text.screen.table import Screened

SHOWN = 20  # reasons on the terminal; JSON has every object

Key = Annotated[Path, typer.Option("--key", help="The site's key of pseudonyms, made once with: tmca data key FILE.")]
Query = Annotated[list[str] | None, typer.Option("--query", metavar="NAME=VALUE", help="Search of a server; may be repeated.")]
Token = Annotated[Path | None, typer.Option(help="File with a bearer token for a server.")]
Authority = Annotated[Path | None, typer.Option("--ca", help="PEM of the authority that signed a server's certificate.")]
Certificate = Annotated[Path | None, typer.Option("--cert", help="PEM of our own certificate, for mutual TLS.")]
CertificateKey = Annotated[Path | None, typer.Option("--cert-key", help="PEM of its key, where that is another file.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow http to another machine.")]
Show = Annotated[bool, typer.Option("--show", help="Print where skipped ones are, which may name persons. Mind who reads the screen.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


class First(StrEnum):
    """Which text of a report comes first."""

    conclusion = "conclusion"
    form = "form"


def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; keep it, and a copy where only the hospital gets.")],
    as_json: AsJson = False,
) -> None:
    """Make the site's key of pseudonyms, once: with the same key a patient has the same id in every import."""
    from tmca_core.cases.hospital.pseudonyms import Pseudonyms

    Pseudonyms.create(path)
    emit(as_json, {"key": str(path)}, f"{path}: a new key (0600). Keep a copy: without it later imports cannot tell who is who.")


def dicom(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of DICOM files, or the https address of a DICOMweb server.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder of the manifest; films are added to one that is there.")],
    key_file: Key,
    site: Annotated[str, typer.Option(help="Name of the site in the manifest.")] = "all",
    modality: Annotated[list[str] | None, typer.Option(help="Of films, e.g. DX; may be repeated. Default: single pictures.")] = None,
    lateral: Annotated[bool, typer.Option("--lateral", help="Take lateral views too.")] = False,
    targets: Annotated[str, typer.Option(help="Labels of segments that become masks, comma-separated; default: the only one.")] = "",
    query: Query = None,
    limit: Annotated[int, typer.Option(min=0, help="Most studies of a server; 0: all.")] = 0,
    token: Token = None,
    ca: Authority = None,
    cert: Certificate = None,
    cert_key: CertificateKey = None,
    insecure: Insecure = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Turn a hospital's films, and segmentations of them, into a manifest: pixels without headers, pseudonyms for ids."""
    from tmca_core.cases.commands import progress_bar
    from tmca_core.cases.hospital.films import folder_of, import_films
    from tmca_core.cases.hospital.objects import MODALITIES, Wanted
    from tmca_core.cases.hospital.pseudonyms import Pseudonyms
    from tmca_core.config import parse

    named = parse({"data.targets": targets}).data.target_names if targets else ()
    wanted = Wanted(tuple(one.upper() for one in modality) if modality else MODALITIES, lateral, named)
    ids = Pseudonyms.load(key_file)
    with _reached(_access(source, token, ca, cert, cert_key, insecure)) as service:
        if service is None:
            _no_query(query)
            sources = folder_of(Path(source))
        else:
            from tmca_core.cases.hospital.dicomweb import sources_of

            sources = sources_of(service, wanted, _pairs(query), destination, limit)
        with progress_bar("importing films") as progress:
            done = import_films(sources, destination, ids, site=site, wanted=wanted, progress=progress)
    emit(as_json, done.to_json(show), _films_told(done, show))
    if not done.cases:
        raise ManifestError(f"none of the {done.objects} objects of {source if service is None else 'the server'} is a usable film.")


def fhir(
    manifest: Annotated[Path, typer.Argument(metavar="M", help="The manifest that `tmca data dicom` made.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or file of FHIR R4 JSON or NDJSON, or a server's https address.")],
    key_file: Key,
    accession_system: Annotated[
        list[str] | None, typer.Option(help="System of identifiers that are accession numbers, whatever their type; may be repeated.")
    ] = None,
    prefer: Annotated[First, typer.Option(help="Text that comes first where a report has both.")] = First.conclusion,
    replace: Annotated[bool, typer.Option("--replace", help="Replace reports that are in the table, also mended ones.")] = False,
    languages: Annotated[str, typer.Option(help="Of the reports, for the screening: en, de.")] = "en",
    query: Query = None,
    token: Token = None,
    ca: Authority = None,
    cert: Certificate = None,
    cert_key: CertificateKey = None,
    insecure: Insecure = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Fill a manifest's reports from FHIR DiagnosticReports, and screen them for identifiers."""
    from tmca_core.cases.hospital.pseudonyms import Pseudonyms
    from tmca_core.cases.hospital.reports import import_reports
    from tmca_core.cases.hospital.resources import Resources
    from tmca_core.text.screen.table import screen_manifest

    if not manifest.is_file():
        raise ManifestError(f"there is no manifest {manifest}: make it with tmca data dicom.")
    chosen = tuple(name.strip() for name in languages.split(",") if name.strip())
    ids = Pseudonyms.load(key_file)
    with _reached(_access(source, token, ca, cert, cert_key, insecure)) as service:
        if service is None:
            _no_query(query)
            resources = Resources.of_folder(Path(source))
        else:
            resources = Resources.of_server(service, _pairs(query))
        done = import_reports(manifest, resources, ids, accession_systems=accession_system or (), prefer=prefer.value, replace=replace)
    screened = screen_manifest(manifest, languages=chosen)
    emit(as_json, {**done.to_json(show), "screened": screened.to_json()}, _reports_told(done, screened, show))
    if screened.cells:
        raise ManifestError(
            f"{manifest}: {screened.summary()}. They are written, and no hospital's gate lets them train as they are. See them with: "
            f"tmca data screen {manifest} --show"
        )


def _access(source: str, token: Path | None, ca: Path | None, cert: Path | None, cert_key: Path | None, insecure: bool) -> Access | None:
    """How the server is reached; None where the source is on the disk."""
    from tmca_core.cases.hospital.service import Access

    if source.lower().startswith(("http://", "https://")):
        return Access(source, token, ca, cert, cert_key, insecure)
    if "://" in source:
        raise ConfigError(f"{source}: give a folder, or an address that begins with https://.")
    return None


@contextmanager
def _reached(access: Access | None) -> Iterator[Service | None]:
    from tmca_core.cases.hospital.service import Service

    if access is None:
        yield None
        return
    with Service(access) as service:
        yield service


def _pairs(query: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in query or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--query takes NAME=VALUE, got '{text}'.")
        pairs[name] = value
    return pairs


def _no_query(query: Sequence[str] | None) -> None:
    if query:
        raise ConfigError("--query is a search of a server; of a folder everything is taken. Leave it out, or name a server.")


def _films_told(done: Imported, show: bool) -> str:
    lines = _skips_told(done.to_json(show))
    if done.personal:
        lines.append(f"note: the headers of {done.personal} films name a person or a place; what is written has no header.")
    if done.unsaid:
        lines.append(f"note: {done.unsaid} films do not say whether text is burned in: look at some before anything trains on them.")
    lines.append(
        f"{done.objects} objects: {done.films} films written, {done.known} known before, {done.masks} masked, {len(done.skipped)} skipped"
    )
    lines.append(f"{done.manifest}: {done.cases} cases of {done.patients} patients. Next: tmca data fhir {done.manifest} SOURCE --key …")
    return "\n".join(lines)


def _reports_told(done: Matched, screened: Screened, show: bool) -> str:
    lines = _skips_told(done.to_json(show))
    lines.append(f"{done.reports} reports: {done.films} films got one, {len(done.skipped)} reports skipped; {done.without} films have none")
    lines.append(f"{screened.summary()}. This is assistance, not a guarantee. Next: tmca data check {done.manifest}")
    return "\n".join(lines)


def _skips_told(told: Mapping[str, Any]) -> list[str]:
    """Reasons with their numbers; or every object with its place where that is asked for."""
    if told["skipped"] and "where" in told["skipped"][0]:
        return [f"skipped {one['where']}: {one['reason']}" for one in told["skipped"]]
    lines = [f"skipped {count}: {reason}" for reason, count in list(told["reasons"].items())[:SHOWN]]
    if len(told["reasons"]) > SHOWN:
        lines.append(f"… and {len(told['reasons']) - SHOWN} more reasons (--json lists every one, --show says where)")
    return lines
