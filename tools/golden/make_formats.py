"""Tiny quantized models as other libraries write them, with the weights that those libraries decode.

Usage: make_formats.py OUT        (tests/golden/formats; the Python needs torch, transformers, bitsandbytes and
                                   gptqmodel: see OUT/PROVENANCE.md)

Every OUT/<name>/ is the folder that the library saved (config.json, model.safetensors and, for GPTQ and AWQ,
quantize_config.json); OUT/<name>.decoded.safetensors holds the F32 weights of two linears, decoded by the library's
own code. Weights and calibration tokens are random. bnb_vector.safetensors: the reference vector x[i] = ((37 i) mod 101
- 50) / 16 as bitsandbytes quantizes it, its tables, and the map of double quantization.
"""

import hashlib
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"

import bitsandbytes
import gptqmodel
import tokenizers
import torch
import transformers
from bitsandbytes import functional
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

SEED = 20261127
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16"}
BITSANDBYTES = {
    "bnb_nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bnb_nf4_nested": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "bnb_fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "bnb_fp4_nested": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    "bnb_int8": dict(load_in_8bit=True),
}
PLAIN = dict(desc_act=False, act_group_aware=False)
GPTQ = {
    "gptq_int4": dict(bits=4, group_size=32, sym=True, **PLAIN),
    "gptq_int4_order": dict(bits=4, group_size=32, sym=True, desc_act=True, act_group_aware=False),
    "gptq_int8": dict(bits=8, group_size=64, sym=True, **PLAIN),
    "gptq_int3": dict(bits=3, group_size=32, sym=True, **PLAIN),
    "gptq_int2": dict(bits=2, group_size=32, sym=True, **PLAIN),
    "gptq_int4_asym": dict(bits=4, group_size=32, sym=False, **PLAIN),
    "gptq_v2_int4_asym": dict(bits=4, group_size=32, sym=False, format="gptq_v2", **PLAIN),
    "gptq_v2_int8_asym": dict(bits=8, group_size=64, sym=False, format="gptq_v2", **PLAIN),
    "awq_int4": dict(bits=4, group_size=32, sym=False, method="awq", format="gemm"),
}


DECODED = ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight")


def save_decoded(decoded, file):
    assert len(decoded) == 7, sorted(decoded)
    save_file({name: decoded[name] for name in DECODED}, file)


def write_source(folder):
    """A random model and a tokenizer of numbers, which gptqmodel wants to see."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.1 if value.dim() == 2 else 0.2) + (value.dim() == 1))
    model.half().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {f"w{i}": i for i in range(CONFIG["vocab_size"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", unk_token="w0",
                                         pad_token="w0").save_pretrained(folder)


def keep(made, folder):
    """The files of a made folder that belong to the format."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "quantize_config.json"):
        if (made / name).exists():
            shutil.copyfile(made / name, folder / name)


def make_bitsandbytes(source, out, name, options, scratch):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16, device_map="cpu",
                                                 quantization_config=BitsAndBytesConfig(**options))
    model.save_pretrained(scratch / name)
    keep(scratch / name, out / name)
    decoded = {}
    for module, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            state = layer.weight.quant_state
            state.dtype = torch.float32
            decoded[module + ".weight"] = functional.dequantize_4bit(layer.weight.data, state).float().contiguous()
        elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            codes, absmax = layer.weight.data, layer.weight.SCB
            decoded[module + ".weight"] = (codes.float() * (absmax.float() / 127)[:, None]).contiguous()
    save_decoded(decoded, out / f"{name}.decoded.safetensors")


def make_gptqmodel(source, out, name, options, scratch):
    generator = torch.Generator().manual_seed(SEED)
    calibration = [{"input_ids": torch.randint(4, CONFIG["vocab_size"], (64,), generator=generator).tolist(),
                    "attention_mask": [1] * 64} for _ in range(16)]
    model = GPTQModel.load(str(source), QuantizeConfig(device="cpu", **options))
    model.quantize(calibration, batch_size=1)
    model.save(str(scratch / name))
    keep(scratch / name, out / name)
    backend = BACKEND.AWQ_TORCH if options.get("method") == "awq" else BACKEND.GPTQ_TORCH
    loaded = GPTQModel.load(str(scratch / name), backend=backend, device="cpu")
    decoded, stored = {}, load_file(scratch / name / "model.safetensors")
    for module, layer in loaded.model.named_modules():
        if hasattr(layer, "qweight"):
            eye = torch.eye(layer.in_features, dtype=torch.float32)
            if options.get("method") == "awq":
                weight = decode_awq(layer, stored[module + ".scales"])
            else:
                layer.scales = stored[module + ".scales"].float()  # loading rounds them to bfloat16
                weight = layer.dequantize_weight().float()
            assert weight.shape == eye.shape[:1] + (layer.out_features,), weight.shape
            decoded[module + ".weight"] = weight.T.contiguous()
    save_decoded(decoded, out / f"{name}.decoded.safetensors")


def decode_awq(layer, scales):
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    return dequantize_gemm(qweight=layer.qweight, qzeros=layer.qzeros, scales=scales.float(),
                           bits=layer.bits, group_size=layer.group_size).float()


def make_vector(out):
    x = torch.tensor([((37 * i) % 101 - 50) / 16 for i in range(256)])
    tensors = {"nested_quant_map": functional.create_dynamic_map()}
    for table in ("nf4", "fp4"):
        codes, state = functional.quantize_4bit(x, blocksize=64, quant_type=table)
        tensors[f"{table}.codes"], tensors[f"{table}.absmax"] = codes, state.absmax
        tensors[f"{table}.quant_map"] = state.code
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, out / "bnb_vector.safetensors")


def main():
    out = pathlib.Path(sys.argv[1]).absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        os.chdir(scratch)  # gptqmodel leaves logs where it runs
        source = scratch / "source"
        source.mkdir()
        write_source(source)
        make_vector(out)
        for name, options in BITSANDBYTES.items():
            make_bitsandbytes(source, out, name, options, scratch)
        for name, options in GPTQ.items():
            make_gptqmodel(source, out, name, options, scratch)
    lines = [
        "# Tiny quantized models of other libraries", "",
        "Written by `tools/golden/make_formats.py tests/golden/formats`: random weights, quantized, saved and decoded by",
        "bitsandbytes and gptqmodel. The script's head says what each file holds.", "",
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"bitsandbytes {bitsandbytes.__version__},",
        f"gptqmodel {gptqmodel.__version__}; on the CPU, one thread; seed {SEED}.", "", "sha256:", "", "```"]
    for file in sorted(out.rglob("*")):
        if file.is_file():
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(out)}")
    (out / "PROVENANCE.md").write_text("\n".join(lines + ["```", ""]))
    for name in [*BITSANDBYTES, *GPTQ]:
        print(name, sorted(load_file(out / f"{name}.decoded.safetensors"))[:2])


main()
