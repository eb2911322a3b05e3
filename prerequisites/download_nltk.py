"""Download NLTK's data, as datasets.toml lists it."""

import sys

from download_data import main

if __name__ == "__main__":
    sys.exit(main("nltk"))
