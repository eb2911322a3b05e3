"""Download POPE's questions, as datasets.toml lists them."""

import sys

from download_data import main

if __name__ == "__main__":
    sys.exit(main("pope"))
