#!/usr/bin/env python3
"""The CUDA backend on one card: right first, then fast. Needs python3 alone.

    cuda_table.py --nibble build/cuda-release/nibble --tests build/cuda --model DIR [--nf4 DIR] --smol GGUF --text FILE
                  --out bench/results/cuda-h100.json

Correctness: the suites kernels_cuda_test, engine_cuda_test, compress_cuda_test and solve_cuda_test; greedy text of --smol equal to the
CPU's; its perplexity on 10 windows of --text within 0.1 % of the CPU's, with an INT8 cache within 0.3 % and with an FP8
cache (scales of 1) within 3 % of the card's own; the golden logits of an int4 folder made of it, with every cache. Then
the table: decode at batch 1, 8 and 32, context 128, prefill of 2,048 tokens, an FP8 cache at context 2,048, NF4 beside
INT4, a server under 1,000 requests at once and under 16 a second, 64 streams of --smol, KV blocks that leave for host
memory and come back, and the time from process start to the first token.
--model is a folder of Llama-2-7B's shape, 4 bit in groups of 128 (make_random_model.py --shape llama-2-7b --group 128).
Every figure stands beside the limit of the same run and its gate. Exits with 1 if a check fails or a gate is missed.
(Saturation has no gate: it needs vLLM on the same card.) --out is written after each part, so a run that is cut off
leaves what it has, marked as not complete; so is one that lacks some of the folders and files above. Exits with 2 if
something is missing: a card, the program, a file that was named.
"""

import argparse
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PROMPTS = ["The capital of France is", "Once upon a time", "Write a haiku about the sea.", "def fibonacci(n):",
           "In 1969, the first", "The theory of relativity states that"]

# How far a cache of 8 bits may move SmolLM2's perplexity, against float16 on the same card: three to four times what
# rounding keys and values so does to two windows of WikiText-2 in NumPy (fp8 0.9 %, int8 0.07 %).
CACHE_BOUNDS = {"int8": 3e-3, "fp8": 3e-2}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--nibble", required=True)
parser.add_argument("--tests", help="folder with the four suites")
parser.add_argument("--model", help="folder of Llama-2-7B's shape, int4 g128")
parser.add_argument("--nf4", help="the same in NF4")
parser.add_argument("--smol", help="SmolLM2's GGUF")
parser.add_argument("--text", help="WikiText-2 test")
parser.add_argument("--load-client", default=str(HERE.parent / "tests/clients/load_client.py"))
parser.add_argument("--iterations", type=int, default=10)
parser.add_argument("--commit", help="of the programs, to be said in the report")
parser.add_argument("--out")
args = parser.parse_args()

SUITES = ("kernels_cuda_test", "engine_cuda_test", "compress_cuda_test", "solve_cuda_test")
for path in [args.nibble, args.model, args.nf4, args.smol, args.text, args.load_client,
             *(args.tests and [pathlib.Path(args.tests) / suite for suite in SUITES] or [])]:
    if path is not None and not pathlib.Path(path).exists():
        parser.error(f"{path} does not exist")
left_out = [f"--{name}" for name in ("tests", "model", "nf4", "smol", "text") if getattr(args, name) is None]

report = {"commit": args.commit, "complete": False, "left_out": left_out, "checks": {}, "rows": [], "gates": {}}
failed = []


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def save():
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def check(name, ok, **details):
    report["checks"][name] = {"ok": bool(ok), **details}
    say("ok  " if ok else "FAIL", name, details or "")
    if not ok:
        failed.append(name)


def gate(name, value, least=None, most=None, goal=None):
    ok = None  # only a goal: nothing to pass
    if least is not None or most is not None:
        ok = (least is None or value >= least) and (most is None or value <= most)
    report["gates"][name] = entry = {"value": value, "at_least": least, "at_most": most, "goal": goal, "ok": ok}
    say({True: "ok  ", False: "MISS", None: "    "}[ok], f"{name}: {value:.4g}",
        {key: entry[key] for key in ("at_least", "at_most", "goal") if entry[key] is not None})
    if ok is False:
        failed.append(name)


def run(*command, timeout=300):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout, check=False)


