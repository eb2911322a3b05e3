"""Download the data of NLTK that `--lemmatizer nltk`, the published scoring, reads."""

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from fetching import DownloadError, fetch, lock, run

NLTK_DATA = Path(__file__).resolve().parent / "nltk_data"
"""Where the evaluation scripts tell NLTK to look."""

INDEX = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/index.xml"
"""NLTK's own list of its packages: the address, size and checksum of each."""

PACKAGES = {
    "wordnet": "corpora",
    "punkt_tab": "tokenizers",
    "averaged_perceptron_tagger_eng": "taggers",
}
"""The package -> the folder where NLTK looks for it. NLTK reads the archives as they are."""


def why_incomplete(nltk_data: Path) -> str:
    """What `nltk_data` lacks, as an archive or unpacked; "" if nothing."""
    missing = _missing(nltk_data)
    return f"{nltk_data} lacks {', '.join(missing)}" if missing else ""


def _missing(nltk_data: Path) -> list[str]:
    return [
        name
        for name, folder in PACKAGES.items()
        if not (nltk_data / folder / f"{name}.zip").is_file()
        and not (nltk_data / folder / name).is_dir()
    ]


def download(nltk_data: Path, index_url: str) -> None:
    """Fill `nltk_data` with `PACKAGES`, verified against the index. Raises `DownloadError`."""
    with lock(nltk_data / ".download.lock"):
        if missing := _missing(nltk_data):
            index = nltk_data / ".index.xml"
            fetch(index_url, index)
            try:
                entries = {entry.get("id"): entry for entry in ElementTree.parse(index).iter()}
                files = {
                    name: (entries[name].attrib["url"], int(entries[name].attrib["size"]))
                    for name in missing
                }
                sums = {name: _digest(entries[name].attrib) for name in missing}
            except (ElementTree.ParseError, KeyError, ValueError) as error:
                raise DownloadError(
                    f"{index_url} is not NLTK's index, which says where each package is, its size "
                    f"and its checksum ({error!r}). Check --index_url."
                ) from error
            for name, (url, size) in files.items():
                fetch(url, nltk_data / PACKAGES[name] / f"{name}.zip", size, sums[name])
            index.unlink()
    print(f"NLTK's data is complete: {nltk_data}")


def _digest(entry: dict[str, str]) -> str:
    sha256 = entry.get("sha256_checksum")
    return f"sha256:{sha256}" if sha256 else f"md5:{entry['checksum']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download the data of NLTK that the published scoring needs (about 20 MB): "
        f"{', '.join(PACKAGES)}. What is there is left as it is.",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=NLTK_DATA,
        help="where it goes (default: where the evaluation scripts look, %(default)s); NLTK looks "
        "elsewhere only if NLTK_DATA names it",
    )
    parser.add_argument(
        "--index_url", default=INDEX, metavar="URL", help="another index (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return run(lambda: download(options.download_path, options.index_url))


if __name__ == "__main__":
    sys.exit(main())
