"""Tiny random models of every architecture that nibble reads, with the logits that transformers computes.

Usage: make_models.py OUT [NAME...]  (tests/golden/models; the Python needs torch, transformers, tokenizers,
                                      safetensors, compressed-tensors: see OUT/PROVENANCE.md)
With names only those plain models are made, and the others stay as they are.

For every model OUT/<name>/ is a Hugging Face folder and OUT/<name>.expected.safetensors holds, in fp32 on the CPU,
eager attention:
  input_ids      I64 [40]            a fixed prompt
  logits         F32 [40, vocab]     of all its positions
  greedy         I64 [16]            the greedy continuation
  logits_kv_bf16, greedy_kv_bf16     the same when every key (after RoPE) and value is rounded to bfloat16, as in a
                                     BF16 cache: what a KV cache of that type must give
and the metadata `greedy_margin`, the smallest distance between the best and the second-best logit on the way.
A random model whose margin is below 0.1 is drawn again (the next seed), so that a rounding does not decide a test.
"""

import hashlib
import json
import pathlib
import platform
import re
import shutil
import sys

import compressed_tensors
import numpy
import safetensors
import tokenizers
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import eager_attention_forward

SEED = 20261124
NUM_PROMPT = 40
NUM_GREEDY = 16
MIN_MARGIN = 0.1

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "initializer_range": 0.2, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
}
# Sizes that no vector width divides.
ODD = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 72,
       "vocab_size": 131}
QWEN = {k: v for k, v in BASE.items() if k not in ("attention_bias", "mlp_bias")}

