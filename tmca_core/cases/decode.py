"""Files to tensors: read, check, resize, and keep the result on disk so that the second time costs a hash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.images import read_image
from tmca_core.cases.manifest import OnBadCase, Skip
from tmca_core.cases.masks import read_mask
from tmca_core.cases.resize import resize_image, resize_mask
from tmca_core.config import DataSettings
from tmca_core.errors import CaseError, ImageError, ManifestError

log = logging.getLogger(__name__)

# Part of every cache key. Raise it with any change of what readers, mask rules or resizing give.
VERSION = 3
WHOLE_FILE = 8 << 20  # bytes; larger files are identified by size, time of change, and both ends
END = 1 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """Decoded cases and what their files were like.

    Attributes:
        tensors: the good cases.
        skipped: the others, in order.
        good: (cases given,) bool, which are kept.
        digests: identity of each good case's image file: equal where the content is.
        sizes: (N, 2) int64, height and width of each good case's image file, pixels.
        mask_pixels: (N, C) int64, pixels of each mask at its full size; -1 where a case has none.
    """

    tensors: CaseTensors
    skipped: Sequence[Skip]
    good: Tensor
    digests: Sequence[str]
    sizes: Tensor
    mask_pixels: Tensor

    @property
    def vanished(self) -> Tensor:
        """(N, C) bool: masks that are empty after resizing and were not before."""
        return (self.mask_pixels > 0) & ~self.tensors.masks.flatten(2).any(2)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/tmca`, or `~/.cache/tmca` where that is not set (or not absolute, as its specification has it)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "tmca"


def cache_folder(settings: DataSettings) -> Path:
    """Folder of all caches: `data.cache_dir`, else the user's."""
    return Path(settings.cache_dir) if settings.cache_dir else default_cache_dir()


def decode(
    cases: Sequence[Case],
    *,
    size: int,
    channels: Literal[1, 3],
    cache_dir: Path | None,
    columns: Sequence[str] = ("mask",),
    on_bad_case: OnBadCase = "skip",
    progress: Progress | None = None,
) -> tuple[CaseTensors, list[Skip]]:
    """Read and resize cases.

    Args:
        cases: of one manifest, in its order.
        size: side S of the square result, pixels; aspect ratio is not kept.
        channels: 1 grey, 3 colour.
        cache_dir: folder of the decoded-tensor cache, None to go without. It holds patients' images: it is made
            readable by its owner only.
        columns: of the manifest, one a target (`Manifest.mask_columns`), for the reasons of skipped cases.
        on_bad_case: "skip" lists unusable cases, "fail" raises the first.
        progress: called with (done, all) after each case that is read from its files.

    Returns:
        Tensors of the good cases in the given order, and the skipped rows.

    Raises:
        CaseError: a file is unusable and `on_bad_case` is "fail".
        ManifestError: no case is left.
    """
    decoded = decode_all(cases, size=size, channels=channels, cache_dir=cache_dir, columns=columns, progress=progress)
    if decoded.skipped and on_bad_case == "fail":
        first = decoded.skipped[0]
        raise CaseError(first.row, first.column, first.reason)
    if cases and not len(decoded.tensors):
        raise ManifestError(f"none of the {len(cases)} cases can be read. The first: {decoded.skipped[0]}")
    for skip in decoded.skipped:
        log.warning("skipped %s", skip)
    lost = int(decoded.vanished.sum())
    if lost:
        log.warning("%d masks are empty at %d × %d pixels: their lesions are smaller than one pixel there.", lost, size, size)
    return decoded.tensors, list(decoded.skipped)


def decode_all(
    cases: Sequence[Case],
    *,
    size: int,
    channels: Literal[1, 3],
    cache_dir: Path | None,
    columns: Sequence[str] = ("mask",),
    progress: Progress | None = None,
) -> Decoded:
    """`decode` with the files' own sizes, that never raises for a bad case."""
    digests: dict[Path, str] = {}
    for case in cases:
        for path in (case.image, *case.masks):
            if path not in digests:
                digests[path] = file_digest(path)
    if cache_dir is None:
        return _decode_files(cases, size, channels, columns, digests, progress)
    key = _key(cases, size, channels, columns, digests)
    file = cache_dir / "decoded" / f"{key}.safetensors"
    found = _load(file, cases, digests)
    if found is None:
        found = _decode_files(cases, size, channels, columns, digests, progress)
        _store(file, found)
    return found


