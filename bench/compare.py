"""nibble beside llama.cpp in one run, as ratios.

Usage: compare.py --model DIR --gguf FILE --out FILE.json [--nibble build/release/nibble] [--rounds 2] [--iterations 3]
       run it with a Python that has llama-cpp-python:  CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
       (on a machine with AMX and GCC 12 add -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse': the tile configuration is lost otherwise)
Interleaved A B A B: peer, nibble with int16 activations, nibble with int8; the median of the rounds counts. The load of
the machine is recorded before and after.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--gguf", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--nibble", default="build/release/nibble")
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--iterations", type=int, default=3)
args = parser.parse_args()
here = pathlib.Path(__file__).parent


def output(*command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def nibble(activations):
    return output(args.nibble, "bench", args.model, "--json", "--activations", activations, "--batch", "1", "--batch", "32",
                  "--iterations", str(args.iterations))


commit = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout
runs = {"peer": [], "int16": [], "int8": []}
load_before = os.getloadavg()
for _ in range(args.rounds):
    runs["peer"].append(output(sys.executable, str(here / "peer_llama.py"), args.gguf, "--iterations", str(args.iterations)))
    runs["int16"].append(nibble("int16"))
    runs["int8"].append(nibble("int8"))


def median(engine, batch, key):
    return statistics.median(row[key] for run in runs[engine] for row in run["batches"] if row["batch"] == batch)


figures = {"prefill 512": (1, "prefill_tokens_per_s"), "decode": (1, "decode_tokens_per_s"),
           "32 sequences": (32, "decode_tokens_per_s")}
table = {}
for name, (batch, key) in figures.items():
    peer = median("peer", batch, key)
    table[name] = {"peer": peer, **{mode: {"tokens_per_s": median(mode, batch, key), "ratio": median(mode, batch, key) / peer}
                                    for mode in ("int16", "int8")}}
    print(f"{name:14} peer {peer:8.1f} tok/s   int16 {table[name]['int16']['tokens_per_s']:8.1f} "
          f"({table[name]['int16']['ratio']:.2f}x)   int8 {table[name]['int8']['tokens_per_s']:8.1f} "
          f"({table[name]['int8']['ratio']:.2f}x)")
pathlib.Path(args.out).write_text(json.dumps(
    {"commit": commit.strip(), "cpu": runs["int16"][0]["cpu"], "threads": runs["int16"][0]["threads"],
     "peer": runs["peer"][0]["engine"], "peer_features": runs["peer"][0]["features"],
     "load_before": load_before, "load_after": os.getloadavg(), "table": table,
     "runs": runs}, indent=1) + "\n")
