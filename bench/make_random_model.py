"""A model of Llama-3.2-1B's shape with random weights, for nibble and for llama.cpp, to compare speed on.

Usage: make_random_model.py OUT      (needs numpy, safetensors, gguf; 1.5 GB of disk)
Writes OUT/int4-g64 (compressed-tensors, 4 bit in groups of 64, tables F16) and OUT/q4_0.gguf (Q4_0, table Q8_0). The
weights are noise and differ between the two; only their sizes matter.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 8192, 16, 32, 8, 64, 128256
LINEARS = {
    "self_attn.q_proj": ("attn_q", HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": ("ffn_gate", INNER, HIDDEN),
    "mlp.up_proj": ("ffn_up", INNER, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, INNER),
}
rng = np.random.default_rng(20261124)


def write_compressed_tensors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": (rng.standard_normal((VOCAB, HIDDEN), np.float32) * 0.02).astype(np.float16),
               "model.norm.weight": np.ones(HIDDEN, np.float16)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = np.ones(HIDDEN, np.float16)
        tensors[at + "post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float16)
        for module, (_, rows, cols) in LINEARS.items():
            name = at + module + ".weight"
            tensors[name + "_packed"] = rng.integers(-2**31, 2**31, (rows, cols // 8), dtype=np.int32)
            tensors[name + "_scale"] = np.full((rows, cols // 64), 0.004, np.float16)
            tensors[name + "_shape"] = np.array([rows, cols], np.int64)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
              "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
              "tie_word_embeddings": True, "torch_dtype": "float16",
              "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                                      "quantization_status": "compressed", "ignore": ["lm_head"],
                                      "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def noise(rows, cols, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    data[:, :, :2] = np.array([0.004], np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(2)
    q4, q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", noise(VOCAB, HIDDEN, q8), raw_dtype=q8)
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


out = pathlib.Path(sys.argv[1])
write_compressed_tensors(out / "int4-g64")
write_gguf(out / "q4_0.gguf")
