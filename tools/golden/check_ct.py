"""Reads a compressed-tensors checkpoint that nibble wrote with transformers, in float32 on the CPU.

Usage: check_ct.py FOLDER TEXTFILE [--reference SOURCE] [--windows 10] [--context 2048] [--prompt TEXT] [--max-tokens 32]
                   [--dequantize]
Prints one line: {"perplexity": .., "windows": .., "tokens": .., "greedy": "..", "greedy_ids": [..]}
and with --reference, the folder of a model of the same tokens, also "reference_perplexity", "kl_mean", "kl_p99", "top1".

Perplexity: the file is tokenized once without special tokens and cut into disjoint windows; in each, tokens 2..C are
scored; the tail is dropped (what `nibble eval --perplexity` and certificates do). KL(reference || model) is over all tokens
of a position, its 99th percentile over positions, top1 the share of them with the same likeliest token. The text of
certificates is data/certificate_text.txt, their context 512. Greedy: the prompt as it is, without special tokens
or template, --max-tokens tokens, stopping at an end token.
--dequantize decodes at load (CompressedTensorsConfig(dequantize=True)) instead of at the first forward pass.
"""

import argparse
import json
import math

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("text")
parser.add_argument("--reference")
parser.add_argument("--windows", type=int, default=10, help="only the first N; 0: all, which takes a quarter of an hour")
parser.add_argument("--context", type=int, default=2048)
parser.add_argument("--prompt", default="The capital of France is")
parser.add_argument("--max-tokens", type=int, default=32)
parser.add_argument("--dequantize", action="store_true")
args = parser.parse_args()

plain_compress = PackedQuantizationCompressor.compress.__func__


def compress(cls, state_dict, scheme):
    """transformers 5.23 builds the empty model by calling compress on meta tensors, where compressed-tensors 0.20
    forgets to pack the zero points: an asymmetric checkpoint then fails to load. Give it the packed shape."""
    packed = plain_compress(cls, state_dict, scheme)
    zero_point = packed.get("weight_zero_point")
    if zero_point is not None and zero_point.device.type == "meta":
        rows = -(-zero_point.shape[0] * scheme.weights.num_bits // 32)
        packed["weight_zero_point"] = torch.empty((rows, zero_point.shape[1]), dtype=torch.int32, device="meta")
    return packed


PackedQuantizationCompressor.compress = classmethod(compress)

options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if args.dequantize else {}
model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, **options).eval()
reference = args.reference and AutoModelForCausalLM.from_pretrained(args.reference, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(args.folder)


def log_probabilities(of, window):
    return torch.log_softmax(of(window[None], use_cache=False).logits[0, :-1].double(), -1)


def negative_log_likelihoods(log_p, window):
    return -log_p.gather(1, window[1:, None])[:, 0]


def score(windows):
    nll, reference_nll, kl, same_top = [], [], [], []
    for window in windows:
        log_q = log_probabilities(model, window)
        nll.append(negative_log_likelihoods(log_q, window))
        if reference:
            log_p = log_probabilities(reference, window)
            reference_nll.append(negative_log_likelihoods(log_p, window))
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
            same_top.append((log_p.argmax(-1) == log_q.argmax(-1)).double())
    out = {"perplexity": torch.cat(nll).mean().exp().item()}
    if reference:
        sorted_kl = torch.cat(kl).sort().values
        out |= {"reference_perplexity": torch.cat(reference_nll).mean().exp().item(), "kl_mean": sorted_kl.mean().item(),
                "kl_p99": sorted_kl[(len(sorted_kl) - 1) * 99 // 100].item(), "top1": torch.cat(same_top).mean().item()}
    return out


with open(args.text, encoding="utf-8", newline="") as file:
    ids = tokenizer(file.read(), add_special_tokens=False, verbose=False)["input_ids"]
windows = torch.tensor(ids[: len(ids) // args.context * args.context]).view(-1, args.context)[: args.windows or None]
with torch.no_grad():
    numbers = score(windows) if len(windows) else {"perplexity": None}
    prompt = tokenizer(args.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.max_tokens,
                            do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0)
greedy = output[0, prompt.shape[1]:].tolist()
print(json.dumps(numbers | {"windows": len(windows), "tokens": len(ids),
                            "greedy": tokenizer.decode(greedy, skip_special_tokens=True), "greedy_ids": greedy}))