def file_digest(path: Path) -> str:
    """Identity of a file's content, whatever its name and folder.

    sha256 of the whole file up to 8 MiB. Of a larger one: its size, time of change, first and last MiB, because reading
    whole archives of large radiographs would cost more than the cache saves.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size <= WHOLE_FILE:
                digest.update(file.read())
            else:
                digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode() + file.read(END))
                file.seek(-END, os.SEEK_END)
                digest.update(file.read())
    except OSError as error:
        return f"unreadable: {error.errno}"
    return digest.hexdigest()


def _key(cases: Sequence[Case], size: int, channels: int, columns: Sequence[str], digests: dict[Path, str]) -> str:
    # Names without folders, and columns: they stand in the reasons of skipped cases, which are kept too.
    files = [[(path.name, digests[path]) for path in (case.image, *case.masks)] for case in cases]
    return hashlib.sha256(json.dumps([VERSION, size, channels, list(columns), files]).encode()).hexdigest()


# --- reading ------------------------------------------------------------------------------------------
def _decode_files(
    cases: Sequence[Case],
    size: int,
    channels: Literal[1, 3],
    columns: Sequence[str],
    digests: dict[Path, str],
    progress: Progress | None,
) -> Decoded:
    images = torch.zeros((len(cases), channels, size, size), dtype=torch.uint8)
    masks = torch.zeros((len(cases), len(columns), size, size), dtype=torch.uint8)
    sizes = torch.zeros((len(cases), 2), dtype=torch.int64)
    pixels = torch.full((len(cases), len(columns)), -1, dtype=torch.int64)
    good = torch.zeros(len(cases), dtype=torch.bool)
    skipped: list[Skip] = []
    first_of: dict[str, int] = {}  # one film often serves several cases (left lung, right lung): it is decoded once
    for i, case in enumerate(cases):
        column = "image"
        try:
            known = first_of.get(digests[case.image])
            if known is None:
                image = read_image(case.image, channels)
                sizes[i] = torch.tensor(image.shape[:2])
                images[i] = torch.from_numpy(resize_image(image, size)).reshape(size, size, channels).permute(2, 0, 1)
                first_of[digests[case.image]] = i
            else:
                images[i], sizes[i] = images[known], sizes[known]
            for k, (name, path) in enumerate(zip(columns, case.masks, strict=bool(case.masks))):
                column = name
                mask = read_mask(path, (int(sizes[i, 0]), int(sizes[i, 1])))
                pixels[i, k] = int(mask.sum())
                masks[i, k] = torch.from_numpy(resize_mask(mask, size))
            good[i] = True
        except ImageError as error:
            skipped.append(Skip(case.row, column, error.reason))
        if progress is not None:
            progress(i + 1, len(cases))
    if not good.all():
        images, masks, sizes, pixels = images[good], masks[good], sizes[good], pixels[good]
    kept = [case for case, used in zip(cases, good.tolist(), strict=True) if used]
    return Decoded(CaseTensors(kept, images, masks), skipped, good, [digests[case.image] for case in kept], sizes, pixels)


# --- cache --------------------------------------------------------------------------------------------
def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data if tensors[name].numel() else b"")
    return digest.hexdigest()


def _store(file: Path, decoded: Decoded) -> None:
    from safetensors.torch import save_file

    tensors = {
        "images": decoded.tensors.images,
        "masks": decoded.tensors.masks,
        "sizes": decoded.sizes,
        "mask_pixels": decoded.mask_pixels,
        "good": decoded.good,
    }
    about = {"skipped": json.dumps([(skip.column, skip.reason) for skip in decoded.skipped]), "sha256": _checksum(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # 0600: these are patients' images
        os.close(handle)
        try:
            save_file(tensors, name, metadata=about)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("the decoded cases cannot be cached in %s (%s); the next run decodes them again.", file.parent, error)


def _load(file: Path, cases: Sequence[Case], digests: dict[Path, str]) -> Decoded | None:
    """The cached result, or None where there is none or it is damaged (which is said)."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as stored:
            about = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if about["sha256"] != _checksum(tensors):
            raise ValueError("its checksum does not match")
        good = tensors["good"]
        bad = [case for case, used in zip(cases, good.tolist(), strict=True) if not used]
        skipped = [Skip(case.row, column, reason) for case, (column, reason) in zip(bad, json.loads(about["skipped"]), strict=True)]
        kept = [case for case, used in zip(cases, good.tolist(), strict=True) if used]
        same = [digests[case.image] for case in kept]
        return Decoded(
            CaseTensors(kept, tensors["images"], tensors["masks"]), skipped, good, same, tensors["sizes"], tensors["mask_pixels"]
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("the cache file %s is damaged (%s); it is made again.", file, error)
        return None
