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
    """What `folder` lacks of the data set, by its lists and hashes; "" if nothing."""
    data = DATA[name]
    for part, archive in data.get("archives", {}).items():
        if lack := _lack_of_archive(folder, folder / part, archive):
            return lack
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

    `options` are the command's flags. Raises `DownloadError`; a file or folder that is there and
    wrong is left alone.
    """
    data = DATA[name]
    with lock(folder / ".download.lock"):
        for part, archive in data.get("archives", {}).items():
            url, sha256 = (options.get(f"{archive['option']}_{key}") for key in ("url", "sha256"))
            source = archive | {"url": url or archive["url"], "digest": f"md5:{archive['md5']}"}
            if sha256:
                source |= {"digest": f"sha256:{sha256}", "size": None}
            _fill(folder, part, source)
            if options.get("remove_zip"):
                (folder / f"{part}.zip").unlink(missing_ok=True)
        server = options.get("source_url")
        for file, sha256 in data.get("files", {}).items():
            path = folder / Path(file).name
            url = f"{server.rstrip('/')}/{path.name}" if server else f"{data['server']}/{file}"
            if not path.exists():
                fetch(url, path, digest=f"sha256:{sha256}")
        if missing := _missing_packages(data, folder):
            _fetch_packages(folder, missing, options["index_url"])
        if lack := why_incomplete(name, folder):
            raise DownloadError(f"{lack}, and not touched: move it away and run this again.")
    print(f"{name} is complete: {folder}")


def _fill(folder: Path, part: str, source: dict[str, Any]) -> None:
    """Download the archive of `source` and unpack from it the folder `part`."""
    target, archive = folder / part, folder / f"{part}.zip"
    size, digest = source["size"], source["digest"]
    if not (lack := _lack_of_archive(folder, target, source)):
        return
    if target.exists():
        raise DownloadError(
            f"{lack}. {target} is not touched: move it away, and run this again for a new one."
        )
    if not archive.exists():
        fetch(source["url"], archive, size, digest, room=size or 0)
    elif difference := mismatch(archive, size, digest):
        raise DownloadError(f"{archive} is not the expected archive: {difference}\nMove it away.")
    unpacking = folder / f".{part}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)  # a killed run may have left it
    try:
        _unpack(archive, unpacking, part, source.get("only", []))
        if lack := _lack_of_archive(folder, unpacking / part, source):
            raise DownloadError(f"{archive} does not hold what it should: {lack}. Remove it.")
        (unpacking / part).rename(target)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _unpack(archive: Path, target: Path, top: str, only: Sequence[str]) -> None:
    """Unpack into `target` the archive's folder `top`, or only the files `only` of that folder.

    Every checksum is compared. Raises `DownloadError` where the archive is damaged, or a member is
    a link or leads out of `target`; then nothing of it is unpacked.
    """
    wanted = tuple(f"{top}/{name}" for name in only)
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = zip_file.infolist()
            for member in members:
                inside = (target / member.filename).resolve().is_relative_to(target.resolve())
                if not inside or stat.S_ISLNK(member.external_attr >> 16):
                    raise DownloadError(
                        f"{archive} is unsafe: its member {member.filename!r} is a link or leads "
                        "out of the archive. Nothing was unpacked; use another source."
                    )
            if only:
                members = [member for member in members if member.filename in wanted]
            else:
                members = [member for member in members if member.filename.startswith(f"{top}/")]
            # A member is never unpacked to more bytes than the size that it announces.
            need_space(archive.parent, sum(member.file_size for member in members))
            print(f"Unpacking {archive.name}: {len(members):,} files ...", flush=True)
            zip_file.extractall(target, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive} is damaged: {error}. Remove it, run this again.") from error


def _lack_of_archive(folder: Path, target: Path, archive: dict[str, Any]) -> str:
    """What `target`, an archive's folder, lacks; "" if nothing.

    It has to hold the archive's annotation files `only`, or, if it has no such list, the images
    that COCO's annotations in `folder` list.
    """
    if not target.is_dir():
        return f"{target} is missing"
    for file in archive.get("only", []):
        try:
            json.loads((target / file).read_bytes())["images"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{target / file} is missing, or no annotation file: {error!r}"
    if "only" in archive:
        return ""
    listed = json.loads((folder / "annotations" / "instances_val2014.json").read_bytes())["images"]
    with os.scandir(target) as entries:
        present = {entry.name for entry in entries if entry.stat().st_size}
    missing = sorted({image["file_name"] for image in listed} - present)
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
    """Download packages of NLTK (name -> folder), each verified by the index."""
    index = folder / ".index.xml"
    fetch(index_url, index)
    try:
        entries = {entry.get("id"): entry.attrib for entry in ElementTree.parse(index).iter()}
        sources = {
            name: (entries[name]["url"], int(entries[name]["size"]), _digest(entries[name]))
            for name in packages
        }
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise DownloadError(
            f"{index_url} is not NLTK's index, which says where each package is, its size "
            f"and its checksum ({error!r}). Check --index_url."
        ) from error
    for name, (url, size, digest) in sources.items():
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
    flag = parser.add_argument
    text = "the folder that is filled (default: where the evaluation looks, %(default)s)"
    flag("--download_path", type=Path, default=folder_of(name), help=text)
    for part, archive in data.get("archives", {}).items():
        text = f"another source of {part}.zip (default: {archive['url']})"
        flag(f"--{archive['option']}_url", metavar="URL", help=text)
        known = f"{archive['size']:,} bytes, {archive['md5']}"
        text = f"sha256 that {part}.zip must have, instead of the known size and md5 ({known})"
        flag(f"--{archive['option']}_sha256", metavar="HEX", help=text)
    if "archives" in data:
        flag("--remove_zip", action="store_true", help="remove unpacked archives")
    if "files" in data:
        text = f"another address that holds the files, side by side (default: {data['server']})"
        flag("--source_url", metavar="URL", help=text)
    if "index" in data:
        text = "another index (default: %(default)s)"
        flag("--index_url", default=data["index"], metavar="URL", help=text)
    options = vars(parser.parse_args(arguments))
    return run(lambda: download(name, options["download_path"], options))


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in DATA:
        sys.exit(f"usage: download_data.py {{{','.join(DATA)}}} [--help] [options]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
