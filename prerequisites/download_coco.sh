#!/usr/bin/env bash
# Download COCO val2014, from any folder: see download_coco.py --help. Any Python from 3.11 on will do.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
for python in python python3 python3.{11..19} "$here"/../.nox/{llava,qwen}/bin/python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" "$here/download_coco.py" "$@"
    fi
done
echo "download_coco.sh: no Python 3.11 or newer on the PATH; activate an environment that has it." >&2
exit 1
