"""Settings files of other trainers, as their packages carry them, through `qlora-train plan`.

    python settings_of_others.py QLORA_TRAIN MODEL [FOLDER]

Fetches the source distributions of axolotl and llamafactory by name and version, takes the examples of LoRA and QLoRA, and
plans each after giving model, data and output. What asks for more than LoRA on answers (SFT) is refused and told apart.
Prints a table in Markdown; the exit status is 1 if a file of LoRA on answers does not plan.
"""

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

PACKAGES = {
    "axolotl==0.19.0": [r"examples/llama-3/[^/]+\.ya?ml$"],
    "llamafactory==0.9.5": [r"examples/train_lora/[^/]+\.yaml$", r"examples/train_qlora/[^/]+\.yaml$",
                            r"examples/extras/[^/]+/[^/]*lora[^/]*\.yaml$"],
}

# Requests of a file for something other than LoRA on answers, by a pattern of its text: (pattern, name).
OTHER_TASKS = [
    (r"^rl: *(\w+)", "preferences"),
    (r"^stage: *(?!sft)(\w+)", "another stage"),
    (r"^finetuning_type: *(?!lora)(\w+)", "another method"),
    (r"^do_predict: *true", "prediction"),
    (r"^qat:|^fp8:|^diffusion", "another arithmetic"),
    (r"^pissa_init: *true", "PiSSA"),
    (r"image_max_pixels", "images"),
    (r"-(GPTQ|AWQ|AQLM)|awq|gptq|aqlm", "weights in another quantization"),
    (r"^tokenized_path", "preprocessing"),
]


def fetch(package, folder):
    name = package.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, "--dest", folder]
    archives = list(pathlib.Path(folder).glob(f"{name}-*.tar.gz"))
    if not archives:
        subprocess.run([*command, package], check=True)
        archives = list(pathlib.Path(folder).glob(f"{name}-*.tar.gz"))
    return archives[0]


def other_task(name, text):
    if name == "axolotl" and not re.search(r"^adapter: *q?lora", text, re.M):
        return "no adapter"
    return next((what for pattern, what in OTHER_TASKS if re.search(pattern, text, re.M | re.I)), None)


def plan(binary, settings, model, folder, flags):
    rows = folder / "rows.jsonl"
    rows.write_text('{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}\n' * 20)
    given = ["--model", model, "--data", rows, "--output-dir", folder / "out", "--host-memory", "1TB"]
    done = subprocess.run([binary, "plan", settings, *given, *flags], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode, errors


def result_of(binary, settings, model, folder):
    """What is told of a file, and whether it plans."""
    status, errors = plan(binary, settings, model, folder, [])
    if status == 0:
        return "plans", True
    keys = ", ".join(dict.fromkeys(f"`{key}`" for error in errors for key in re.findall(r"line \d+: `([^`]+)`", error)))
    flags = [word for error in errors for flag in re.findall(r"`(--\S+ false)` leaves it out", error)
             for word in flag.split()]
    if flags and plan(binary, settings, model, folder, flags)[0] == 0:
        return f"refused for {keys}; plans with `{' '.join(flags)}`", True
    return f"refused for {keys}" if keys else "refused: " + "; ".join(errors), False


def main():
    binary, model, *folder = sys.argv[1:]
    folder = pathlib.Path(folder[0] if folder else tempfile.mkdtemp())
    failed = 0
    print("| package | file | asks for | result |\n|---|---|---|---|")
    for package, patterns in PACKAGES.items():
        name, version = package.split("==")
        with tarfile.open(fetch(package, folder)) as archive:
            members = [m for m in archive.getmembers() if any(re.search(pattern, m.name) for pattern in patterns)]
            for member in sorted(members, key=lambda member: member.name):
                text = archive.extractfile(member).read().decode()
                settings = folder / "settings.yaml"
                settings.write_text(text)
                other = other_task(name, text)
                result, plans = result_of(binary, settings, model, folder)
                failed += not plans and other is None
                path = member.name.split("examples/")[1]
                print(f"| {name} {version} | {path} | {other or 'LoRA on answers'} | {result} |")
    sys.exit(failed > 0)


main()
