"""Do transformers and compressed-tensors decode a checkpoint that nibble wrote to exactly the values it means?

Usage: check_ct_weights.py FOLDER...
Every packed weight is decoded here by the format's own words, (code - zero_point) * scale, and compared bit for bit
with the parameter of the model that transformers loads. compressed-tensors multiplies in the type of the scale, so the
product is rounded once to that type; nibble's kernels keep it in float32.
"""

import json
import pathlib
import sys

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from safetensors import safe_open
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

plain_compress = PackedQuantizationCompressor.compress.__func__


def compress(cls, state_dict, scheme):
    """The fix of check_ct.py: transformers 5.23 asks for the shape of packed zero points on meta tensors."""
    packed = plain_compress(cls, state_dict, scheme)
    zero_point = packed.get("weight_zero_point")
    if zero_point is not None and zero_point.device.type == "meta":
        rows = -(-zero_point.shape[0] * scheme.weights.num_bits // 32)
        packed["weight_zero_point"] = torch.empty((rows, zero_point.shape[1]), dtype=torch.int32, device="meta")
    return packed


PackedQuantizationCompressor.compress = classmethod(compress)


def unpack(words, bits, count):
    """Fields of the last dimension, lowest bits first."""
    fields = [(words.long() & 0xFFFFFFFF) >> shift & (2**bits - 1) for shift in range(0, 32, bits)]
    return torch.stack(fields, -1).flatten(-2)[..., :count]


def decode(tensors, name, bits):
    rows, cols = tensors[name + "_shape"].tolist()
    codes = unpack(tensors[name + "_packed"], bits, cols)
    scale = tensors[name + "_scale"].float()
    zero = torch.full(scale.shape, 2 ** (bits - 1))
    if name + "_zero_point" in tensors:
        zero = unpack(tensors[name + "_zero_point"].T, bits, rows).T
    group = cols // scale.shape[1]
    product = (codes - zero.repeat_interleave(group, 1)).float() * scale.repeat_interleave(group, 1)
    return product.to(tensors[name + "_scale"].dtype).float()


for folder in map(pathlib.Path, sys.argv[1:]):
    config = json.loads((folder / "config.json").read_text())
    bits = config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"]
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 quantization_config=CompressedTensorsConfig(dequantize=True))
    loaded = dict(model.named_parameters())
    packed = sorted(name.removesuffix("_packed") for name in tensors if name.endswith("_packed"))
    wrong = [name for name in packed if not torch.equal(decode(tensors, name, bits), loaded[name])]
    wrong += [name for name, value in tensors.items() if name in loaded and not torch.equal(value.float(), loaded[name])]
    print(f"{folder}: {len(packed)} packed weights of {bits} bits, {len(tensors)} tensors, {len(wrong)} differ", *wrong[:5])
    if wrong or not packed:
        sys.exit(1)
