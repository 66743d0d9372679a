"""A model of a known shape with random weights, for nibble and for llama.cpp, to compare speed on.

Usage: make_random_model.py OUT [--shape llama-3.2-1b] [--group 64] [--format int4] [--format q4_0]
       (needs numpy, safetensors; gguf for q4_0)
Writes OUT/int4-g64 (compressed-tensors, 4 bit in groups of 64, tables F16), OUT/bf16 (--format bf16), OUT/nf4
(--format nf4: bitsandbytes, blocks of 64) and OUT/q4_0.gguf (Q4_0, table Q8_0). The weights are noise and differ
between the files; only their sizes matter.
"""

import argparse
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

#        hidden, inner, layers, heads, kv_heads, head_dim, vocab, tied, rope_theta
SHAPES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256, True, 500000.0),
    "llama-2-7b": (4096, 11008, 32, 32, 32, 128, 32000, False, 10000.0),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, False, 500000.0),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 128, 32000, False, 10000.0),
}
parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
parser.add_argument("--group", type=int, default=64)
parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
parser.add_argument("--format", action="append", choices=["int4", "bf16", "nf4", "q4_0"])
args = parser.parse_args()
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, TIED, THETA = SHAPES[args.shape]
LAYERS = args.layers or LAYERS
LINEARS = {
    "self_attn.q_proj": ("attn_q", HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": ("ffn_gate", INNER, HIDDEN),
    "mlp.up_proj": ("ffn_up", INNER, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, INNER),
}
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], np.float32)
rng = np.random.default_rng(20261124)


def config(kind):
    quantized = kind != "bf16"
    out = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
           "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
           "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
           "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": THETA, "hidden_act": "silu",
           "tie_word_embeddings": TIED, "torch_dtype": "float16" if quantized else "bfloat16"}
    if kind == "nf4":
        out["quantization_config"] = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float16",
            "bnb_4bit_quant_storage": "uint8"}
    elif kind == "int4":
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": args.group}
        out["quantization_config"] = {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    return json.dumps(out, indent=1)


def write_tokenizer(folder):
    """A byte a token, and names for the rest of the vocabulary: enough for a server to be loaded with text."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in plain}
    shown.update({byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)})
    vocab = {shown[byte]: byte for byte in range(256)}
    vocab.update({f"t{token}": token for token in range(256, VOCAB - 1)})
    end = {"id": VOCAB - 1, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def write_folder(folder, kind):
    """One safetensors file a layer, and an index: bounded memory whatever the shape."""
    folder.mkdir(parents=True, exist_ok=True)
    where = {}
    quantized = kind != "bf16"

    def dense(rows, cols):
        # Noise in sign and mantissa, magnitudes of 2^-7 to 2^-6: for speed as good as normal numbers.
        bits = rng.integers(0, 2**16, (rows, cols), dtype=np.uint16)
        return (bits & 0x83FF | 0x2000 if quantized else bits & 0x807F | 0x3C00).view(np.float16)

    def save(name, tensors):
        if quantized:
            save_file(tensors, folder / name, {"format": "pt"})
        else:  # numpy has no bfloat16: the header by hand
            header, at = {"__metadata__": {"format": "pt"}}, 0
            for key, value in tensors.items():
                header[key] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [at, at + value.nbytes]}
                at += value.nbytes
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(folder / name, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for value in tensors.values():
                    file.write(np.ascontiguousarray(value).data)
        where.update(dict.fromkeys(tensors, name))

    one = np.ones(HIDDEN, np.float16)
    tables = {"model.embed_tokens.weight": dense(VOCAB, HIDDEN), "model.norm.weight": one}
    if not TIED:
        tables["lm_head.weight"] = dense(VOCAB, HIDDEN)
    save("tables.safetensors", tables)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors = {at + "input_layernorm.weight": one, at + "post_attention_layernorm.weight": one}
        for module, (_, rows, cols) in LINEARS.items():
            name = at + module + ".weight"
            if kind == "nf4":
                state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [rows, cols]}
                tensors[name] = rng.integers(0, 256, (rows * cols // 2, 1), dtype=np.uint8)
                tensors[name + ".absmax"] = np.full(rows * cols // 64, 0.03, np.float32)
                tensors[name + ".quant_map"] = NF4
                tensors[name + ".quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
            elif kind == "int4":
                tensors[name + "_packed"] = rng.integers(-2**31, 2**31, (rows, cols // 8), dtype=np.int32)
                tensors[name + "_scale"] = np.full((rows, cols // args.group), 0.004, np.float16)
                tensors[name + "_shape"] = np.array([rows, cols], np.int64)
            else:
                tensors[name] = dense(rows, cols)
        save(f"layer-{layer:03}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(config(kind))
    write_tokenizer(folder)


def write_gguf(path):
    import gguf

    def noise(rows, cols, kind):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
        data[:, :, :2] = np.array([0.004], np.float16).view(np.uint8)
        return data.reshape(rows, -1)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(2)
    q4, q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", noise(VOCAB, HIDDEN, q8), raw_dtype=q8)
    if not TIED:
        writer.add_tensor("output.weight", noise(VOCAB, HIDDEN, q8), raw_dtype=q8)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(HIDDEN, np.float32))
        for name, rows, cols in LINEARS.values():
            writer.add_tensor(f"blk.{layer}.{name}.weight", noise(rows, cols, q4), raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for kind in args.format or ["int4", "q4_0"]:
    if kind == "q4_0":
        args.out.mkdir(parents=True, exist_ok=True)
        write_gguf(args.out / "q4_0.gguf")
    else:
        write_folder(args.out / (f"int4-g{args.group}" if kind == "int4" else kind), kind)
