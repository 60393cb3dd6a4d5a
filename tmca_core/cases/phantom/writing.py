"""The phantom as files: a manifest with images and masks, as a hospital would hand them in."""

from __future__ import annotations

import csv
from pathlib import Path

from tmca_core.cases.phantom.films import check_shape, generate_site
from tmca_core.config import PhantomSettings, parse
from tmca_core.errors import ManifestError

COLUMNS = ("case_id", "patient_id", "site", "image", "mask", "report", "laterality", "view", "sex", "age")


def write(directory: Path, *, sites: int, cases: int, seed: int, size: int = 256, shift: float = 1.0) -> Path:
    """Write the phantom as `manifest.csv` (+ `manifest.toml`), `images/*.png` and `masks/*.png` (0 and 255).

    Args:
        directory: made where absent; must be empty.
        sites: number of hospitals.
        cases: per hospital.
        seed: of the generator.
        size: image side, pixels.
        shift: strength of the differences between sites.

    Returns:
        The manifest's path.

    Raises:
        ManifestError: `directory` holds files already, or cannot be written.
        ConfigError: a number is out of its bounds.
    """
    from PIL import Image

    settings = parse({"phantom.sites": sites, "phantom.cases": cases, "phantom.seed": seed, "phantom.shift": shift}).phantom
    check_shape(size)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ManifestError(f"{directory} is not an empty folder: the phantom overwrites nothing. Choose another folder or empty it.")
        for folder in ("images", "masks"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        manifest = directory / "manifest.csv"
        with manifest.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for index in range(sites):
                tensors = generate_site(settings, index, size=size)
                for case, image, mask in zip(tensors.cases, tensors.images, tensors.masks, strict=True):
                    Image.fromarray(image[0].numpy()).save(directory / case.image)
                    Image.fromarray(mask[0].numpy() * 255).save(directory / "masks" / case.image.name)
                    table.writerow(
                        {
                            "case_id": case.case_id,
                            "patient_id": case.patient_id,
                            "site": case.site,
                            "image": case.image.as_posix(),
                            "mask": f"masks/{case.image.name}",
                            "report": case.report,
                            "laterality": case.laterality,
                            **case.metadata,
                        }
                    )
        (directory / "manifest.toml").write_text(_sidecar(settings, size), encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"cannot write the phantom to {directory}: {error}.") from None
    return manifest


def _sidecar(settings: PhantomSettings, size: int) -> str:
    source = (
        f"tmca phantom: {settings.sites} sites, {settings.cases} cases each, seed {settings.seed}, shift {settings.shift}, {size} pixels"
    )
    return f'modality = "generated chest film"\nlicence = "none needed: generated, shows no person"\nsource = "{source}"\n'
