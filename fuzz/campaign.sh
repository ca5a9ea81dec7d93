#!/bin/bash
# Fuzzes every target, coverage-guided, adds what ran to the record (fuzz/record.tsv), and prints its rows.
#
#   fuzz/campaign.sh [TARGET…]                  all targets without a name
#   MINIMIZE=1 fuzz/campaign.sh [TARGET…]       puts what was found by now into the repository, and fuzzes nothing
#
# A campaign is done in pieces: each call goes on with the corpora in WORK and with the sums in the record, target by
# target for SLICE seconds (at most 300), until each has GOAL (10000000) executions in all, RUNS more than before (as
# many as it takes), or SECONDS_EACH (7200) seconds of processor time in this call, or this call has used SECONDS_ALL of
# them (no limit). One process works at a time, at the lowest priority.
#
# A panic, an execution of more than TIMEOUT seconds (1) and 1 GiB of memory are findings, kept in WORK/findings/TARGET;
# the target goes on behind them, until it has 20 in a call. An execution that took more than a second within a larger
# TIMEOUT is kept as slow-unit-*, for a look on a quiet machine. Executions count beyond those of the corpus, which
# every slice begins with; seconds are those of the processor.
#
# COMPARES=0 builds targets that do not say which numbers they compare: they are faster, and guided by edges alone. A
# corpus is made with comparisons first. MAX_LEN: the longest input of every target, in place of its own.
#
# A row adds up executions of two kinds. In the first 4.3 million of all rows, each made its tokenizer or model anew,
# went through every function that reads the file, and had up to 64 KiB of input. Now they are made once, an input goes
# through one of the functions that would do the same with it, and it has the bytes of `longest` at most. Edges were
# those of all crates, and are those of the crates in rustc.sh. Inputs of safetensors and gguf were whole files, and are
# headers: corpora of these two from before are of no use.
#
# MINIMIZE=1 merges the corpus of each target of text (-merge=1: the smallest inputs that reach all that the corpus
# does, beyond the seeds) into KEEP/TARGET (fuzz/corpus), the smallest first, up to KIB (200) and FILES (300). A
# campaign begins with them, and the tests run them and change them as they do seeds.
#
# WORK (target/campaign of this folder's workspace) keeps corpora and findings. PROGRAMS: a folder of targets that were
# built before; RECORD: another record. The corpora of a target that is done may be thrown away. Needs nothing but the
# compiler of the workspace: the flags below are what cargo-fuzz passes, less the sanitizer and the callers of function
# pointers, which guide value profiles alone; rustc.sh passes them to the crates that read files.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
goal=${GOAL:-10000000} runs=${RUNS:-} each=${SECONDS_EACH:-7200} all=${SECONDS_ALL:-}
work=${WORK:-$here/target/campaign} timeout=${TIMEOUT:-1} record=${RECORD:-$here/record.tsv}
keep=${KEEP:-$here/corpus}
cd "$here/.." || exit 1
mapfile -t known < <(sed -n 's/^name = "\(.*\)"$/\1/p' "$here/Cargo.toml" | grep -v '^qlora-fuzz$')
targets=("$@")
[ ${#targets[@]} = 0 ] && targets=("${known[@]}")
for target in "${targets[@]}"; do
    [[ " ${known[*]} " = *" $target "* ]] || { echo "no target of this name: $target (${known[*]})"; exit 2; }
done
# All targets have their turn within the limit of a call.
slice=${SLICE:-$((${all:-8100} / ${#targets[@]} + 1))}
[ "$slice" -le 300 ] || slice=300
mkdir -p "$work"
programs=${PROGRAMS:-}
if [ -z "$programs" ]; then
    # Without AddressSanitizer: the parsers are safe code, and a third of the executions would be left. A target is
    # named, so that build scripts and macros are not instrumented.
    host=$(rustc -vV | sed -n 's/^host: //p')
    coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
    built=$here/target/edges
    if [ "${COMPARES:-1}" != 0 ]; then
        coverage+=" -Cllvm-args=-sanitizer-coverage-trace-compares" built=$here/target/compares
    fi
    # cargo does not know of the flags that rustc.sh adds: with others everything is built anew.
    added=$(cat "$here/rustc.sh"; echo $coverage)
    [ "$added" = "$(cat "$built/added" 2> /dev/null)" ] || rm -rf "$built"
    mkdir -p "$built"
    echo "$added" > "$built/added"
    COVERAGE=$coverage RUSTC_WRAPPER=$here/rustc.sh RUSTFLAGS="--cfg fuzzing" cargo build --release \
        --locked --bins --manifest-path "$here/Cargo.toml" --target-dir "$built" --target "$host" 2> "$work/build" ||
        { tail -20 "$work/build"; exit 1; }
    programs=$built/$host/release
fi
# Files of one execution lie in memory; one thread reads rows.
export TMPDIR=${TMPDIR:-/dev/shm} RAYON_NUM_THREADS=1

dictionary() {
    case $1 in
        template) echo template ;;
        settings|hub_card) echo yaml ;;
        safetensors|rows|compressed|csv|data_folder|tokenizer_json|tokenizer_config|side_files|index|adapter|quant_state|model_config|generation_config|run_record|checkpoint) echo json ;;
        hub_listing|token_rows|rank_meeting|rank_agreement|dataset_info|hub_upload|run_data|cache_note) echo json ;;
    esac
}

# Bytes of an input at most: a few times its seeds. What is longer repeats itself, and takes the time of many.
longest() {
    case $1 in
        hub_id) echo 256 ;;
        quant_state|data_folder|rank_agreement|cache_note) echo 512 ;;
        settings|generation_config|side_files|csv|compressed|rank_frames|dataset_info) echo 1024 ;;
        tokenizer_json) echo 8192 ;;
        parquet|arrow|checkpoint|gguf|run_data) echo 4096 ;;
        *) echo 2048 ;;
    esac
}

