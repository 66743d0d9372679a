"""MXFP4 and NVFP4 as compressed-tensors writes them, with the weights that it decodes.

Usage: make_fp4.py OUT     (tests/golden/fp4; the Python needs torch and compressed-tensors: see OUT/PROVENANCE.md)

OUT/<name>/ is a folder of one random decoder block (config.json, model.safetensors), its linears quantized by the library's
compressor with the scales of its own rule; OUT/<name>.decoded.safetensors holds the F32 weights of two of them, decoded by
the library's own code, and as "source.<name>" what they were before.
"""

import hashlib
import json
import pathlib
import platform
import shutil
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor, unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

SEED = 20261127
HIDDEN, INNER, KV, VOCAB = 64, 128, 32, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
LINEARS = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
           "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
           "mlp.down_proj": (HIDDEN, INNER)}
DECODED = ("self_attn.k_proj", "mlp.down_proj")
FORMATS = {"ct_mxfp4": ("MXFP4A16", MXFP4PackedCompressor, "mxfp4-pack-quantized"),
           "ct_nvfp4": ("NVFP4A16", NVFP4PackedCompressor, "nvfp4-pack-quantized")}


def make(out, name, preset, compressor, layout):
    generator = torch.Generator().manual_seed(SEED)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    args = scheme.weights
    tensors = {"model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator).bfloat16()}
    for norm in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        tensors[norm + ".weight"] = torch.ones(HIDDEN).bfloat16()
    decoded = {}
    for linear, (rows, cols) in LINEARS.items():
        weight = 0.1 * torch.randn(rows, cols, generator=generator)
        weight[0, :args.group_size] = 0  # a block of zeros
        state = {"weight": weight}
        if name == "ct_nvfp4":
            state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
        blocks = weight.reshape(rows, -1, args.group_size)
        state["weight_scale"], _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args,
                                                     global_scale=state.get("weight_global_scale"))
        stored = compressor.compress(state, scheme)
        scale = compressor._decompress_scale(stored["weight_scale"], torch.float32)
        codes = unpack_fp4_from_uint8(stored["weight_packed"], rows, cols, dtype=torch.float32)
        if linear in DECODED:
            decoded[f"model.layers.0.{linear}.weight"] = dequantize(
                codes, scale, args=args, dtype=torch.float32, global_scale=stored.get("weight_global_scale")).contiguous()
            decoded[f"source.model.layers.0.{linear}.weight"] = weight
        tensors |= {f"model.layers.0.{linear}.{part}": value.contiguous() for part, value in stored.items()}
    quantization = QuantizationConfig(config_groups={"group_0": scheme}, format=layout, ignore=["lm_head"])
    (out / name).mkdir(parents=True)
    save_file(tensors, out / name / "model.safetensors", {"format": "pt"})
    (out / name / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization.model_dump(mode="json")},
                                                       indent=1))
    save_file(decoded, out / f"{name}.decoded.safetensors")


def main():
    out = pathlib.Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    torch.set_num_threads(1)
    for name, (preset, compressor, layout) in FORMATS.items():
        make(out, name, preset, compressor, layout)
    lines = ["# FP4 weights of compressed-tensors", "",
             "Written by `tools/golden/make_fp4.py tests/golden/fp4`: random weights, quantized and decoded by",
             "compressed-tensors. The script's head says what each file holds.", "",
             f"Python {platform.python_version()}, torch {torch.__version__}, compressed-tensors "
             f"{compressed_tensors.__version__}; on the CPU, one thread; seed {SEED}.", "", "sha256:", "", "```"]
    for file in sorted(out.rglob("*")):
        if file.is_file():
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(out)}")
    (out / "PROVENANCE.md").write_text("\n".join(lines + ["```", ""]))


main()
