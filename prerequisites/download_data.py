"""Download the data sets that datasets.toml lists. Needs curl, and any Python from 3.11 on."""

import argparse
import json
import os
import shutil
import stat
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fetching import HERE, TABLE, DownloadError, fetch, lock, mismatch, need_space, run

DATA: dict[str, dict[str, Any]] = TABLE["data"]


def folder_of(name: str) -> Path:
    """Where the evaluation looks for a data set."""
    return HERE / str(DATA[name].get("folder", name))


def why_incomplete(name: str, folder: Path) -> str:
    """What `folder` lacks of the data set, by its own lists and hashes; "" if nothing."""
    data = DATA[name]
    for archive in data.get("archives", {}):
        if why := _why_not_whole(folder, archive, data["archives"][archive].get("only", [])):
            return why
    for file, sha256 in data.get("files", {}).items():
        path = folder / Path(file).name
        if not path.is_file():
            return f"{path} is missing"
        if mismatch(path, digest=f"sha256:{sha256}"):
            return f"{path} is not as published"
    missing = _missing_packages(data, folder)
    return f"{folder} lacks {', '.join(missing)}" if missing else ""


def download(name: str, folder: Path, options: dict[str, Any]) -> None:
    """Fill `folder` with the data set; each part appears when it is whole.

    `options`: of the command's flags. Raises `DownloadError`; what is there and not as it should be
    is left alone.
    """
    data = DATA[name]
    with lock(folder / ".download.lock"):
        for part, archive in data.get("archives", {}).items():
            url, sha256 = (options.get(f"{archive['option']}_{of}") for of in ("url", "sha256"))
            known = {"digest": f"md5:{archive['md5']}", "size": archive["size"]}
            chosen = {"digest": f"sha256:{sha256}"} if sha256 else known
            _fill(folder, part, url or archive["url"], archive.get("only", []), **chosen)
            if options.get("remove_zip"):
                (folder / f"{part}.zip").unlink(missing_ok=True)
        for file, sha256 in data.get("files", {}).items():
            path, server = folder / Path(file).name, options.get("source_url")
            url = f"{server.rstrip('/')}/{path.name}" if server else f"{data['server']}/{file}"
            if not path.exists():
                fetch(url, path, digest=f"sha256:{sha256}")
        if missing := _missing_packages(data, folder):
            _fetch_packages(folder, missing, options["index_url"])
        if why := why_incomplete(name, folder):
            raise DownloadError(f"{why}, and not touched: move it away and run this again.")
    print(f"{name} is complete: {folder}")


