"""Programs of llama.cpp, built in a scratch folder from the source that llama-cpp-python carries, and a text to try them on.

`programs(work)` needs cmake (PyPI has it) and a C++ compiler, and takes ten minutes of one processor; what is built stays in
`work`. `wiki_text(work)` is the first articles of `data/wiki_demo.txt` in the source of llamafactory.
"""

import pathlib
import re
import subprocess
import sys
import tarfile

SOURCE = ("llama-cpp-python", "0.3.36")
TEXT = ("llamafactory", "0.9.5", "data/wiki_demo.txt")
TEXT_BYTES = 20_000
# Keys and values in f32; one chunk in a batch.
LINE = ["--ctx-size", "512", "--batch-size", "512", "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--threads", "2"]


def unpacked(package, version, work):
    """The folder of a source distribution."""
    work.mkdir(parents=True, exist_ok=True)
    folder = work / f"{package.replace('-', '_')}-{version}"
    if not folder.exists():
        line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package, "--dest", str(work), f"{package}=={version}"]
        subprocess.run(line, check=True)
        with tarfile.open(f"{folder}.tar.gz") as tar:
            tar.extractall(work, filter="data")
    return folder


class Programs:
    def __init__(self, work, threads=2):
        self.source = unpacked(*SOURCE, work) / "vendor/llama.cpp"
        self.build = work / "llama.cpp-build"
        self.perplexity_program = self.build / "bin/llama-perplexity"
        if not self.perplexity_program.exists():
            options = ["CMAKE_BUILD_TYPE=Release", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_SERVER=OFF"]
            subprocess.run(["cmake", "-S", str(self.source), "-B", str(self.build), *(f"-D{option}" for option in options)], check=True)
            subprocess.run(["cmake", "--build", str(self.build), "--target", "llama-perplexity", "--parallel", str(threads)], check=True)

    def perplexity(self, model, text, lora=None):
        """Perplexity by llama-perplexity: of the second half of every 512 tokens, 255 predictions each."""
        line = [str(self.perplexity_program), "--model", str(model), "--file", str(text), *LINE, *(["--lora", str(lora)] if lora else [])]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout)
        if done.returncode != 0 or not found:
            sys.exit(f"{' '.join(line)}\n{done.stdout}\nended with {done.returncode}")
        print(f"{pathlib.Path(model).name}{' and an adapter' if lora else ''}: {found[1]}", flush=True)
        return float(found[1])

    def convert(self, model, target):
        """The F32 file of llama.cpp's own converter."""
        line = [sys.executable, str(self.source / "convert_hf_to_gguf.py"), str(model), "--outtype", "f32", "--outfile", str(target)]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(line)}\n{done.stdout}\nended with {done.returncode}")
        return target


def wiki_text(work):
    """Path of the text; no line break ends it, which llama-perplexity would take away."""
    package, version, name = TEXT
    path = work / "wiki.txt"
    whole = (unpacked(package, version, work) / name).read_bytes()[:TEXT_BYTES]
    path.write_bytes(whole[: whole.rindex(b".") + 1])
    return path


def rows(ids):
    """The rows whose loss `eval` has to give for the same perplexity: no label in the first half, nor the first after it."""
    chunks = [ids[begin : begin + 512] for begin in range(0, len(ids) - 511, 512)]
    return [{"input_ids": chunk, "labels": [-100] * 257 + chunk[257:]} for chunk in chunks]


def main():
    work = pathlib.Path(sys.argv[1])
    print(Programs(work).perplexity_program, wiki_text(work))


if __name__ == "__main__":
    main()
