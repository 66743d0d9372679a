#!/usr/bin/env python3
"""GPTQ of one layer of Llama-2-7B's shape on a card: where its time goes. Needs numpy and safetensors.

    gpu_layer.py --nibble build/cuda-release/nibble [--layers 2] [--device cuda] [--out FILE]

Makes a BF16 model of that shape with random weights and so many layers, and a text of random words, runs
`nibble quantize --scheme int4 --method gptq` on 128 windows of 512 tokens, and prints JSON: seconds a layer by phase, as
the run reports them, what remains ("other": what the host does between them), what a run takes once, and 32 layers at that
rate. Its first products may be slow: two layers tell more than one.
--samples, --length: a smaller calibration set, for a CPU.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 32000
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = [a + b for a in LETTERS for b in LETTERS]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--nibble", required=True)
parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--threads", type=int)
parser.add_argument("--folder", type=pathlib.Path, help="where the model lies, kept and taken again (default: temporary)")
parser.add_argument("--out", type=pathlib.Path)
args = parser.parse_args()
rng = random.Random(20261128)


def write_tokenizer(folder):
    """Bytes, and words of two letters with and without a space before them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in plain}
    shown.update({byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)})
    space = shown[32]
    tokens = [shown[byte] for byte in range(256)] + WORDS + [space + word for word in WORDS]
    merges = [f"{word[0]} {word[1]}" for word in WORDS] + [f"{space} {word}" for word in WORDS]
    end = {"id": VOCAB - 1, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    vocab = {token: i for i, token in enumerate(tokens)}
    vocab.update({f"<unused {i}>": i for i in range(len(tokens), VOCAB - 1)})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": merges}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def make_model(folder):
    subprocess.run([sys.executable, HERE.parent / "make_random_model.py", folder, "--shape", "llama-2-7b", "--layers",
                    str(args.layers), "--format", "bf16"], stdout=sys.stderr, check=True)
    write_tokenizer(folder / "bf16")


def words(count):
    return "".join(" " + rng.choice(WORDS) for _ in range(count))


with tempfile.TemporaryDirectory() as scratch:
    work = args.folder or pathlib.Path(scratch)
    made = work / f"llama-2-7b-{args.layers}"
    if not made.exists():
        make_model(made)
    model = made / "bf16"
    calibration, text, out = (pathlib.Path(scratch) / name for name in ("calibration.txt", "text.txt", "int4"))
    calibration.write_text(words(args.samples * args.length + 64))
    text.write_text(words(64))  # the certificate's: it is measured on the CPU, which is not the point here
    command = [args.nibble, "quantize", str(model), "--out", str(out), "--scheme", "int4", "--method", "gptq",
               "--calibration", str(calibration), "--calibration-samples", str(args.samples), "--calibration-length",
               str(args.length), "--device", args.device, "--certificate-text", str(text), "--context", "32"]
    if args.threads:
        command += ["--threads", str(args.threads)]
    begin = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    wall = time.monotonic() - begin
    print(done.stderr, file=sys.stderr)
    found = re.search(r"calibrated (\d+) blocks in ([\d.]+) s: (.*)", done.stderr)
    if done.returncode != 0 or found is None:
        sys.exit(f"nibble quantize ended with {done.returncode}")

layers, total = int(found[1]), float(found[2])
phases = {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+)", found[3])}
start = phases.pop("start")
seconds = (total - start) / layers
phases = {name: spent / layers for name, spent in phases.items()}
phases["other"] = seconds - sum(phases.values())
report = {"shape": "llama-2-7b", "device": args.device, "layers": layers, "tokens": args.samples * args.length,
          "seconds_once": start, "seconds_per_layer": round(seconds, 3),
          "phases": {name: round(spent, 3) for name, spent in phases.items()},
          "minutes_for_32_layers": round((start + 32 * seconds) / 60, 2), "wall_seconds": round(wall, 1)}
print(json.dumps(report, indent=1))
if args.out:
    args.out.write_text(json.dumps(report, indent=1) + "\n")
