#!/bin/bash
# Fuzzes every target, coverage-guided, and prints a table: executions, seconds, coverage, findings.
#
#   fuzz/campaign.sh [TARGET…]      all targets without a name
#
# RUNS (default 10000000) and SECONDS_EACH (7200) end a target, whichever comes first; WORK (target/fuzz of this
# folder's workspace) keeps corpora and what was found. One process works at a time. libFuzzer ends at an execution of
# more than one second, at 1 GiB of memory and at a panic; each is a finding, kept in WORK/findings/TARGET.
# Needs cargo-fuzz (`cargo install cargo-fuzz`). A stable compiler will do: RUSTC_BOOTSTRAP is set for it.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
runs=${RUNS:-10000000} seconds=${SECONDS_EACH:-7200} work=${WORK:-$here/target/campaign}
export RUSTC_BOOTSTRAP=1
cd "$here/.." || exit 1
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' "$here/Cargo.toml" | grep -v '^qlora-fuzz$')
fi
mkdir -p "$work"
# Without AddressSanitizer: the parsers are safe code, and a third of the executions would be left.
cargo fuzz build --fuzz-dir "$here" --release --sanitizer none 2> "$work/build" || { tail -20 "$work/build"; exit 1; }
programs=$here/target/$(rustc -vV | sed -n 's/^host: //p')/release

dictionary() {
    case $1 in
        template) echo template ;;
        settings) echo yaml ;;
        safetensors|rows|compressed|csv|data_folder|tokenizer_json|tokenizer_config|side_files|index|adapter|quant_state|model_config|generation_config|run_record|checkpoint) echo json ;;
    esac
}

printf '%-18s %12s %8s %9s %8s %7s  %s\n' target executions seconds exec/s edges corpus findings
status=0
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target findings=$work/findings/$target log=$work/$target.log
    mkdir -p "$corpus" "$findings"
    words=$(dictionary "$target")
    begun=$SECONDS
    "$programs/$target" "$corpus" "$here/seeds/$target" -runs="$runs" -max_total_time="$seconds" -timeout=1 \
        -rss_limit_mb=1024 -malloc_limit_mb=1024 -max_len="${MAX_LEN:-65536}" -print_final_stats=1 \
        -artifact_prefix="$findings/" ${words:+-dict="$here/dictionaries/$words"} > "$log" 2>&1
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
    [ -n "$done" ] || done=$(grep -oE '^#[0-9]+' "$log" | tail -1 | tr -d '#')
    took=$((SECONDS - begun)) found=$(find "$findings" -type f | wc -l)
    [ "$found" = 0 ] || status=1
    printf '%-18s %12s %8s %9s %8s %7s  %s\n' "$target" "${done:-0}" "$took" "$((${done:-0} / (took + 1)))" \
        "${edges:-0}" "$(find "$corpus" -type f | wc -l)" "$found"
done
exit $status