def nibble(*words, timeout=300):
    done = run(args.nibble, *words, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"nibble {' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def bench(model, *options):
    return json.loads(nibble("bench", model, "--device", "cuda", "--json", "--iterations", args.iterations, *options))


class Server:
    """nibble serve on a free port."""

    def __init__(self, model, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.begin = time.monotonic()
        self.process = subprocess.Popen([args.nibble, "serve", str(model), "--device", "cuda", "--port", str(port),
                                         *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        while True:
            try:
                urllib.request.urlopen(self.url + "/health", timeout=1).read()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() - self.begin > 120:
                    raise RuntimeError("the server did not start") from None
                time.sleep(0.005)  # asked again: the time until it answers is the figure

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)

    def card_mib(self):
        """Of the whole card: nobody else may use it."""
        return int(run("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits").stdout.split()[0])

    def complete(self, **body):
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))


def load(server, *options):
    done = run(sys.executable, args.load_client, server.url, "--endpoint", "completions", *options)
    out = json.loads(done.stdout)
    check(f"server under load {' '.join(map(str, options))}", done.returncode == 0, failed=out["failed"],
          idle_after=out["after"]["idle"])
    return out


def check_correctness():
    if args.tests:
        for suite in SUITES:
            done = run(pathlib.Path(args.tests) / suite, "--gtest_brief=1", "--gtest_filter=-CudaLimits*")
            check(suite, done.returncode == 0 and "SKIPPED" not in done.stdout, last=done.stdout.strip().splitlines()[-1:])
    if args.smol:
        for prompt in PROMPTS:
            words = ("run", args.smol, "--prompt", prompt, "--max-tokens", 48, "--temperature", 0)
            check(f"greedy text: {prompt}", nibble(*words) == nibble(*words, "--device", "cuda"))
        if args.text:
            words = ("eval", args.smol, "--perplexity", args.text, "--context", 2048, "--windows", 10, "--json")
            cpu, cuda = (json.loads(nibble(*words, "--device", device))["perplexity"] for device in ("cpu", "cuda"))
            check("perplexity", abs(cuda / cpu - 1) < 1e-3, cpu=cpu, cuda=cuda)
            for dtype, bound in CACHE_BOUNDS.items():
                found = json.loads(nibble(*words, "--device", "cuda", "--kv-cache-dtype", dtype))["perplexity"]
                check(f"perplexity, {dtype} cache", abs(found / cuda - 1) < bound, float16=cuda, found=found, bound=bound)
        check_certificate()


def check_certificate():
    """What `nibble quantize` certified on the CPU comes out on the card: nibble refuses it otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        int4 = pathlib.Path(folder) / "int4"
        nibble("quantize", args.smol, "--out", int4, "--allow-requantize")
        for dtype in ("float16", "bfloat16", *CACHE_BOUNDS):
            done = run(args.nibble, "run", int4, "--prompt", PROMPTS[0], "--max-tokens", 1, "--device", "cuda",
                       "--kv-cache-dtype", dtype)
            within = re.search(r"golden logits within ([0-9.]+) %", done.stderr)
            check(f"golden logits, {dtype} cache", done.returncode == 0 and within is not None,
                  percent=float(within[1]) if within else None, exit=done.returncode,
                  **({} if within else {"said": done.stderr[-500:]}))


def measure():
    decode = bench(args.model, "--batch", 1, "--batch", 8, "--batch", 32, "--input-len", 128, "--batch-input-len", 128,
                   "--output-len", 64)
    report["limits"] = decode["limits"]
    report["plan_bytes"] = decode["plan_bytes"]
    report["card_used_bytes"] = decode["card_used_bytes"]
    for row in decode["batches"]:
        report["rows"].append({"what": f"decode, batch {row['batch']}, context 128", **row})
        gate(f"decode batch {row['batch']}, share of floor", row["decode_share_of_floor"],
             least=0.48 if row["batch"] == 1 else 0.45, goal=0.65 if row["batch"] == 1 else 0.70)
    big = sum(decode["plan_bytes"][line] for line in ("weights", "kv_cache"))
    gate("GPU memory beyond weights and KV, GB", (decode["card_used_bytes"] - big) / 1e9, most=0.9)
    prefill = bench(args.model, "--batch", 1, "--input-len", 2048, "--output-len", 2, "--max-num-batched-tokens", 2048)
    row = prefill["batches"][0]
    report["rows"].append({"what": "prefill, 2,048 tokens", **row})
    gate("prefill 2,048, share of dense fp16", row["prefill_share_of_peak"], least=0.50, goal=0.75)
    long = ("--batch", 8, "--batch-input-len", 2048, "--output-len", 32, "--max-num-batched-tokens", 2048)
    times = {}
    for dtype in ("float16", "fp8"):
        try:
            row = bench(args.model, *long, "--kv-cache-dtype", dtype)["batches"][0]
        except RuntimeError as error:
            say(error)
            continue
        times[dtype] = row["ms_per_token"]
        report["rows"].append({"what": f"decode, batch 8, context 2,048, {dtype} cache", **row})
    if len(times) == 2:
        gate("FP8 cache at context 2,048, time against fp16", times["fp8"] / times["float16"], most=1.0)
    if args.nf4:
        nf4 = bench(args.nf4, "--batch", 1, "--batch", 8, "--batch", 32, "--input-len", 128, "--batch-input-len", 128,
                    "--output-len", 64)
        for a, b in zip(decode["batches"], nf4["batches"]):
            report["rows"].append({"what": f"decode, NF4, batch {b['batch']}, context 128", **b})
            gate(f"NF4 against INT4, batch {b['batch']}", b["decode_tokens_per_s"] / a["decode_tokens_per_s"], least=0.9)


def measure_spill():
    """Blocks that the pool evicts come back from host memory: the same tokens as from a pool that holds all."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = run(sys.executable, HERE / "kv_spill.py", args.model, "--device", "cuda", "--nibble", args.nibble, "--out",
                   out.name, "--host-gib", 4, "--rounds", 4)
        check("spill and restore give the same tokens", done.returncode == 0, said=(done.stdout + done.stderr)[-300:])
        if done.returncode == 0:
            report["spill"] = json.load(out) | ({"commit": args.commit} if args.commit else {})


