"""Download COCO val2014: its images and the two annotation files that CHAIR reads."""

import argparse
import json
import os
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fetching import DownloadError, fetch, lock, mismatch, need_space, run

COCO = Path(__file__).resolve().parent / "coco"
"""Where the evaluation scripts look."""


@dataclass(frozen=True)
class Archive:
    """A zip archive of cocodataset.org, of `size` bytes; `only`: the files that are unpacked."""

    option: str
    url: str
    size: int
    md5: str
    only: tuple[str, ...] = ()


ARCHIVES = {
    "annotations": Archive(
        "annotations",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        252_872_794,
        "0a379cfc70b0e71301e0f377548639bd",
        ("instances_val2014.json", "captions_val2014.json"),
    ),
    "val2014": Archive(
        "images",
        "http://images.cocodataset.org/zips/val2014.zip",
        6_645_013_297,
        "a3d79f5ed8d289b7a7554ce06a5782b3",
    ),
}
"""By the folder that each fills, which is also the top folder in the archive."""


def why_incomplete(coco: Path) -> str:
    """What `coco` lacks of the annotations and the images that they list; "" if nothing."""
    return next((why for name in ARCHIVES if (why := _why(coco, coco / name))), "")


def download(
    coco: Path, urls: dict[str, str], sha256s: dict[str, str], remove_zip: bool = False
) -> None:
    """Fill `coco` with `annotations/` and `val2014/`; each appears when it is whole.

    `urls`, `sha256s`: by the keys of `ARCHIVES`; a sha256 replaces the known size and md5. Raises
    `DownloadError`; a folder that is there and incomplete is left alone.
    """
    with lock(coco / ".download.lock"):
        for name in ARCHIVES:
            _complete(coco, name, urls.get(name), sha256s.get(name))
            if remove_zip:
                (coco / f"{name}.zip").unlink(missing_ok=True)
    print(f"COCO val2014 is complete: {coco}")


def _complete(coco: Path, name: str, url: str | None, sha256: str | None) -> None:
    folder, archive, known = coco / name, coco / f"{name}.zip", ARCHIVES[name]
    if not (why := _why(coco, folder)):
        return
    if folder.exists():
        raise DownloadError(
            f"{why}. {folder} is not touched: move it away, and run this again for a new one."
        )
    size = None if sha256 else known.size
    digest = f"sha256:{sha256}" if sha256 else f"md5:{known.md5}"
    if not archive.exists():
        fetch(url or known.url, archive, size, digest, room=size or 0)
    elif trouble := mismatch(archive, size, digest):
        raise DownloadError(f"{archive} is not the expected archive: {trouble}\nMove it away.")
    aside = coco / f".{name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    try:
        _unpack(archive, aside, name, known.only)
        if why := _why(coco, aside / name):
            raise DownloadError(f"{archive} does not hold what it should: {why}. Remove it.")
        (aside / name).rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack(archive: Path, aside: Path, top: str, only: Sequence[str]) -> None:
    """Unpack into `aside` what the folder `top` of the archive holds, or what of it is in `only`.

    Every checksum is compared. Raises `DownloadError` where the archive is damaged, or a member is
    a link or leads out of `aside`; then nothing of it is unpacked.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            for member in zip_file.infolist():
                inside = (aside / member.filename).resolve().is_relative_to(aside.resolve())
                if not inside or stat.S_ISLNK(member.external_attr >> 16):
                    raise DownloadError(
                        f"{archive} is unsafe: its member {member.filename!r} is a link or leads "
                        "out of the archive. Nothing was unpacked; use another source."
                    )
            wanted = {f"{top}/{name}" for name in only}
            members = [
                member
                for member in zip_file.infolist()
                if member.filename.startswith(f"{top}/") and (member.filename in wanted or not only)
            ]
            # No more is written of a member than the size that it announces.
            need_space(archive.parent, sum(member.file_size for member in members))
            print(f"Unpacking {archive.name}: {len(members):,} files ...", flush=True)
            zip_file.extractall(aside, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive} is damaged: {error}. Remove it, run this again.") from error


def _why(coco: Path, folder: Path) -> str:
    """What `folder`, of a name of `ARCHIVES`, lacks of what the archive holds."""
    if not folder.is_dir():
        return f"{folder} is missing"
    if folder.name == "annotations":
        for file in ARCHIVES["annotations"].only:
            try:
                json.loads((folder / file).read_bytes())["images"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                return f"{folder / file} is missing, or no annotation file: {error!r}"
        return ""
    listed = json.loads((coco / "annotations" / "instances_val2014.json").read_bytes())["images"]
    with os.scandir(folder) as entries:
        there = {entry.name for entry in entries if entry.stat().st_size}
    missing = sorted({image["file_name"] for image in listed} - there)
    if not missing:
        return ""
    return f"{folder} lacks {len(missing):,} of {len(listed):,} images, such as {missing[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download COCO val2014 (40,504 images, 6.6 GB; annotations, 0.25 GB; 14 GB on "
        "disk with the zip files). A run that was cut goes on where it stopped; what is complete "
        "is left as it is. Needs curl, and any Python from 3.11 on.",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=COCO,
        help="the folder that gets val2014/ and annotations/ (default: where the evaluation "
        "scripts look, %(default)s)",
    )
    for name, archive in ARCHIVES.items():
        parser.add_argument(
            f"--{archive.option}_url",
            metavar="URL",
            help=f"another source of {name}.zip (default: {archive.url})",
        )
        parser.add_argument(
            f"--{archive.option}_sha256",
            metavar="HEX",
            help=f"sha256 that {name}.zip must have, instead of the known size and md5 "
            f"({archive.size:,} bytes, {archive.md5})",
        )
    parser.add_argument(
        "--remove_zip", action="store_true", help="remove the zip files once they are unpacked"
    )
    options = vars(parser.parse_args(arguments))
    urls, sha256s = (
        {name: each for name in ARCHIVES if (each := options[f"{ARCHIVES[name].option}_{what}"])}
        for what in ("url", "sha256")
    )
    return run(lambda: download(options["download_path"], urls, sha256s, options["remove_zip"]))


if __name__ == "__main__":
    sys.exit(main())
