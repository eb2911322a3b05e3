# Caption and score, with the settings that a family's eval_chair_*.sh has made: it sources this.
# `program` captions, `results` is the folder for results; the rest are that script's variables.
[[ "${1:-}" != --help ]] || exec python "$program" --help

# The folder of captions.jsonl and chair.json: one for each setting.
case "$USE_REVISIT" in
    [Tt]rue) decoder="revisit-${EARLY_EXIT_LAYERS//[ ,]/-}-$RELATIVE_TOP-$REVISIT_DIVERGENCE" ;;
    *) decoder=plain ;;
esac
OUTPUT_PATH="${OUTPUT_PATH:-$results/$decoder-seed$SEED}"
case "$OUTPUT_PATH" in
    *.json | *.jsonl) captions="$OUTPUT_PATH" ;;
    *) captions="$OUTPUT_PATH/captions.jsonl" ;;
esac

# Where prerequisites/download_nltk.py puts NLTK's data; NLTK looks in its own places too.
export NLTK_DATA="${NLTK_DATA:-$root/prerequisites/nltk_data}"

# Scoring comes last: what it needs is looked for first.
python -c 'import sys; from revisit.evaluation.lemmas import LEMMATIZERS; LEMMATIZERS[sys.argv[1]]()' \
    "$LEMMATIZER"

python "$program" \
    --model_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --anno_path "$ANNO_PATH" \
    --output_path "$captions" \
    --use_revisit "$USE_REVISIT" \
    --early_exit_layers "$EARLY_EXIT_LAYERS" \
    --relative_top "$RELATIVE_TOP" \
    --revisit_divergence "$REVISIT_DIVERGENCE" \
    --do_sample "$DO_SAMPLE" \
    --max_new_tokens "$MAX_NEW_TOKENS" \
    --seed "$SEED" \
    --num_eval_samples "$NUM_EVAL_SAMPLES" \
    --batch_size "$BATCH_SIZE" \
    ${DEVICE:+--device "$DEVICE"} \
    ${DTYPE:+--dtype "$DTYPE"} \
    "$@"

revisit-chair \
    --cap_file "$captions" \
    --coco_path "$ANNO_PATH" \
    --save_path "$(dirname -- "$captions")/chair.json" \
    --lemmatizer "$LEMMATIZER"
