#!/usr/bin/env python3
"""Records what PyTorch's autograd makes of small decoder blocks of transformers: tests/golden/block_gradient.

Usage: tools/golden/make_block_gradient.py tests/golden/block_gradient    (needs torch, transformers, safetensors)

Random weights and inputs (fp32 numbers, computed with in double precision), a random slope = d loss / d out, and the
block's output and d loss / d weight of its seven matrices.
"""

import hashlib
import pathlib
import platform
import sys

import safetensors.torch
import torch
import transformers
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen3 import modeling_qwen3

SEED = 20261127
WINDOWS, LENGTH = 2, 24
SHAPE = dict(hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             num_hidden_layers=1, vocab_size=8, max_position_embeddings=64, rms_norm_eps=1e-5,
             attn_implementation="eager")
CASES = {
    "llama": (modeling_llama.LlamaDecoderLayer, modeling_llama.LlamaRotaryEmbedding,
              transformers.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "mistral": (modeling_mistral.MistralDecoderLayer, modeling_mistral.MistralRotaryEmbedding,
                transformers.MistralConfig(**SHAPE, sliding_window=9)),
    "qwen3": (modeling_qwen3.Qwen3DecoderLayer, modeling_qwen3.Qwen3RotaryEmbedding,
              transformers.Qwen3Config(**SHAPE)),
}


def mask(window):
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    seen = (key <= query) & (key > query - window)
    return torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(~seen, float("-inf"))[None, None]


def record(name, seed):
    layer_class, rotary_class, config = CASES[name]
    generator = torch.Generator().manual_seed(seed)

    def random(shape, mean=0.0, stddev=1.0):
        return mean + stddev * torch.randn(shape, generator=generator, dtype=torch.float32)

    layer = layer_class(config, 0)
    tensors = {}
    for key, parameter in layer.named_parameters():
        if "norm" in key:
            tensors[key] = random(parameter.shape, mean=1.0, stddev=0.2)
        elif key.endswith("bias"):
            tensors[key] = random(parameter.shape, stddev=0.3)
        else:
            tensors[key] = random(parameter.shape, stddev=parameter.shape[1] ** -0.5)
    layer.load_state_dict(tensors)
    layer = layer.double()
    x, slope = random((WINDOWS, LENGTH, config.hidden_size)), random((WINDOWS, LENGTH, config.hidden_size))
    positions = torch.arange(LENGTH)[None].expand(WINDOWS, -1)
    out = layer(x.double(), attention_mask=mask(getattr(config, "sliding_window", None) or LENGTH),
                position_ids=positions, position_embeddings=rotary_class(config)(x.double(), positions))
    out = out[0] if isinstance(out, tuple) else out
    (out * slope.double()).sum().backward()
    tensors |= {"x": x, "slope": slope, "out": out.detach().float()}
    for key, parameter in layer.named_parameters():
        if key.endswith("proj.weight"):
            tensors["gradient." + key] = parameter.grad.float()
    return {key: value.contiguous() for key, value in tensors.items()}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, name in enumerate(CASES):
        file = folder / f"{name}.safetensors"
        safetensors.torch.save_file(record(name, SEED + i), file)
        rows.append(f"| {name} | {SEED + i} | {hashlib.sha256(file.read_bytes()).hexdigest()} |")
    (folder / "PROVENANCE.md").write_text(
        "# Gradients of decoder blocks in double precision\n\n"
        f"Written by `tools/golden/make_block_gradient.py tests/golden/block_gradient`: random blocks of transformers, their\n"
        f"output for {WINDOWS} windows of {LENGTH} tokens, and the derivatives that PyTorch's autograd gives.\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"safetensors {safetensors.__version__}.\n\n"
        "| case | seed | sha256 |\n|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