# A person can read the inputs of a target: they are not compressed, and not behind lengths and sums.
is_text() {
    case $1 in
        safetensors|adapter|checkpoint|gguf|parquet|arrow|compressed|token_rows|rank_frames) return 1 ;;
    esac
}

# Puts the corpus of a target into the repository.
minimize() {
    local target=$1 kept=$keep/$1 log=$work/$1.merge.log merged bytes=0 files=0 size name
    is_text "$target" || { echo "$target: its inputs are no text"; return 0; }
    merged=$(mktemp -d)
    mkdir -p "$work/corpus/$target" "$kept"
    cp "$here/seeds/$target"/* "$merged"
    if ! nice -n 19 "$programs/$target" "$merged" "$work/corpus/$target" "$kept" -merge=1 -timeout="$timeout" \
        -rss_limit_mb=1024 -malloc_limit_mb=1024 -max_len="${MAX_LEN:-$(longest "$target")}" > "$log" 2>&1; then
        rm -r "$merged"
        echo "$target: its corpus cannot be merged: $log"
        return 1
    fi
    rm -r "$kept"
    while read -r size name; do
        [ ! -e "$here/seeds/$target/$name" ] || continue
        [ $((bytes + size)) -le $((${KIB:-200} * 1024)) ] && [ "$files" -lt "${FILES:-300}" ] || break
        mkdir -p "$kept"
        cp "$merged/$name" "$kept/$name"
        bytes=$((bytes + size)) files=$((files + 1))
    done < <(find "$merged" -type f -printf '%s %f\n' | sort -k1,1n -k2,2)
    rm -r "$merged"
    echo "$target: $files inputs of $bytes bytes"
}

if [ -n "${MINIMIZE:-}" ]; then
    for target in "${targets[@]}"; do
        minimize "$target" || exit 1
    done
    exit 0
fi

# The executions of a target so far.
recorded() {
    [ -f "$record" ] || { echo 0; return; }
    awk -F'\t' -v target="$1" '$1 == target { found = $2 } END { print found + 0 }' "$record"
}

# Adds a target's executions, seconds and findings to its row; edges are those of now.
note() {
    [ -f "$record" ] || printf 'target\texecutions\tseconds\tedges\tfindings\n' > "$record"
    awk -F'\t' -v OFS='\t' -v target="$1" -v runs="$2" -v seconds="$3" -v edges="$4" -v findings="$5" '
        $1 == target { $2 += runs; $3 += seconds; $4 = edges ? edges : $4; $5 += findings; seen = 1 }
        { print }
        END { if (!seen) print target, runs, seconds, edges, findings }' "$record" > "$record.next"
    mv "$record.next" "$record"
}

# Executions of a log: those of the end, or of its last line where the program was ended, less those of the corpus.
executed_in() {
    local last first
    last=$(sed -n 's/^stat::number_of_executed_units: *//p' "$1" | tail -1)
    [ -n "$last" ] || last=$(grep -aoE '^#[0-9]+' "$1" | tail -1 | tr -d '#')
    first=$(grep -aoE '^#[0-9]+[[:space:]]+INITED' "$1" | head -1 | grep -oE '[0-9]+')
    # Without a line of the beginning it ended in the corpus.
    [ -n "$first" ] || first=${last:-0}
    echo $((${last:-0} - first))
}

