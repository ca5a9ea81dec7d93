"""Event files of a run, read by TensorBoard itself, against its metrics.jsonl.

    venv/bin/pip install tensorboard
    venv/bin/python tests/golden/check_tensorboard.py OUTPUT_DIR [EVENTS_DIR]

Every loss, norm and rate of the log has to be there, at its step, as the nearest f32; records have to be whole, and
what a resumed run did again counts once. Status 1 if anything differs.
"""

import json
import math
import pathlib
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/grad_norm_a": "grad_norm_a",
    "train/grad_norm_b": "grad_norm_b",
    "train/learning_rate": "learning_rate",
    "train/tokens_per_second": "tokens_per_second",
    "eval/loss": "eval_loss",
}


def main():
    output = pathlib.Path(sys.argv[1])
    events = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else output / "runs"
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    wrong = compared = 0
    for tag, key in TAGS.items():
        logged = {entry["step"]: entry[key] for entry in entries if key in entry}
        found = {event.step: event.value for event in accumulator.Scalars(tag)} if tag in tags else {}
        if tag in tags and len(accumulator.Scalars(tag)) != len(found):
            print(f"{tag}: a step is there twice")
            wrong += 1
        # The speed is of the process that measured it: a resumed run logs it again.
        for step in sorted(logged.keys() | found.keys()):
            compared += 1
            same = step in logged and step in found and numpy.float32(logged[step]) == numpy.float32(found[step])
            if not same and not (step in logged and step in found and key == "tokens_per_second"):
                print(f"{tag} at step {step}: logged {logged.get(step)}, found {found.get(step)}")
                wrong += 1
    finite = all(math.isfinite(event.value) for tag in tags for event in accumulator.Scalars(tag))
    print(f"{compared} figures of {len(tags)} tags compared, {wrong} differ; finite: {finite}")
    sys.exit(1 if wrong or not compared or not finite else 0)


if __name__ == "__main__":
    main()
