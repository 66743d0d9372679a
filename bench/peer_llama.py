"""Speed of llama.cpp on a GGUF, through the PyPI package llama-cpp-python, as JSON: the peer of `nibble bench`.

Usage: peer_llama.py MODEL.gguf [--threads 2] [--iterations 3]
Prefill of 512 tokens, then 128 tokens of decode at batch 1; 32 sequences of 32 prompt tokens and 128 tokens each.
Flash attention on for one sequence, off for many: the peer's best settings on CPUs.
"""

import argparse
import json
import statistics
import time

import llama_cpp as lc

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--iterations", type=int, default=3)
args = parser.parse_args()

lc.llama_backend_init()
silent = lc.llama_log_callback(lambda *_: None)
lc.llama_log_set(silent, None)
model = lc.llama_model_load_from_file(args.model.encode(), lc.llama_model_default_params())
vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))


def context(sequences, tokens, flash):
    params = lc.llama_context_default_params()
    params.n_ctx = tokens * sequences
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn_type = 1 if flash else 0
    return lc.llama_init_from_model(model, params)


def decode(ctx, batch, entries):
    """entries: (token, position, sequence, wants_logits)"""
    for i, (token, position, sequence, logits) in enumerate(entries):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, logits
        batch.seq_id[i][0] = sequence
    batch.n_tokens = len(entries)
    assert lc.llama_decode(ctx, batch) == 0
    lc.llama_synchronize(ctx)


def run(sequences, prompt, output):
    ctx = context(sequences, prompt + output, flash=sequences == 1)
    batch = lc.llama_batch_init(512, 0, 1)
    prefill, decoding = [], []
    for iteration in range(args.iterations + 1):
        lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
        todo = [(1 + (t * 7919 + s * 104729) % (vocab - 1), t, s, t == prompt - 1)
                for s in range(sequences) for t in range(prompt)]
        begin = time.perf_counter()
        for i in range(0, len(todo), 512):
            decode(ctx, batch, todo[i:i + 512])
        middle = time.perf_counter()
        for step in range(output - 1):
            decode(ctx, batch, [(17 + step, prompt + step, s, True) for s in range(sequences)])
        end = time.perf_counter()
        if iteration > 0:
            prefill.append(prompt * sequences / (middle - begin))
            decoding.append((output - 1) * sequences / (end - middle))
    lc.llama_batch_free(batch)
    lc.llama_free(ctx)
    return {"batch": sequences, "prompt_tokens": prompt, "output_tokens": output,
            "prefill_tokens_per_s": statistics.median(prefill), "decode_tokens_per_s": statistics.median(decoding),
            "decode_tokens_per_s_min": min(decoding), "decode_tokens_per_s_max": max(decoding)}


print(json.dumps({"engine": "llama-cpp-python " + lc.__version__, "model": args.model.split("/")[-1],
                  "features": lc.llama_print_system_info().decode(), "threads": args.threads, "batches": [run(1, 512, 128), run(32, 32, 128)]}, indent=1))