declare -A begun=() used=() found=()
for target in "${targets[@]}"; do
    begun[$target]=$(recorded "$target") used[$target]=0 found[$target]=0
done
total=0

# The target that is not done and has used the least of this call.
next() {
    local target least="" chosen="" so_far
    for target in "${targets[@]}"; do
        so_far=$(recorded "$target")
        [ "$so_far" -lt "$goal" ] && [ "${used[$target]}" -lt "$each" ] && [ "${found[$target]}" -lt 20 ] || continue
        [ -z "$runs" ] || [ $((so_far - begun[$target])) -lt "$runs" ] || continue
        [ -z "$least" ] || [ "${used[$target]}" -lt "$least" ] || continue
        least=${used[$target]} chosen=$target
    done
    echo "$chosen"
}

lesser() { echo $(($1 < $2 ? $1 : $2)); }

status=0
while target=$(next) && [ -n "$target" ]; do
    seconds=$(lesser "$slice" $((each - used[$target])))
    if [ -n "$all" ]; then
        [ "$total" -lt "$all" ] || break
        seconds=$(lesser "$seconds" $((all - total)))
    fi
    corpora=("$work/corpus/$target" "$here/seeds/$target") findings=$work/findings/$target log=$work/$target.log
    mkdir -p "${corpora[0]}" "$findings"
    [ ! -d "$keep/$target" ] || corpora+=("$keep/$target")
    so_far=$(recorded "$target")
    left=$((goal - so_far))
    [ -z "$runs" ] || left=$(lesser "$left" $((runs - so_far + begun[$target])))
    # The corpus counts among the executions of a process, with an empty input.
    inputs=$(($(find "${corpora[@]}" -type f | wc -l) + 1))
    words=$(dictionary "$target")
    TIMEFORMAT='%U %S'
    # The program's own output goes to the log; what is left is the time.
    cpu=$({ time nice -n 19 "$programs/$target" "${corpora[@]}" -runs=$((left + inputs)) \
        -max_total_time="$seconds" -timeout="$timeout" -report_slow_units=1 -rss_limit_mb=1024 \
        -malloc_limit_mb=1024 -max_len="${MAX_LEN:-$(longest "$target")}" -print_final_stats=1 -reload=0 \
        -artifact_prefix="$findings/" ${words:+-dict="$here/dictionaries/$words"} > "$log" 2>&1; echo $? > "$log.status"; } 2>&1)
    ended=$(cat "$log.status")
    cpu=$(tail -1 <<< "$cpu" | awk '{ print int($1 + $2 + 1) }')
    edges=$(grep -ao 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    used[$target]=$((used[$target] + cpu)) total=$((total + cpu)) is_finding=0
    # 72: interrupted.
    if [[ "$ended" = 72 || "$ended" = 126 || "$ended" = 127 ]]; then
        echo "$target: was interrupted or cannot be run (status $ended): $log"
        exit 1
    elif [ "$ended" != 0 ]; then
        is_finding=1 status=1 found[$target]=$((found[$target] + 1))
        cp "$log" "$work/$target.finding.$(date +%s).${found[$target]}.log"
    fi
    note "$target" "$(executed_in "$log")" "$cpu" "${edges:-0}" "$is_finding"
done
for target in "${targets[@]}"; do
    grep -P "^$target\t" "$record"
done
exit $status
