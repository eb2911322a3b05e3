"""Ask LLaVA-1.5 POPE's questions, by ReVisiT or another decoder."""

from pathlib import Path
from runpy import run_path

# These scripts are no package: the one that captions has what loads the model and asks it.
CHAIR = run_path(str(Path(__file__).with_name("chair_eval_llava.py")))

if __name__ == "__main__":
    from revisit.evaluation.polling import main

    raise SystemExit(
        main(CHAIR["LlavaCaptioner"], "Ask LLaVA-1.5 POPE's questions.", **CHAIR["FAMILY"])
    )
