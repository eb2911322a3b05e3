"""Download COCO val2014, as datasets.toml lists it."""

import sys

from download_data import main

if __name__ == "__main__":
    sys.exit(main("coco"))
