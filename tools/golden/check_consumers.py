"""Does another program read what nibble wrote, and compute the same?

Usage: check_consumers.py NIBBLE MODEL READER [--text FILE] [--windows 2] [--context 512] [--bound 2e-3]
READER: transformers (compressed-tensors, bitsandbytes, plain folders), gptqmodel (GPTQ, AWQ) or llama.cpp (a .gguf
file), from a Python that has it: transformers and bitsandbytes, gptqmodel, or llama-cpp-python.

The text is cut into windows of tokens as `nibble eval` does; the perplexity of the same tokens in the other program is
printed beside nibble's (in torch also with the embedding and the head at the 8 bits that nibble serves, so that nothing
but arithmetic differs), and the greedy continuation of a prompt beside that of `nibble run`. Exits 1 if the perplexities
differ by more than the bound, relative: arithmetic alone stays below 1e-3.
"""

import argparse
import json
import math
import os
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("nibble")
parser.add_argument("model")
parser.add_argument("reader", choices=["transformers", "gptqmodel", "llama.cpp"])
parser.add_argument("--text", required=True)
parser.add_argument("--windows", type=int, default=2)
parser.add_argument("--context", type=int, default=512)
parser.add_argument("--bound", type=float, default=2e-3)
parser.add_argument("--prompt", default="The capital of France is")
parser.add_argument("--max-tokens", type=int, default=16)
args = parser.parse_args()


def run(*command):
    return subprocess.run([args.nibble, *command], check=True, capture_output=True, text=True).stdout


def tokenizer(request):
    out = subprocess.run([args.nibble, "tokenize", args.model, "--jsonl"], check=True, capture_output=True, text=True,
                         input=json.dumps(request) + "\n").stdout
    return json.loads(out)


def nll_of(logits, ids):
    """Sum of -log p of tokens 1.. given rows of logits (numpy, float32)."""
    import numpy
    rows = logits[: len(ids) - 1].astype(numpy.float64)
    rows -= rows.max(-1, keepdims=True)
    log_p = rows - numpy.log(numpy.exp(rows).sum(-1, keepdims=True))
    return -log_p[numpy.arange(len(ids) - 1), ids[1:]].sum()


class Torch:
    """A model of transformers on the CPU, in float32."""

    def __init__(self):
        import torch
        self.torch = torch
        torch.set_num_threads(2)
        if args.reader == "gptqmodel":
            self.model = self.load_gptqmodel()
        else:
            from transformers import AutoModelForCausalLM
            self.model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, device_map="cpu").eval()
            for layer in self.model.modules():  # bitsandbytes keeps to the dtype that the folder says
                for value in layer.parameters(recurse=False):
                    if value.dtype in (torch.float16, torch.bfloat16):
                        value.data = value.data.float()
                if hasattr(layer, "compute_dtype"):
                    layer.compute_dtype = torch.float32
                    layer.weight.quant_state.dtype = torch.float32

    def load_gptqmodel(self):
        """Its kernels are for 16 bits only, so its layers are decoded, by its own code, to float32."""
        os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
        from gptqmodel import BACKEND, GPTQModel
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
        from safetensors.torch import load_file
        torch = self.torch
        with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
            awq = json.load(file)["quantization_config"]["quant_method"] == "awq"
        backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
        model = GPTQModel.load(args.model, backend=backend, device="cpu", dtype=torch.bfloat16).model.eval()
        stored = load_file(os.path.join(args.model, "model.safetensors"))
        for name, layer in list(model.named_modules()):
            if not hasattr(layer, "qweight"):
                continue
            scales = stored[name + ".scales"].float()  # loading rounds them to bfloat16
            if awq:
                weight = dequantize_gemm(layer.qweight, layer.qzeros, scales, layer.bits, layer.group_size)
            else:
                layer.scales = scales
                weight = layer.dequantize_weight()
            linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            with torch.no_grad():
                linear.weight.copy_(weight.float().T)
                if layer.bias is not None:
                    linear.bias.copy_(layer.bias)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.dtype == torch.bfloat16:
                    value.data = stored[name].float() if name in stored else value.data.float()
        return model

    def serve_tables_as_nibble(self):
        """Embedding and head at 8 bits in groups of 32, if they are floats and the linears are not (docs/formats)."""
        with self.torch.no_grad():
            seen = set()
            for layer in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                weight = layer.weight
                if weight.data_ptr() in seen or not weight.is_floating_point():
                    continue
                seen.add(weight.data_ptr())
                groups = weight.float().view(weight.shape[0], -1, 32)
                scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
                codes = self.torch.where(scale > 0, (groups / scale).round(), 0).clamp(-127, 127)
                weight.copy_((codes * scale).view_as(weight))

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


class LlamaCpp:
    def __init__(self):
        import llama_cpp
        self.model = llama_cpp.Llama(args.model, n_ctx=args.context, n_batch=args.context, logits_all=True, verbose=False,
                                     n_threads=2)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return self.model.scores[: len(ids)]


def main():
    ours = json.loads(run("eval", args.model, "--perplexity", args.text, "--context", str(args.context), "--windows",
                          str(args.windows), "--activations", "int16", "--kv-cache-dtype", "float32", "--json"))
    with open(args.text, encoding="utf-8", newline="") as file:
        text = file.read()[: args.windows * args.context * 12]
    tokens = tokenizer({"text": text})["ids"]
    prompt = tokenizer({"text": args.prompt})["ids"]
    reader = LlamaCpp() if args.reader == "llama.cpp" else Torch()

    def perplexity():
        nll, count = 0.0, 0
        for begin in range(0, args.windows * args.context, args.context):
            ids = tokens[begin: begin + args.context]
            assert len(ids) == args.context, "the text is too short"
            nll += nll_of(reader.logits(ids), ids)
            count += len(ids) - 1
        return math.exp(nll / count)

    as_stored = theirs = perplexity()
    if isinstance(reader, Torch):
        reader.serve_tables_as_nibble()
        theirs = perplexity()
    ids = list(prompt)
    for _ in range(args.max_tokens):
        ids.append(int(reader.logits(ids)[-1].argmax()))
    greedy = json.loads(run("run", args.model, "--prompt", args.prompt, "--temperature", "0", "--max-tokens",
                            str(args.max_tokens), "--json"))["text"]
    difference = abs(theirs / ours["perplexity"] - 1)
    print(json.dumps({"model": args.model, "reader": args.reader, "nibble": ours["perplexity"], "theirs": theirs,
                      "theirs_as_stored": as_stored,
                      "relative_difference": difference, "their_text": tokenizer({"ids": ids[len(prompt):]})["text"], "our_text": greedy}))
    sys.exit(0 if difference <= args.bound else 1)


main()
