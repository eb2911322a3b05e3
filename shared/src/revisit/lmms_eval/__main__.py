"""`python -m revisit.lmms_eval`."""

import sys

from revisit.lmms_eval.launch import main

if __name__ == "__main__":
    sys.exit(main())