def _fill(
    folder: Path, part: str, url: str, only: Sequence[str], digest: str, size: int | None = None
) -> None:
    """Download an archive and unpack its folder `part`, or the files `only` of it."""
    target, archive = folder / part, folder / f"{part}.zip"
    if not (why := _why_not_whole(folder, part, only)):
        return
    if target.exists():
        raise DownloadError(
            f"{why}. {target} is not touched: move it away, and run this again for a new one."
        )
    if not archive.exists():
        fetch(url, archive, size, digest, room=size or 0)
    elif trouble := mismatch(archive, size, digest):
        raise DownloadError(f"{archive} is not the expected archive: {trouble}\nMove it away.")
    aside = folder / f".{part}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    try:
        _unpack(archive, aside, part, only)
        if why := _why_not_whole(folder, part, only, aside / part):
            raise DownloadError(f"{archive} does not hold what it should: {why}. Remove it.")
        (aside / part).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack(archive: Path, aside: Path, top: str, only: Sequence[str]) -> None:
    """Unpack into `aside` what the folder `top` of the archive holds, or what of it is in `only`.

    Every checksum is compared. Raises `DownloadError` where the archive is damaged, or a member is
    a link or leads out of `aside`; then nothing of it is unpacked.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = zip_file.infolist()
            for member in members:
                inside = (aside / member.filename).resolve().is_relative_to(aside.resolve())
                if not inside or stat.S_ISLNK(member.external_attr >> 16):
                    raise DownloadError(
                        f"{archive} is unsafe: its member {member.filename!r} is a link or leads "
                        "out of the archive. Nothing was unpacked; use another source."
                    )
            wanted = {f"{top}/{name}" for name in only}
            members = [
                member
                for member in members
                if (member.filename in wanted if only else member.filename.startswith(f"{top}/"))
            ]
            # No more is written of a member than the size that it announces.
            need_space(archive.parent, sum(member.file_size for member in members))
            print(f"Unpacking {archive.name}: {len(members):,} files ...", flush=True)
            zip_file.extractall(aside, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive} is damaged: {error}. Remove it, run this again.") from error


def _why_not_whole(folder: Path, part: str, only: Sequence[str], where: Path | None = None) -> str:
    """What an archive's folder lacks: the files `only`, or the images that COCO's annotations in
    `folder` list. `where`: the folder, if not in its place."""
    target = where or folder / part
    if not target.is_dir():
        return f"{target} is missing"
    for file in only:
        try:
            json.loads((target / file).read_bytes())["images"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{target / file} is missing, or no annotation file: {error!r}"
    if only:
        return ""
    listed = json.loads((folder / "annotations" / "instances_val2014.json").read_bytes())["images"]
    with os.scandir(target) as entries:
        there = {entry.name for entry in entries if entry.stat().st_size}
    missing = sorted({image["file_name"] for image in listed} - there)
    if not missing:
        return ""
    return f"{target} lacks {len(missing):,} of {len(listed):,} images, such as {missing[0]}"


def _missing_packages(data: dict[str, Any], folder: Path) -> dict[str, str]:
    """NLTK's packages that are neither there as an archive nor unpacked -> their folders."""
    return {
        name: kind
        for name, kind in data.get("packages", {}).items()
        if not (folder / kind / f"{name}.zip").is_file() and not (folder / kind / name).is_dir()
    }


def _fetch_packages(folder: Path, packages: dict[str, str], index_url: str) -> None:
    """Download packages of NLTK, each verified against the index."""
    index = folder / ".index.xml"
    fetch(index_url, index)
    try:
        entries = {entry.get("id"): entry.attrib for entry in ElementTree.parse(index).iter()}
        found = {
            name: (entries[name]["url"], int(entries[name]["size"]), _digest(entries[name]))
            for name in packages
        }
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise DownloadError(
            f"{index_url} is not NLTK's index, which says where each package is, its size "
            f"and its checksum ({error!r}). Check --index_url."
        ) from error
    for name, (url, size, digest) in found.items():
        fetch(url, folder / packages[name] / f"{name}.zip", size, digest)
    index.unlink()


def _digest(entry: dict[str, str]) -> str:
    sha256 = entry.get("sha256_checksum")
    return f"sha256:{sha256}" if sha256 else f"md5:{entry['checksum']}"


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """The command for one data set. Returns its exit status."""
    data = DATA[name]
    parser = argparse.ArgumentParser(
        description=f"Download {data['title']}. What is complete is left as it is, what was cut "
        "goes on where it stopped, and nothing appears before its hash was compared.",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=folder_of(name),
        help="the folder that is filled (default: where the evaluation looks, %(default)s)",
    )
    for part, archive in data.get("archives", {}).items():
        option, known = archive["option"], f"{archive['size']:,} bytes, {archive['md5']}"
        parser.add_argument(
            f"--{option}_url",
            metavar="URL",
            help=f"another source of {part}.zip (default: {archive['url']})",
        )
        parser.add_argument(
            f"--{option}_sha256",
            metavar="HEX",
            help=f"sha256 that {part}.zip must have, instead of the known size and md5 ({known})",
        )
    if "archives" in data:
        parser.add_argument("--remove_zip", action="store_true", help="remove unpacked archives")
    if "files" in data:
        where = f"another address that holds the files, side by side (default: {data['server']})"
        parser.add_argument("--source_url", metavar="URL", help=where)
    if "index" in data:
        parser.add_argument(
            "--index_url",
            default=data["index"],
            metavar="URL",
            help="another index (default: %(default)s)",
        )
    options = vars(parser.parse_args(arguments))
    return run(lambda: download(name, options["download_path"], options))


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in DATA:
        sys.exit(f"usage: download_data.py {{{','.join(DATA)}}} [--help] [options]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
