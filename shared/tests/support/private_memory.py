"""The memory of this process alone, on Linux."""

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


def private_bytes() -> int:
    """In memory or in swap; pages of libraries are left out, which come and go with the load."""
    kilobytes = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+)", STATUS.read_text())
    return 1024 * sum(map(int, kilobytes))
