# Ask and score, with the settings that a family's eval_pope_*.sh has made: it sources this.
# `program` does both; the rest are that script's variables. Of a flag given twice the last counts.

launcher="${LAUNCHER:-python}"
if ! command -v "${launcher%% *}" > /dev/null; then
    echo "${launcher%% *} is not here: build this program's environment by \`nox -s $session" \
        "--install-only\`, and activate it by \`source $root/.nox/$session/bin/activate\`" >&2
    exit 1
fi

# LAUNCHER may hold words, such as "torchrun --nproc_per_node 2"; SPLITS holds some.
# shellcheck disable=SC2086
exec $launcher "$program" \
    --model_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --pope_path "$POPE_PATH" \
    --splits ${SPLITS//,/ } \
    --one_word "$ONE_WORD" \
    ${OUTPUT_PATH:+--output_path "$OUTPUT_PATH"} \
    --use_revisit "$USE_REVISIT" \
    ${DECODER:+--decoder "$DECODER"} \
    --early_exit_layers "$EARLY_EXIT_LAYERS" \
    --relative_top "$RELATIVE_TOP" \
    --revisit_divergence "$REVISIT_DIVERGENCE" \
    --do_sample "$DO_SAMPLE" \
    --max_new_tokens "$MAX_NEW_TOKENS" \
    --seed "$SEED" \
    --batch_size "$BATCH_SIZE" \
    ${DEVICE:+--device "$DEVICE"} \
    ${DTYPE:+--dtype "$DTYPE"} \
    "$@"
