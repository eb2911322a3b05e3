"""Ask Qwen2.5-VL POPE's questions, by ReVisiT or another decoder."""

import sys
from pathlib import Path
from runpy import run_path

# These scripts are no package: the one that captions has what loads the model and asks it.
CHAIR = run_path(str(Path(__file__).with_name("chair_eval_qwenvl.py")))

if __name__ == "__main__":
    raise SystemExit(CHAIR["main"](["pope", *sys.argv[1:]], CHAIR["FAMILY"], Path(__file__).name))
