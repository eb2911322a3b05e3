"""Unpacking a zip archive: inside its folder only, every checksum tested, all of it or nothing."""

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fetching import DownloadError, need_space, progress


@contextmanager
def unpacked(archive: Path, top: str, folder: Path, only: Collection[str] = ()) -> Iterator[Path]:
    """What the folder `top` of a zip archive holds, in a folder beside `folder`.

    The caller looks at it and renames it to `folder`; what is left on leaving is removed. `only`:
    the paths in `top` that are wanted, all of which must be there (default: all that there are).
    Raises `DownloadError` where the archive is damaged, or a member climbs out of it or is a link.
    """
    aside = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = _members(zip_file, archive, top, only)
            total = sum(member.file_size for member in members.values())
            need_space(archive.parent, total)
            with progress(f"unpacking {archive.name}", total) as advance:
                for name, member in members.items():
                    target = aside / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Read to its end, a member's checksum is compared.
                    with zip_file.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                    advance(member.file_size)
        yield aside
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(
            f"{archive} is damaged: {error}. Remove it and run this again: rm {archive}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _members(
    zip_file: zipfile.ZipFile, archive: Path, top: str, only: Collection[str]
) -> dict[str, zipfile.ZipInfo]:
    """The wanted files by their path in `top`; nothing is taken from an archive with a bad path."""
    members = {}
    for member in zip_file.infolist():
        # Zip names use slashes; ZipInfo has cut them at a zero byte.
        parts = member.filename.split("/")
        climbs = ".." in parts or parts[0] == "" or re.search(r"\\|^\w:", member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if climbs or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(
                f"{archive} is unsafe: its member {member.filename!r} is a link or leads out of "
                "the archive. Nothing was unpacked; use another source."
            )
        name = "/".join(parts[1:])
        if parts[0] == top and not member.is_dir() and (name in only or not only):
            members[name] = member
    lacking = sorted(set(only) - set(members)) or ([] if members else ["any file"])
    if lacking:
        raise DownloadError(
            f"{archive} lacks {', '.join(f'{top}/{name}' for name in lacking)}: it is another "
            "archive. Move it away and run this again."
        )
    return members
