#!/bin/bash
# Fuzzes every target, coverage-guided, adds what ran to the record (fuzz/record.tsv), and prints its rows.
#
#   fuzz/campaign.sh [TARGET…]      all targets without a name
#
# RUNS (default 10000000) and SECONDS_EACH (7200) end a target, whichever comes first; WORK (target/campaign of this
# folder's workspace) keeps corpora and what was found. One process works at a time. A panic, an execution of more than
# TIMEOUT seconds (1) and 1 GiB of memory are findings, kept in WORK/findings/TARGET; the target goes on behind them. An
# execution that took more than a second within a larger TIMEOUT is kept as slow-unit-*, for a look on a quiet machine.
# PROGRAMS: a folder of targets that were built before; RECORD: another record.
# Needs nothing but the compiler of the workspace: the flags below are what cargo-fuzz passes, less the sanitizer.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
runs=${RUNS:-10000000} seconds=${SECONDS_EACH:-7200} work=${WORK:-$here/target/campaign} timeout=${TIMEOUT:-1}
record=${RECORD:-$here/record.tsv}
cd "$here/.." || exit 1
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' "$here/Cargo.toml" | grep -v '^qlora-fuzz$')
fi
mkdir -p "$work"
programs=${PROGRAMS:-}
if [ -z "$programs" ]; then
    # Without AddressSanitizer: the parsers are safe code, and a third of the executions would be left. A target is
    # named, so that build scripts and macros are not instrumented.
    host=$(rustc -vV | sed -n 's/^host: //p')
    coverage="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
    RUSTFLAGS=$(echo $coverage) cargo build --manifest-path "$here/Cargo.toml" --target-dir "$here/target" --release \
        --target "$host" --locked --bins 2> "$work/build" || { tail -20 "$work/build"; exit 1; }
    programs=$here/target/$host/release
fi
# Files of one execution lie in memory; one thread reads rows.
export TMPDIR=${TMPDIR:-/dev/shm} RAYON_NUM_THREADS=1

dictionary() {
    case $1 in
        template) echo template ;;
        settings) echo yaml ;;
        safetensors|rows|compressed|csv|data_folder|tokenizer_json|tokenizer_config|side_files|index|adapter|quant_state|model_config|generation_config|run_record|checkpoint) echo json ;;
    esac
}

# Adds a target's executions, seconds and findings to its row; edges are those of now.
note() {
    [ -f "$record" ] || printf 'target\texecutions\tseconds\tedges\tfindings\n' > "$record"
    awk -F'\t' -v OFS='\t' -v target="$1" -v runs="$2" -v seconds="$3" -v edges="$4" -v findings="$5" '
        $1 == target { $2 += runs; $3 += seconds; $4 = edges; $5 += findings; seen = 1 }
        { print }
        END { if (!seen) print target, runs, seconds, edges, findings }' "$record" > "$record.next"
    mv "$record.next" "$record"
    grep -P "^$1\t" "$record"
}

status=0
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target findings=$work/findings/$target log=$work/$target.log
    mkdir -p "$corpus" "$findings"
    words=$(dictionary "$target")
    begun=$SECONDS executed=0 found=0 edges=0
    while [ $((SECONDS - begun)) -lt "$seconds" ] && [ "$executed" -lt "$runs" ] && [ "$found" -lt 20 ]; do
        "$programs/$target" "$corpus" "$here/seeds/$target" -runs=$((runs - executed)) \
            -max_total_time=$((seconds - SECONDS + begun)) -timeout="$timeout" -report_slow_units=1 -rss_limit_mb=1024 \
            -malloc_limit_mb=1024 -max_len="${MAX_LEN:-65536}" -print_final_stats=1 \
            -artifact_prefix="$findings/" ${words:+-dict="$here/dictionaries/$words"} > "$log" 2>&1
        ended=$?
        edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
        now=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
        [ -n "$now" ] || now=$(grep -oE '^#[0-9]+' "$log" | tail -1 | tr -d '#')
        executed=$((executed + ${now:-0}))
        [ $ended = 0 ] && break
        found=$((found + 1))
        cp "$log" "$work/$target.finding.$found.log"
    done
    [ "$found" = 0 ] || status=1
    note "$target" "$executed" $((SECONDS - begun)) "${edges:-0}" "$found"
done
exit $status
