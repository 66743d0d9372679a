"""CTest `e2e_same_tokens`: 24 prompts give the same tokens and logprobs however they are run.

Usage: same_tokens_test.py [MODEL] [--blocks N] [--isa ref,avx2,avx512]
Alone; in a batch of 32 with random company; with so few KV blocks that sequences are preempted; with KV blocks that
come back from host memory; with a warm prefix cache; with 1 and 2 threads; with each instruction set. Without MODEL the tiny llama3, quantized to 4 bits.
Half of the prompts are greedy, half sampled with a seed.
"""

import argparse
import pathlib
import random
import sys
import tempfile

import nibble_process
from nibble_process import GOLDEN, Server, in_parallel

parser = argparse.ArgumentParser()
parser.add_argument("model", nargs="?")
parser.add_argument("--blocks", type=int, default=24)
parser.add_argument("--isa", help="comma-separated; default: all that this machine has")
args = parser.parse_args()



def machine_isas():
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    needed = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}}
    return ["ref"] + [isa for isa, has in needed.items() if has <= set(flags)]


NUM_PROMPTS, BATCH = 24, 32
# Prompt plus output of one sequence take up to 11 blocks of 16 tokens: a pool of 24 holds two at their end.
MAX_PROMPT, MAX_TOKENS, VOCABULARY = 120, 48, 256


def requests(seed, count):
    draw = random.Random(seed)
    made = []
    for i in range(count):
        # Some share a beginning, so that the prefix cache has something to find within a run too.
        prompt = [draw.randrange(4, VOCABULARY) for _ in range(draw.randrange(3, MAX_PROMPT))]
        if i % 4 == 3:
            prompt = made[i - 1]["prompt"][:64] + prompt[:40]
        made.append({"prompt": prompt, "max_tokens": draw.randrange(8, MAX_TOKENS), "ignore_eos": True,
                     "logprobs": 3, "skip_special_tokens": False,
                     **({"temperature": 0} if i % 2 == 0 else
                        {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": draw.randrange(1 << 40)})})
    return made


PROBES = requests(20261124, NUM_PROMPTS)


def answer(server, request):
    response = server.complete(**request)
    assert response.status == 200, response.body
    body = response.json()
    choice = body["choices"][0]
    assert body["usage"]["completion_tokens"] == request["max_tokens"], body["usage"]
    return {"text": choice["text"], "logprobs": choice["logprobs"]}


def alone(server):
    return [answer(server, request) for request in PROBES]


def crowd(server):
    """Eight choices that start at once and grow to ten blocks each: whatever the timing, a small pool runs out."""
    response = server.complete(prompt=[5, 6, 7], n=8, max_tokens=150, ignore_eos=True, temperature=1.0, seed=7)
    assert response.status == 200, response.body


def together(server, company_seed, crowds=0):
    company = requests(company_seed, BATCH - NUM_PROMPTS + 8)
    order = list(range(NUM_PROMPTS + len(company)))
    random.Random(company_seed).shuffle(order)
    work = [lambda i=i: answer(server, (PROBES + company)[i]) for i in order]
    answers = in_parallel([lambda: crowd(server)] * crowds + work)[crowds:]
    by_index = dict(zip(order, answers))
    return [by_index[i] for i in range(NUM_PROMPTS)]


def compare(name, answers, expected):
    different = [i for i in range(NUM_PROMPTS) if answers[i] != expected[i]]
    print(f"{name}: {NUM_PROMPTS - len(different)} of {NUM_PROMPTS} the same", flush=True)
    for i in different[:3]:
        print(f"  prompt {i}:\n    {expected[i]}\n    {answers[i]}")
    return not different


def main():
    nibble_process.binary()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or nibble_process.quantized(GOLDEN / "llama3", pathlib.Path(folder) / "int4")
        # The limit of a wait is not the subject: a sanitizer on a busy machine passes the usual one.
        common = ("--max-model-len", 256, "--queue-timeout", 600)
        with Server(model, *common, "--max-num-seqs", 1, "--threads", 1, "--no-enable-prefix-caching") as server:
            expected = alone(server)
        assert len({str(a) for a in expected}) == NUM_PROMPTS, "the prompts do not differ enough to prove anything"

        with Server(model, *common, "--max-num-seqs", BATCH, "--threads", 2, "--max-num-batched-tokens", 160) as server:
            good &= compare("batch of 32, 2 threads, chunked prefill", together(server, 1), expected)
            cold = server.metrics()["vllm:prefix_cache_hits_total"]
            good &= compare("warm prefix cache", alone(server), expected)
            hits = server.metrics()["vllm:prefix_cache_hits_total"] - cold
            print(f"  prefix cache hits: {hits:.0f} tokens")
            good &= hits > 0

        with Server(model, *common, "--max-num-seqs", BATCH, "--threads", 1,
                    "--num-gpu-blocks-override", args.blocks) as server:
            good &= compare(f"{args.blocks} blocks, 1 thread", together(server, 2, crowds=3), expected)
            preemptions = server.metrics()["vllm:num_preemptions_total"]
            print(f"  preemptions: {preemptions:.0f}")
            good &= preemptions > 0

        with Server(model, *common, "--max-num-seqs", BATCH, "--threads", 2, "--num-gpu-blocks-override", args.blocks,
                    "--kv-offloading-size", 0.125) as server:
            good &= compare(f"{args.blocks} blocks and host memory", together(server, 4, crowds=3), expected)
            good &= compare("again, from host memory", alone(server), expected)
            hits = server.metrics()["vllm:external_prefix_cache_hits_total"]
            print(f"  host memory hits: {hits:.0f} tokens")
            good &= hits > 0

        for isa in args.isa.split(",") if args.isa else machine_isas():
            with Server(model, *common, "--max-num-seqs", BATCH, "--threads", 2, "--isa", isa) as server:
                good &= compare(f"{isa}, batch of 32", together(server, 3), expected)
    return 0 if good else 1


sys.exit(main())