# config.json exactly as written here: old and new spellings of dtype and RoPE both occur in the wild.
MODELS = {
    "llama2": {**BASE, "num_key_value_heads": 4, "rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 1,
               "torch_dtype": "float32"},
    "llama3": {**BASE, "num_hidden_layers": 3, "vocab_size": 320, "tie_word_embeddings": True, "head_dim": 16,
               "rope_theta": 500000.0,
               "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
               "bos_token_id": 0, "eos_token_id": [1, 3], "torch_dtype": "float32"},
    "mistral": {**QWEN, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 1,
                "rope_theta": 1000000.0, "sliding_window": None, "torch_dtype": "float32"},
    "mistral_window": {**QWEN, "architectures": ["MistralForCausalLM"], "model_type": "mistral", **ODD,
                       "rope_theta": 10000.0, "sliding_window": 12, "dtype": "float32"},
    "qwen2": {**QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
              "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 128,
              "max_window_layers": 2, "torch_dtype": "float32"},
    "qwen3": {**QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32,
              "tie_word_embeddings": True, "attention_bias": False, "rms_norm_eps": 1e-6,
              "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
              "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "dtype": "float32"},
    "llama_bias": {**BASE, "attention_bias": True, "mlp_bias": True, **ODD,
                   "rope_theta": 10000.0, "torch_dtype": "float32"},
    "rope_linear": {**BASE, **ODD, "tie_word_embeddings": True,
                    "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0},
                    "torch_dtype": "float32"},
    "rope_yarn": {**BASE, **ODD, "tie_word_embeddings": True,
                  "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                      "original_max_position_embeddings": 64}, "dtype": "float32"},
}
# Gemma 3 as new files spell it, and as the first ones did.
GEMMA = {**{k: v for k, v in BASE.items() if k not in ("attention_bias", "mlp_bias", "hidden_act")},
         "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh",
         "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "attention_bias": False}
MODELS |= {
    "gemma3": {**GEMMA, "num_hidden_layers": 3, "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 12,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
               "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                                   "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
               "dtype": "float32"},
    "gemma3_legacy": {**GEMMA, **ODD, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 10,
                      "num_hidden_layers": 6, "sliding_window_pattern": 6, "rope_theta": 1000000.0,
                      "rope_local_base_freq": 10000.0, "rope_scaling": None, "torch_dtype": "float32"},
}
# The weights of llama_bias in three files, and those of llama2 rounded to bfloat16.
DERIVED = {"llama_bias_sharded": "llama_bias", "llama2_bf16": "llama2"}
COMPRESSED = {
    "ct_int4_sym_g32": QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32),
    "ct_int4_asym_g32": QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=32),
    "ct_int8_channel": QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel"),
}

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CORPUS = [
    "A small model speaks in small words, and the words repeat until the merges are learned.",
    "The engine takes the prompt, the scheduler takes the tokens, and the kernels take the time.",
    "The user asks what the weather is; the assistant answers that it does not know the weather.",
    "One block, two blocks, three blocks: the cache is full, and the newest sequence waits.",
    "The wind, the rain and the stone; the house on the hill and the road to the house.",
]


def kv_bf16_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Eager attention over keys and values as a bfloat16 cache keeps them."""
    return eager_attention_forward(module, query, key.bfloat16().float(), value.bfloat16().float(), attention_mask,
                                   scaling, dropout, **kwargs)


AttentionInterface.register("kv_bf16", kv_bf16_attention)
transformers.AttentionMaskInterface.register("kv_bf16", transformers.masking_utils.eager_mask)


def pack_zero_points_on_meta():
    """transformers 5.23 builds the empty model by calling compress on meta tensors, where compressed-tensors 0.20
    forgets to pack the zero points: an asymmetric checkpoint then fails to load. Give it the packed shape."""
    plain = PackedQuantizationCompressor.compress.__func__

    def compress(cls, state_dict, scheme):
        packed = plain(cls, state_dict, scheme)
        zero_point = packed.get("weight_zero_point")
        if zero_point is not None and zero_point.device.type == "meta":
            rows = -(-zero_point.shape[0] * scheme.weights.num_bits // 32)
            packed["weight_zero_point"] = torch.empty((rows, zero_point.shape[1]), dtype=torch.int32, device="meta")
        return packed

    PackedQuantizationCompressor.compress = classmethod(compress)


def random_weights(names_and_shapes, generator, gemma=False):
    """Matrices and biases normal, norms around one; embeddings and head so that logits spread over some units.
    Gemma adds the one itself, and multiplies embeddings by the root of their width."""
    weights = {}
    for name, shape in names_and_shapes:
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            # Gemma's blocks weigh as their last norms say: enough to outweigh the embedding.
            weights[name] = (2.0 if gemma and ".post_" in name else 0.0 if gemma else 1.0) + 0.2 * values
        elif name.endswith("bias"):
            weights[name] = 0.3 * values
        elif "embed_tokens" in name or "lm_head" in name:
            weights[name] = (0.2 if gemma else 0.5) * values
        else:
            weights[name] = 0.2 * values
    return weights


def load(folder, attention):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy_of(model, ids):
    """Greedy continuation by whole forward passes, end tokens ignored; and the smallest lead of the best token."""
    tokens, margin = list(ids), float("inf")
    for _ in range(NUM_GREEDY):
        best = logits_of(model, tokens)[-1].topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        tokens.append(logits_of(model, tokens)[-1].argmax().item())
    return tokens[len(ids):], margin


def expect(out, name):
    """Computes and writes the expected values; returns the margin."""
    config = json.loads((out / name / "config.json").read_text())
    ids = numpy.random.default_rng(SEED).integers(4, config["vocab_size"], NUM_PROMPT).tolist()
    tensors, margins = {"input_ids": torch.tensor(ids)}, []
    for attention, suffix in (("eager", ""), ("kv_bf16", "_kv_bf16")):
        model = load(out / name, attention)
        greedy, margin = greedy_of(model, ids)
        tensors["logits" + suffix] = logits_of(model, ids).contiguous()
        tensors["greedy" + suffix] = torch.tensor(greedy)
        margins.append(margin)
    save_file(tensors, out / f"{name}.expected.safetensors",
              {"greedy_margin": f"{min(margins):.4f}"})
    return min(margins)


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
                  "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def write_tokenizer(folder, vocab_size):
    """Byte-level BPE, trained on CORPUS, filled up to the vocabulary with reserved special tokens."""
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|eot|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 4, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())))
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(missing)])
    assert tokenizer.get_vocab_size() == vocab_size
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "add_bos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": 256,
        "chat_template": CHATML}, indent=2) + "\n")


def save_sharded(folder, weights, num_shards):
    names = list(weights)
    shard_of = {name: i * num_shards // len(names) for i, name in enumerate(names)}
    index = {"metadata": {"total_size": sum(w.numel() * w.element_size() for w in weights.values())}, "weight_map": {}}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {n: weights[n] for n in names if shard_of[n] == shard}
        save_file(part, folder / file, {"format": "pt"})
        index["weight_map"].update({n: file for n in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_plain(out, name, config):
    for seed in range(SEED, SEED + 100):
        folder = out / name
        write_config(folder, config)
        skeleton = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
        shapes = [(n, p.shape) for n, p in skeleton.named_parameters()]
        weights = random_weights(shapes, torch.Generator().manual_seed(seed), config["model_type"] == "gemma3_text")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        if expect(out, name) >= MIN_MARGIN:
            return seed
    raise SystemExit(f"{name}: no seed gives a clear greedy continuation")


def make_derived(out, name, source):
    config = dict(MODELS[source])
    weights = load_file(out / source / "model.safetensors")
    if name == "llama2_bf16":
        config["torch_dtype"] = "bfloat16"
        weights = {n: w.bfloat16() for n, w in weights.items()}
        write_config(out / name, config)
        save_file(weights, out / name / "model.safetensors", {"format": "pt"})
    else:
        write_config(out / name, config)
        save_sharded(out / name, weights, 3)
    margin = expect(out, name)
    assert margin > MIN_MARGIN / 2, (name, margin)


def quantize_linear(weight, args):
    """Scale and zero point by the library's own rule, from the range of each group (or row)."""
    size = args.group_size if args.strategy == "group" else weight.shape[1]
    groups = weight.float().view(weight.shape[0], -1, size)
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return scale.to(weight.dtype), zero_point


def make_compressed(out, name, args):
    config = {**BASE, "intermediate_size": 96, "rope_theta": 10000.0, "tie_word_embeddings": True,
              "torch_dtype": "bfloat16" if name == "ct_int4_sym_g32" else "float32"}
    dtype = getattr(torch, config["torch_dtype"])
    folder, dense = out / name, out / (name + ".dense")
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    quantization = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized", ignore=["lm_head"],
                                      quantization_status="compressed").to_dict()
    quantization["quant_method"] = "compressed-tensors"
    for seed in range(SEED, SEED + 100):
        write_config(dense, config)
        skeleton = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(dense))
        shapes = [(n, p.shape) for n, p in skeleton.named_parameters()]
        weights = random_weights(shapes, torch.Generator().manual_seed(seed))
        stored, decoded = {}, {}
        for n, w in weights.items():
            w = w.to(dtype)
            if not re.search(r"layers\..*_proj\.weight$", n):
                stored[n], decoded[n] = w, w.float()
                continue
            scale, zero_point = quantize_linear(w, args)
            # scales and weights widened to fp32 first: the decoded weights are exactly (code - zero) * scale
            decoded[n] = fake_quantize(w.float(), scale.float(), zero_point, args)
            parts = PackedQuantizationCompressor.compress(
                {"weight": w.float(), "weight_scale": scale.float(), "weight_zero_point": zero_point}, scheme)
            for key, value in parts.items():
                stored[n.removesuffix("weight") + key] = scale if key == "weight_scale" else value
        write_config(folder, {**config, "quantization_config": quantization})
        save_file({n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors", {"format": "pt"})
        save_file(decoded, dense / "model.safetensors", {"format": "pt"})
        margin = expect(out, name + ".dense")
        (out / f"{name}.dense.expected.safetensors").replace(out / f"{name}.expected.safetensors")
        # transformers reads the packed folder as the same model.
        expected = load_file(out / f"{name}.expected.safetensors")
        packed = load(folder, "eager")
        difference = (logits_of(packed, expected["input_ids"].tolist()) - expected["logits"]).abs().max().item()
        scale = expected["logits"].abs().max().item()
        shutil.rmtree(dense)
        assert difference <= 1e-4 * scale, (name, difference, scale)
        if margin >= MIN_MARGIN:
            return seed, difference
    raise SystemExit(f"{name}: no seed gives a clear greedy continuation")


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pack_zero_points_on_meta()
    chosen, seeds, notes = sys.argv[2:], {}, {}
    if chosen:
        for name, seed, note in re.findall(r"^\| (\w+) \| (\d+) \| (.*?) ?\|$", (out / "PROVENANCE.md").read_text(), re.M):
            seeds[name], notes[name] = seed, note
    else:
        make_all(out, seeds, notes)
    for name in chosen:
        seeds[name] = make_plain(out, name, MODELS[name])
        print(name, seeds[name], flush=True)
    write_provenance(out, seeds, notes)


def make_all(out, seeds, notes):
    for old in out.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, config in MODELS.items():
        seeds[name] = make_plain(out, name, config)
        print(name, seeds[name], flush=True)
    write_tokenizer(out / "llama3", MODELS["llama3"]["vocab_size"])
    for name, source in DERIVED.items():
        seeds[name] = seeds[source]
        make_derived(out, name, source)
    for name, args in COMPRESSED.items():
        seeds[name], difference = make_compressed(out, name, args)
        notes[name] = f"logits of the packed folder in transformers differ by {difference:.1e} at most"
        print(name, seeds[name], notes[name], flush=True)


def write_provenance(out, seeds, notes):
    lines = [
        "# Tiny random models and their logits", "",
        "Written by `tools/golden/make_models.py tests/golden/models`: random weights of our own drawing, nothing",
        "downloaded. The script's head says what each file holds.", "",
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"tokenizers {tokenizers.__version__},",
        f"safetensors {safetensors.__version__}, compressed-tensors {compressed_tensors.__version__}, "
        f"numpy {numpy.__version__}; float32 on the CPU, one thread.", "",
        "| model | seed | note |", "|---|---|---|"]
    lines += [f"| {name} | {seed} | {notes.get(name, '')} |" for name, seed in seeds.items()]
    lines += ["", "sha256:", "", "```"]
    for file in sorted(out.rglob("*")):
        if file.is_file() and file.name != "PROVENANCE.md":
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(out)}")
    lines += ["```", ""]
    (out / "PROVENANCE.md").write_text("\n".join(lines))


main()
