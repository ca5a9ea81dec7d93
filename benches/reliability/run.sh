#!/bin/bash
# Runs the grids that are too long for the test suite and keeps what they counted (benches/reliability/record.md).
#
#   benches/reliability/run.sh [kills|syscalls|memory…]      all without a name
#
# kills      300 kills at random moments (KILLS) over four kinds of runs: evaluation, early stopping, the best
#            checkpoint, packing, dropout, rsLoRA, states of 8 bits; in the first process, after it resumed, while it
#            finished
# syscalls   each system call in the output directory fails with each of ENOSPC, EIO and EINTR (needs strace)
# memory     34 settings on a real model: what was planned is what is held (needs `cargo xtask setup`)
#
# Each is a test of the trainer in its long form: it fails where anything is lost.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
record=benches/reliability/record.md
[ -f "$record" ] || cat > "$record" <<'END'
# Counts of the grids of run.sh

| date | grid | counted | seconds |
|---|---|---|---|
END
grids=("$@")
[ ${#grids[@]} = 0 ] && grids=(kills syscalls memory)
status=0
for grid in "${grids[@]}"; do
    case $grid in
        kills) name=killed_at_random_moments variable=QLORA_KILLS=${KILLS:-300} said=': nothing lost' ;;
        syscalls) name=every_system_call variable=QLORA_FULL_GRID=1 said=' failures of ' ;;
        memory) name=a_run_holds_what_was_planned variable=QLORA_FULL_GRID=1 said=' settings, measured ' ;;
        *) echo "no grid of this name: $grid"; exit 2 ;;
    esac
    begun=$SECONDS
    if said=$(env "$variable" cargo nextest run --release -p qlora-train --test cli --no-capture -E "test($name)" 2>&1 | tee "target/$grid.log" | grep -F "$said"); then
        line=$(tr -d '{}"' <<< "$said" | tail -1)
    else
        status=1 line="failed"
    fi
    echo "| $(date +%F) | $grid | $line | $((SECONDS - begun)) |" | tee -a "$record"
done
exit $status
