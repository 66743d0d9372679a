"""Seeds of the fuzz targets safetensors and gguf: small valid files, and some that are nearly valid.

Usage: make_fuzz_models.py fuzz/corpus         (standard library only; writes corpus/safetensors and corpus/gguf)
"""

import json
import pathlib
import struct
import sys

BASE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4, "tie_word_embeddings": True}
WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1}


def data(size):
    """Bytes whose every 16-bit and 32-bit word is a finite number."""
    return bytes((i * 37) % 60 for i in range(size))


def matrices(config):
    h, inner = config["hidden_size"], config["intermediate_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]
    at = "model.layers.0."
    return {at + "self_attn.q_proj": (h, h), at + "self_attn.k_proj": (kv, h), at + "self_attn.v_proj": (kv, h),
            at + "self_attn.o_proj": (h, h), at + "mlp.gate_proj": (inner, h), at + "mlp.up_proj": (inner, h),
            at + "mlp.down_proj": (h, inner)}


def safetensors(tensors):
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, content) in tensors.items():
        size = WIDTH[dtype]
        for dim in shape:
            size *= dim
        content = data(size) if content is None else content
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + size]}
        body += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def folder(config, dtype="F16", packed=None):
    h = config["hidden_size"]
    tensors = {"model.embed_tokens.weight": (dtype, (config["vocab_size"], h), None)}
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        tensors[name + ".weight"] = ("F32", (h,), None)
    if config["model_type"] == "qwen3":
        for name in ("q_norm", "k_norm"):
            tensors[f"model.layers.0.self_attn.{name}.weight"] = ("F32", (h // config["num_attention_heads"],), None)
    for name, (rows, cols) in matrices(config).items():
        if packed is None:
            tensors[name + ".weight"] = (dtype, (rows, cols), None)
        else:
            bits, groups, symmetric, plain = packed
            if plain:
                tensors[name + ".weight"] = ("I8", (rows, cols), None)
            else:
                tensors[name + ".weight_packed"] = ("I32", (rows, cols * bits // 32), None)
                tensors[name + ".weight_shape"] = ("I64", (2,), struct.pack("<2q", rows, cols))
            tensors[name + ".weight_scale"] = ("F16", (rows, groups), None)
            if not symmetric:
                tensors[name + ".weight_zero_point"] = (("I8", (rows, groups), None) if plain else
                                                        ("I32", (rows * bits // 32, groups), None))
        if config["model_type"] == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
            tensors[name + ".bias"] = (dtype, (rows,), None)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (dtype, (config["vocab_size"], h), None)
    return json.dumps(config).encode() + b"\0" + safetensors(tensors)


def quantized(bits, group_size, symmetric, fmt="pack-quantized", targets=("Linear",), **more):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric,
               "strategy": "group" if group_size else "channel", "group_size": group_size}
    return {**BASE, "quantization_config": {
        "quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": list(targets), "weights": weights}},
        "ignore": ["lm_head"], **more}}


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(keys, tensors, version=3):
    body, infos = b"", b""
    for name, dims, kind, content in tensors:
        infos += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}q", *dims)
        infos += struct.pack("<IQ", kind, len(body))
        body += content + b"\0" * (-len(content) % 32)
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, value in keys.items():
        out += text(name) + value
    out += infos
    return out + b"\0" * (-len(out) % 32) + body


def u32(v): return struct.pack("<II", 4, v)
def f32(v): return struct.pack("<If", 6, v)
def flag(v): return struct.pack("<IB", 7, v)
def string(v): return struct.pack("<I", 8) + text(v)
def strings(v): return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
def array(kind, code, v): return struct.pack("<IIQ", 9, kind, len(v)) + struct.pack(f"<{len(v)}{code}", *v)


def gguf_model(arch, kind, more=None, extra=(), tied=True, heads=None):
    block = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2), 12: (256, 144)}[kind]
    keys = {"general.architecture": string(arch), f"{arch}.block_count": u32(1), f"{arch}.context_length": u32(64),
            f"{arch}.embedding_length": u32(32), f"{arch}.feed_forward_length": u32(32),
            f"{arch}.attention.head_count": u32(2), f"{arch}.attention.head_count_kv": heads or u32(1),
            f"{arch}.attention.layer_norm_rms_epsilon": f32(1e-5), f"{arch}.rope.freq_base": f32(10000.0),
            "tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("smollm"),
            "tokenizer.ggml.tokens": strings(["a", "b", "c", "d"]),
            "tokenizer.ggml.scores": array(6, "f", [0, -1, -2, -3]),
            "tokenizer.ggml.token_type": array(5, "i", [3, 1, 1, 6]), "tokenizer.ggml.merges": strings(["a b"]),
            "tokenizer.ggml.bos_token_id": u32(0), "tokenizer.ggml.eos_token_id": u32(1),
            "tokenizer.ggml.add_bos_token": flag(0), "tokenizer.chat_template": string("{{ messages }}"),
            **(more or {})}
    tensors = [("token_embd.weight", (32, 4), kind, data(4 * 32 // block[0] * block[1]))]
    norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
    shapes = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    tensors += [(name + ".weight", (32,), 0, data(128)) for name in norms]
    if arch == "qwen3":
        tensors += [(f"blk.0.{name}.weight", (16,), 0, data(64)) for name in ("attn_q_norm", "attn_k_norm")]
    for name, rows in shapes.items():
        tensors.append((f"blk.0.{name}.weight", (32, rows), kind, data(rows * 32 // block[0] * block[1])))
        if arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
            tensors.append((f"blk.0.{name}.bias", (rows,), 0, data(rows * 4)))
    if not tied:
        tensors.append(("output.weight", (32, 4), kind, data(4 * 32 // block[0] * block[1])))
    return gguf(keys, tensors + list(extra))


def main(out):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}
    files = {
        "llama_f32": folder({**BASE, "rope_scaling": llama3, "eos_token_id": [1, 2]}, "F32"),
        "mistral_bf16": folder({**BASE, "model_type": "mistral", "sliding_window": 8, "dtype": "bfloat16"}, "BF16"),
        "qwen2": folder({**BASE, "model_type": "qwen2", "tie_word_embeddings": False, "rope_parameters": yarn}),
        "qwen3": folder({**BASE, "model_type": "qwen3", "head_dim": 16, "torch_dtype": "float16",
                         "layer_types": ["full_attention"]}),
        "ct4": folder(quantized(4, 16, True), packed=(4, 2, True, False)),
        "ct4_asym": folder(quantized(4, 16, False), packed=(4, 2, False, False)),
        "ct8": folder(quantized(8, None, True, targets=["re:model.layers.*"]), packed=(8, 1, True, False)),
        "ct8_asym": folder(quantized(8, None, False), packed=(8, 1, False, False)),
        "int8": folder(quantized(8, None, True, "int-quantized"), packed=(8, 1, True, True)),
        "int8_asym": folder(quantized(8, None, False, "naive-quantized", kv_cache_scheme={"num_bits": 8}),
                            packed=(8, 1, False, True)),
        "undeclared": folder(BASE, packed=(8, 1, True, False)),
        "wrong_bits": folder(quantized(8, 16, True), packed=(4, 2, True, False)),
        "gptq": folder({**BASE, "quantization_config": {"quant_method": "gptq"}}),
        "dynamic_rope": folder({**BASE, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        "header_only": b"\0" + safetensors({"a": ("F32", (2, 2), None), "b": ("I64", (), None)}),
    }
    # Folders that are refused, each for another reason.
    ct4, grid = (4, 2, True, False), quantized(4, 16, True)["quantization_config"]["config_groups"]["group_0"]
    wrong_configs = {
        "transform": quantized(4, 16, True, transform_config={"a": 1}), "regex": quantized(4, 16, True, targets=["re:("]),
        "other_target": quantized(4, 16, True, targets=["re:.*q_proj", "model.norm"]),
        "format": quantized(4, 16, True, "marlin-24"), "zeros": quantized(4, 16, False),
        "groups": quantized(4, 8, True), "no_groups": quantized(4, 16, True, config_groups=1),
        "no_method": {**BASE, "quantization_config": {"bits": 4}},
        "other_method": {**BASE, "quantization_config": {"quant_method": "hqq"}},
        **{f"grid_{key}": quantized(4, 16, True, config_groups={"g": {**grid, "weights": {**grid["weights"], key: value}}})
           for key, value in (("type", "float"), ("num_bits", 3), ("strategy", "tensor"), ("group_size", None),
                              ("actorder", "group"))},
        "no_weights": quantized(4, 16, True, config_groups={"g": {"targets": ["Linear"]}}),
        "ignored": quantized(4, 16, True, ignore=["re:.*up_proj"], config_groups={"g": {**grid, "input_activations": {"a": 1}}}),
        "gelu": {**BASE, "hidden_act": "gelu"}, "partial": {**BASE, "partial_rotary_factor": 0.5},
        "by_layer": {**BASE, "rope_parameters": {"full_attention": {}}},
        "mscale": {**BASE, "rope_scaling": {**yarn, "mscale": 1.0}}, "heads": {**BASE, "num_key_value_heads": 3},
        "mixed": {**BASE, "layer_types": ["sliding_attention"]}, "phi": {**BASE, "model_type": "phi3"},
        "layers": {**BASE, "num_hidden_layers": 2}, "wider": {**BASE, "intermediate_size": 64},
    }
    files.update({"wrong_" + name: folder({**config, "intermediate_size": 32, "num_hidden_layers": 1,
                                           "num_key_value_heads": 1, "model_type": "llama"}, packed=ct4)
                  .replace(json.dumps({**config, "intermediate_size": 32, "num_hidden_layers": 1,
                                       "num_key_value_heads": 1, "model_type": "llama"}).encode(),
                           json.dumps(config).encode(), 1) for name, config in wrong_configs.items()})
    files["chat"] = folder({**BASE, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "temperature": 0.7, "top_k": 5,
                            "do_sample": True, "chat_template": [{"name": "default", "template": "{{ messages }}"}],
                            "rope_scaling": {"type": "linear", "factor": 2.0}, "extra_bias": 1})
    divisors = struct.pack("<8f", *[1.0] * 8)
    models = {
        "llama_f32": gguf_model("llama", 0), "llama_f16": gguf_model("llama", 1, tied=False),
        "llama_bf16": gguf_model("llama", 30), "llama_q4_0": gguf_model("llama", 2),
        "llama_q4_1": gguf_model("llama", 3), "llama_q8_0": gguf_model("llama", 8),
        "qwen2": gguf_model("qwen2", 8), "qwen3": gguf_model("qwen3", 2),
        "heads": gguf_model("llama", 8, heads=array(5, "i", [1])),
        "window": gguf_model("llama", 8, {"llama.attention.sliding_window": u32(4)}),
        "yarn": gguf_model("llama", 8, {"llama.rope.scaling.type": string("yarn"),
                                        "llama.rope.scaling.factor": f32(4.0),
                                        "llama.rope.scaling.attn_factor": f32(1.0),
                                        "llama.rope.scaling.original_context_length": u32(16)}),
        "rope_freqs": gguf_model("llama", 8, extra=[("rope_freqs.weight", (8,), 0, divisors)]),
        "unused": gguf_model("llama", 8, extra=[("other.weight", (256,), 12, data(144))]),
        "gemma": gguf_model("gemma", 8), "version2": gguf({}, [], 2), "empty": gguf({}, []),
        "kinds": gguf({"a": struct.pack("<IB", 0, 1), "b": struct.pack("<Ib", 1, -1), "c": struct.pack("<IH", 2, 1),
                       "d": struct.pack("<Ih", 3, -1), "e": struct.pack("<Ii", 5, -1), "f": struct.pack("<IQ", 10, 1),
                       "g": struct.pack("<Iq", 11, -1), "h": struct.pack("<Id", 12, 0.5),
                       "general.alignment": u32(32), "i": array(7, "B", [0, 1]), "j": array(10, "Q", [1]),
                       "k": array(12, "d", [0.5]), "split.count": struct.pack("<IH", 2, 2)}, []),
    }
    for kind, contents in (("safetensors", files), ("gguf", models)):
        (out / kind).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / kind / name).write_bytes(content)


main(pathlib.Path(sys.argv[1]))
