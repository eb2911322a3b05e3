"""Download POPE's questions about COCO val2014: three files, at a pinned commit."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fetching import DownloadError, fetch, lock, mismatch, run

POPE = Path(__file__).resolve().parent / "pope"
"""Where the evaluation looks."""

SOURCE = "https://raw.githubusercontent.com/RUCAIBox/POPE/3df3ba1b/output/coco"

SHA256S = {
    "coco_pope_random.json": "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
    "coco_pope_popular.json": "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753",
    "coco_pope_adversarial.json": (
        "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8"
    ),
}
"""The files: JSON Lines of 3,000 questions each."""


def why_incomplete(pope: Path) -> str:
    """What `pope` lacks of the question files as they were published; "" if nothing."""
    for name, sha256 in SHA256S.items():
        if not (pope / name).is_file():
            return f"{pope / name} is missing"
        if mismatch(pope / name, digest=f"sha256:{sha256}"):
            return f"{pope / name} is not as published"
    return ""


def download(pope: Path, source_url: str) -> None:
    """Fill `pope` with the question files. Raises `DownloadError`; a file that is there and not as
    published is left alone."""
    with lock(pope / ".download.lock"):
        for name, sha256 in SHA256S.items():
            if not (pope / name).exists():
                url = f"{source_url.rstrip('/')}/{name}"
                fetch(url, pope / name, digest=f"sha256:{sha256}")
        if why := why_incomplete(pope):
            raise DownloadError(f"{why}, and not touched: move it away and run this again.")
    print(f"POPE's questions are complete: {pope}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download POPE's questions about COCO val2014 (3,000 each: random, popular, "
        "adversarial), each compared with its known sha256. What is complete is left as it is.",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=POPE,
        help="the folder that gets the three files (default: %(default)s)",
    )
    parser.add_argument(
        "--source_url",
        default=SOURCE,
        metavar="URL",
        help=f"another folder that holds {', '.join(SHA256S)} (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    return run(lambda: download(options.download_path, options.source_url))


if __name__ == "__main__":
    sys.exit(main())
