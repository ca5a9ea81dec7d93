"""Settings files of other trainers, as their packages carry them, through `qlora-train plan`.

    python settings_of_others.py QLORA_TRAIN MODEL ROWS [FOLDER]

Fetches the source distributions of axolotl and llamafactory by name and version, takes the examples that fine-tune with
LoRA or QLoRA on answers (SFT), and plans each after giving model, data and output. Prints a table in Markdown, with the
refusal where there is one; its exit status is 1 if a file that asks only for what is here is refused.
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

# What a file asks for that is no LoRA on answers, by a pattern of its text: (pattern, name).
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


def main():
    binary, model, rows, *folder = sys.argv[1:]
    folder = folder[0] if folder else tempfile.mkdtemp()
    failed = 0
    print("| package | file | result |\n|---|---|---|")
    for package, patterns in PACKAGES.items():
        with tarfile.open(fetch(package, folder)) as archive:
            members = sorted((m for m in archive.getmembers() if any(re.search(p, m.name) for p in patterns)),
                             key=lambda member: member.name)
            for member in members:
                text = archive.extractfile(member).read().decode()
                short = member.name.split("examples/")[1]
                other = other_task(package.split("==")[0], text)
                path = pathlib.Path(folder) / "settings.yaml"
                path.write_text(text)
                out = pathlib.Path(folder) / "out"
                done = subprocess.run([binary, "plan", path, "--model", model, "--data", rows, "--output-dir", out,
                                       "--host-memory", "1TB"], capture_output=True, text=True)
                if done.returncode == 0:
                    result = "plans" if other is None else f"plans ({other} is not asked of it)"
                else:
                    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                    keys = [re.sub(r"^error: \S+ line (\d+): ", r"line \1: ", line) for line in errors]
                    result = "refused: " + "; ".join(key.replace("|", "\\|")[:160] for key in keys)
                    result += "" if other is None else f" ({other})"
                    failed += other is None
                print(f"| {package} | {short} | {result} |")
    sys.exit(failed > 0)


main()
