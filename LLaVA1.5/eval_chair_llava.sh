#!/usr/bin/env bash
# Caption COCO val2014 with LLaVA-1.5 and score the captions by CHAIR.
#
# Run it inside the activated environment, from any folder. Settings come from the environment:
#     USE_REVISIT=false OUTPUT_PATH=results/greedy bash LLaVA1.5/eval_chair_llava.sh
# or from flags of eval/chair_eval_llava.py (see --help), which count before the environment:
#     bash LLaVA1.5/eval_chair_llava.sh --use_revisit false --output_path results/greedy
# Without an output path the results go to a folder named by the settings, in results/llava.
# A run that was cut short continues when the same command is given again.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname -- "$here")"

# shared/eval.sh names the other settings.
MODEL_PATH="${MODEL_PATH:-$root/prerequisites/llava-v1.5-7b}"
DATA_PATH="${DATA_PATH:-$root/prerequisites/coco/val2014}"
ANNO_PATH="${ANNO_PATH:-$root/prerequisites/coco/annotations}"
USE_REVISIT="${USE_REVISIT:-true}"
EARLY_EXIT_LAYERS="${EARLY_EXIT_LAYERS:-last}"
# nltk is the published scoring and needs NLTK's data; noun needs none.
LEMMATIZER="${LEMMATIZER:-nltk}"

benchmark=chair session=llava program="$here/eval/chair_eval_llava.py"
source "$root/shared/eval.sh"
