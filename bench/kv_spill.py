"""What a prompt costs whose KV blocks were evicted: computed again, brought back from host memory, or never evicted.

Usage: kv_spill.py MODEL [--out FILE.json] [--nibble build/release/nibble] [--device cpu|cuda] [--prompt-tokens 1024]
                   [--prompts 4] [--rounds 6] [options of nibble serve...]
Prompts of equal length without a common beginning are asked in turn for one token each. `recompute`: the pool holds one
of them; `restore`: the same pool with --kv-offloading-size; `resident`: the pool holds all. Median over all rounds but the
first, with the smallest and largest. All three must give the same tokens; on CUDA a prompt computed in other chunks may
differ, which is then said.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

here = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--out")
parser.add_argument("--nibble", default="build/release/nibble")
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--prompt-tokens", type=int, default=1024)
parser.add_argument("--prompts", type=int, default=4)
parser.add_argument("--rounds", type=int, default=6)
parser.add_argument("--host-gib", type=float, default=1.0)
args, serve_options = parser.parse_known_args()
os.environ["NIBBLE_BINARY"] = str(pathlib.Path(args.nibble).resolve())
sys.path.insert(0, str(here.parent / "tests" / "e2e"))
from nibble_process import Server  # noqa: E402 - needs the path above

draw = random.Random(20261126)
PROMPTS = [[draw.randrange(10, 250) for _ in range(args.prompt_tokens)] for _ in range(args.prompts)]
# The last token of a prompt is always computed, so its block is, too.
block = 16 if args.device == "cpu" else 64
blocks_of_one = (args.prompt_tokens + block) // block


def measure(num_blocks, *options):
    common = ("--device", args.device, "--max-model-len", args.prompt_tokens + 16, "--max-num-seqs", 4,
              "--num-gpu-blocks-override", num_blocks, *serve_options)
    times, tokens = [], []
    with Server(args.model, *common, *options) as server:
        for turn in range(args.rounds):
            for prompt in PROMPTS:
                begin = time.monotonic()
                response = server.complete(prompt=prompt, max_tokens=1, temperature=0, ignore_eos=True, logprobs=0)
                seconds = time.monotonic() - begin
                assert response.status == 200, response.body
                tokens.append(response.json()["choices"][0]["logprobs"]["tokens"])
                if turn > 0:
                    times.append(1e3 * seconds)
        metrics = server.metrics()
        offload = {}
        for line in server.get("/metrics").body.decode().splitlines():
            if line.startswith("vllm:kv_offload_total_bytes_total{"):
                offload["restored" if "CPU_to_GPU" in line else "spilled"] = float(line.split()[-1])
    return tokens, {"num_blocks": num_blocks, "ms_median": statistics.median(times), "ms_min": min(times),
                    "ms_max": max(times), "tokens_from_pool": metrics["vllm:prefix_cache_hits_total"],
                    "tokens_from_host": metrics["vllm:external_prefix_cache_hits_total"],
                    "bytes_spilled": offload["spilled"], "bytes_restored": offload["restored"]}


cpu = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")), "unknown")
load_before = os.getloadavg()
runs = {}
expected, runs["resident"] = measure(args.prompts * blocks_of_one + 1)
for name, options in (("recompute", ()), ("restore", ("--kv-offloading-size", args.host_gib))):
    tokens, runs[name] = measure(blocks_of_one + 1, *options)
    if tokens != expected:
        print(f"{name} gives other tokens than the pool that holds all")
        if name == "restore" or args.device == "cpu":
            sys.exit(1)
if runs["restore"]["bytes_restored"] == 0:
    sys.exit("nothing was restored")
copied = runs["restore"]["bytes_restored"] / (args.rounds - 1) / args.prompts
extra_ms = runs["restore"]["ms_median"] - runs["resident"]["ms_median"]
result = {
    "commit": subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE,
                             text=True).stdout.strip(),
    "model": pathlib.Path(args.model).name, "device": args.device, "cpu": cpu, "serve_options": serve_options,
    "prompt_tokens": args.prompt_tokens,
    "prompts": args.prompts, "rounds": args.rounds, "load_before": load_before, "load_after": os.getloadavg(),
    "runs": runs, "bytes_restored_a_prompt": copied,
    "recompute_over_restore": runs["recompute"]["ms_median"] / runs["restore"]["ms_median"],
    "restore_gb_per_s": copied / 1e6 / extra_ms if extra_ms > 0 else None,
}
for name, run in runs.items():
    print(f"{name:10} {run['ms_median']:9.1f} ms ({run['ms_min']:.1f} to {run['ms_max']:.1f})   "
          f"restored {run['bytes_restored'] / 1e6:9.1f} MB")
print(f"a prompt of {args.prompt_tokens} tokens: {copied / 1e6:.1f} MB back instead of computed again, "
      f"{result['recompute_over_restore']:.1f}x faster")
if args.out:
    pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
