"""Download COCO val2014: its images and the two annotation files that CHAIR reads."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fetching import DownloadError, fetch, lock, read_record, run, verify, write_record
from unpacking import unpacked

COCO = Path(__file__).resolve().parent / "coco"
"""Where the evaluation scripts look."""

_RECORD = "downloads.json"


@dataclass(frozen=True)
class Archive:
    """A zip archive of cocodataset.org, of `size` bytes. The md5 is there for accidents: what was
    downloaded is recorded, and held to, by its sha256."""

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
    return next((why for name in ARCHIVES if (why := _why(coco, name, coco / name))), "")


def download(
    coco: Path, urls: dict[str, str], sha256s: dict[str, str], remove_zip: bool = False
) -> None:
    """Fill `coco` with `annotations/` and `val2014/`; each appears when it is whole.

    `urls`, `sha256s`: by the keys of `ARCHIVES`; a sha256 replaces the size and the digests that
    are known otherwise. Raises `DownloadError`; a folder that is there and incomplete is left
    alone.
    """
    coco.mkdir(parents=True, exist_ok=True)
    with lock(coco / ".download.lock"):
        for name in ARCHIVES:
            _complete(coco, name, urls.get(name), sha256s.get(name))
            if remove_zip:
                (coco / f"{name}.zip").unlink(missing_ok=True)
    print(f"COCO val2014 is complete: {coco}")


def _complete(coco: Path, name: str, url: str | None, sha256: str | None) -> None:
    folder = coco / name
    if not (why := _why(coco, name, folder)):
        return
    if folder.exists():
        raise DownloadError(
            f"{why}. {folder} is not touched: move it away, and run this again for a new one."
        )
    archive = coco / f"{name}.zip"
    source = _get(coco, name, archive, url or ARCHIVES[name].url, sha256)
    with unpacked(archive, name, folder, ARCHIVES[name].only) as aside:
        if why := _why(coco, name, aside):
            raise DownloadError(
                f"{archive} does not hold what it should: {why}. Remove it, and run this again "
                "with another source (--help)."
            )
        if name == "val2014":
            source["bytes"] = sum(_sizes(coco, aside).values())
        record = read_record(coco / _RECORD)
        write_record(coco / _RECORD, record | {name: source})
        aside.rename(folder)


def _get(coco: Path, name: str, archive: Path, url: str, sha256: str | None) -> dict[str, object]:
    """Have the archive on disk, verified; return what is recorded about it."""
    size = None if sha256 else ARCHIVES[name].size
    known = sha256 or read_record(coco / _RECORD).get(name, {}).get("sha256")
    digest = f"sha256:{known}" if known else f"md5:{ARCHIVES[name].md5}"
    if not archive.exists():
        print(f"Downloading {url}", flush=True)
        return {"url": url, "sha256": fetch(url, archive, size, digest, unpacked=1.0)}
    got, trouble = verify(archive, size, digest)
    if trouble:
        raise DownloadError(
            f"{archive} is not the expected archive: {trouble}\nMove it away and run this again."
        )
    return {"url": "", "sha256": got}


def _why(coco: Path, name: str, folder: Path) -> str:
    """What `folder` lacks of what the archive `name` holds."""
    return _why_annotations(folder) if name == "annotations" else _why_images(coco, folder)


def _why_annotations(folder: Path) -> str:
    for file in ARCHIVES["annotations"].only:
        try:
            json.loads((folder / file).read_bytes())["images"]
        except FileNotFoundError:
            return f"{folder / file} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{folder / file} is no annotation file: {error}"
    return ""


def _why_images(coco: Path, folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is missing"
    sizes = _sizes(coco, folder)
    missing = sorted(name for name, size in sizes.items() if not size)
    if missing:
        return f"{folder} lacks {len(missing):,} of {len(sizes):,} images, such as {missing[0]}"
    total, known = sum(sizes.values()), read_record(coco / _RECORD).get("val2014", {}).get("bytes")
    if known not in (None, total):
        return f"{folder} holds {total:,} bytes of images, and {known:,} were unpacked"
    return ""


def _sizes(coco: Path, folder: Path) -> dict[str, int]:
    """The size in bytes of each image that the annotations list; 0 if it is not in `folder`."""
    annotations = coco / "annotations" / "instances_val2014.json"
    listed = json.loads(annotations.read_bytes())["images"]
    with os.scandir(folder) as entries:
        there = {entry.name: entry.stat().st_size for entry in entries}
    return {image["file_name"]: there.get(image["file_name"], 0) for image in listed}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download COCO val2014 (40,504 images, 6.6 GB; annotations, 0.25 GB; 14 GB on "
        "disk with the zip files). A run that was cut goes on where it stopped; what is complete "
        "is left as it is.",
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
            dest=f"{name}_url",
            metavar="URL",
            help=f"another source of {name}.zip (default: {archive.url})",
        )
        parser.add_argument(
            f"--{archive.option}_sha256",
            dest=f"{name}_sha256",
            metavar="HEX",
            help=f"sha256 that {name}.zip must have, instead of the known size and md5 "
            f"({archive.size:,} bytes, {archive.md5})",
        )
    parser.add_argument(
        "--remove_zip", action="store_true", help="remove the zip files once they are unpacked"
    )
    options = vars(parser.parse_args(arguments))
    urls = {name: url for name in ARCHIVES if (url := options[f"{name}_url"])}
    sha256s = {name: sha for name in ARCHIVES if (sha := options[f"{name}_sha256"])}
    coco = options["download_path"]
    return run(lambda: download(coco, urls, sha256s, options["remove_zip"]))


if __name__ == "__main__":
    sys.exit(main())
