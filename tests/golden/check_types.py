"""Every model type that transformers knows, by its config.json alone: it is trained, or refused by its name.

    python check_types.py --binary target/release/qlora-train

For each type `plan` is given a folder that holds a config.json with that type and nothing else. A type that is not
trained has to be named in the error, with the nearest one that is: before any weight is looked for. Status 1 if one is
not.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NEAREST = re.compile(r"the nearest of these is \"(\w+)\"")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    args = parser.parse_args()
    types = sorted({*CONFIG_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})
    trained, refused, wrong = [], 0, []
    with tempfile.TemporaryDirectory() as scratch:
        config = pathlib.Path(scratch) / "config.json"
        for name in types:
            config.write_text(json.dumps({"model_type": name}))
            done = subprocess.run([args.binary, "plan", "--model", scratch, "--device", "cpu"], capture_output=True, text=True)
            nearest = NEAREST.search(done.stderr)
            if f'found "{name}"' not in done.stderr:
                trained.append(name)
            elif done.returncode == 2 and nearest:
                refused += 1
            else:
                wrong.append(name)
    print(f"transformers {transformers.__version__}: {len(types)} types, {refused} refused with the nearest, trained: {', '.join(trained)}")
    if wrong:
        print(f"refused without the nearest: {', '.join(wrong)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
