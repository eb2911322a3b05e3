"""Download the data of NLTK that `--lemmatizer nltk`, the published scoring, reads."""

import argparse
import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from fetching import DownloadError, fetch, lock, read_record, run, write_record
from unpacking import unpacked

NLTK_DATA = Path(__file__).resolve().parent / "nltk_data"
"""Where the evaluation scripts tell NLTK to look."""

INDEX = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/index.xml"
"""NLTK's own list of its packages: the address, size and checksum of each."""

PACKAGES = {
    "wordnet": "corpora",
    "punkt_tab": "tokenizers",
    "averaged_perceptron_tagger_eng": "taggers",
}
"""The package -> the folder where NLTK looks for it."""

_RECORD = "downloads.json"


def why_incomplete(nltk_data: Path) -> str:
    """What `nltk_data` lacks, by the record of this downloader; "" if nothing."""
    missing = [name for name in PACKAGES if not _is_whole(nltk_data, name)]
    return f"{nltk_data} lacks {', '.join(missing)}" if missing else ""


def download(nltk_data: Path, index_url: str) -> None:
    """Fill `nltk_data` with `PACKAGES`, verified against the index. Raises `DownloadError`."""
    nltk_data.mkdir(parents=True, exist_ok=True)
    with lock(nltk_data / ".download.lock"):
        missing = [name for name in PACKAGES if not _is_whole(nltk_data, name)]
        entries = _read_index(nltk_data, index_url) if missing else {}
        for name in missing:
            _install(nltk_data, name, entries.get(name, {}), index_url)
    print(f"NLTK's data is complete: {nltk_data}")


def _read_index(nltk_data: Path, url: str) -> dict[str, dict[str, str]]:
    """The index, by package; its attributes as they are."""
    with tempfile.TemporaryDirectory(dir=nltk_data) as folder:
        index = Path(folder, "index.xml")
        fetch(url, index)
        try:
            return {
                entry.attrib.get("id", ""): dict(entry.attrib)
                for entry in ElementTree.parse(index).iter("package")
            }
        except ElementTree.ParseError as error:
            raise DownloadError(
                f"{url} is not NLTK's index: {error}. Check --index_url."
            ) from error


def _install(nltk_data: Path, name: str, entry: dict[str, str], index_url: str) -> None:
    folder = nltk_data / PACKAGES[name] / name
    if folder.exists():
        raise DownloadError(
            f"{folder} is there, but not as this downloader makes it. Move it away and run this "
            f"again: mv {folder} {folder}.old"
        )
    try:
        url, size = entry["url"], int(entry["size"])
        sha256 = entry.get("sha256_checksum")
        digest = f"sha256:{sha256}" if sha256 else f"md5:{entry['checksum']}"
    except (KeyError, ValueError) as error:
        raise DownloadError(
            f"{index_url} does not say where {name} is, its size and its checksum: it is not "
            "NLTK's index. Check --index_url."
        ) from error
    archive = nltk_data / f"{name}.zip"
    print(f"Downloading {url}", flush=True)
    source = {"url": url, "sha256": fetch(url, archive, size, digest)}
    folder.parent.mkdir(exist_ok=True)
    with unpacked(archive, name, folder) as aside:
        record = read_record(nltk_data / _RECORD)
        write_record(nltk_data / _RECORD, record | {name: source | _contents(aside)})
        aside.rename(folder)
    archive.unlink()


def _is_whole(nltk_data: Path, name: str) -> bool:
    known = read_record(nltk_data / _RECORD).get(name, {})
    contents = _contents(nltk_data / PACKAGES[name] / name)
    return bool(known) and all(known.get(key) == value for key, value in contents.items())


def _contents(folder: Path) -> dict[str, object]:
    files = [Path(path, name) for path, _, names in os.walk(folder) for name in names]
    sizes = [file.stat().st_size for file in files]
    return {"files": len(sizes), "bytes": sum(sizes)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download the data of NLTK that the published scoring needs (about 60 MB): "
        f"{', '.join(PACKAGES)}. What is complete is left as it is.",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=NLTK_DATA,
        help="where it goes (default: where the evaluation scripts look, %(default)s); NLTK looks "
        "elsewhere only if NLTK_DATA names it",
    )
    parser.add_argument(
        "--index_url",
        default=INDEX,
        metavar="URL",
        help="another index, which names its own files (default: NLTK's, %(default)s)",
    )
    options = parser.parse_args(arguments)
    return run(lambda: download(options.download_path, options.index_url))


if __name__ == "__main__":
    sys.exit(main())