def measure_server():
    prompt = list(range(3, 19))
    with Server(args.model, "--max-model-len", 2048) as server:
        ready = time.monotonic() - server.begin
        server.complete(prompt=prompt, max_tokens=1, temperature=0, ignore_eos=True)
        first = time.monotonic() - server.begin
    report["start"] = {"ready_s": ready, "first_token_s": first}
    gate("process start to first token, s", first, most=2.0)
    options = ("--max-model-len", 1024, "--max-num-seqs", 256, "--queue-timeout", 0, "--max-num-batched-tokens")
    with Server(args.model, *options, 2048) as server:
        at_ready = server.card_mib()
        at_once = load(server, "--requests", 1000, "--concurrency", 1000, "--warm-up", 64)
        load(server, "--requests", 300, "--concurrency", 64, "--cancel-storm")
        after = server.card_mib()
        check("nothing taken from the card after ready", after <= at_ready, at_ready_mib=at_ready, after_load_mib=after)
    # Shorter chunks of prefill: those who decode wait less.
    with Server(args.model, *options, 256) as server:
        steady = load(server, "--requests", 320, "--rate", 16, "--warm-up", 64)
    if args.smol:
        with Server(args.smol, *options, 2048) as server:
            report["small_streams"] = load(server, "--requests", 512, "--concurrency", 64, "--warm-up", 64)
    report["saturation"] = at_once
    report["steady"] = steady
    gate("saturation, requests a second (vLLM W4 on an H200: 35)", at_once["requests_per_s"], goal=45.5)
    gate("16 a second: time to first token p99, ms", steady["time_to_first_token_ms"]["p99"], most=60.0)
    gate("16 a second: time between tokens p99, ms", steady["time_between_tokens_ms"]["p99"], most=10.0)


card = json.loads(nibble("doctor", "--json"))
if problem := card["cuda"]["problem"] or (not card["cuda"]["built_in"] and "this nibble was built without CUDA"):
    parser.error(problem)
report["machine"] = card
report["nibble"] = run(args.nibble, "--version").stdout.strip()
parts = [check_correctness]
if args.model:
    parts += [measure, measure_server, measure_spill]
for part in parts:
    part()
    save()
report["complete"] = not left_out
if left_out:
    say("not complete: without", ", ".join(left_out))
save()
if not args.out:
    print(json.dumps(report, indent=1))
sys.exit(1 if failed else 0)
