"""Quantizes a float folder with another tool, on given tokens: the peers of table.py.

Usage: peer.py TOOL SOURCE OUT IDS.json OPTIONS      (OPTIONS: JSON of rows.py)
TOOL, and the packages of the Python that runs this:
  gptqmodel       gptqmodel==7.7.0 (pip install --no-build-isolation, setuptools >= 77): GPTQ, writes GPTQ v1
  llmcompressor   llmcompressor==0.14.0.1: GPTQ or AWQ, writes compressed-tensors
  auto-round      auto-round==0.16.1: learned rounding (iters 0: rounding alone), writes GPTQ v1. batch_size in windows of 512
                  (its default: 8, which takes hours on two cores)
  bitsandbytes    bitsandbytes==0.50.2 with transformers: NF4 and FP4
IDS.json is one list of tokens, cut into windows of 512.
"""

import json
import os
import pathlib
import shutil
import sys

LENGTH = 512
tool = sys.argv[1]
source, out, ids_file = map(os.path.abspath, sys.argv[2:5])
options = json.loads(sys.argv[5])
os.chdir(os.path.dirname(out))  # gptqmodel writes logs where it runs
with open(ids_file, encoding="utf-8") as file:
    ids = json.load(file)
windows = [ids[begin: begin + LENGTH] for begin in range(0, len(ids), LENGTH)]


def gptqmodel():
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # on two cores it stops without
    from gptqmodel import GPTQModel, QuantizeConfig
    config = QuantizeConfig(bits=options["bits"], group_size=options["group_size"], sym=options["symmetric"], device="cpu")
    model = GPTQModel.load(source, config)
    model.quantize([{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows], batch_size=1)
    model.save(out)


def llmcompressor():
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer
    scheme = {"targets": ["Linear"], "weights": {"num_bits": options["bits"], "type": "int", "strategy": "group",
                                                 "group_size": options["group_size"], "symmetric": options["symmetric"]}}
    modifier = GPTQModifier
    if options.get("awq"):
        from llmcompressor.modifiers.awq import AWQModifier as modifier
        if not torch.cuda.is_available():
            torch.Tensor.pin_memory = lambda self, *_: self  # it pins what it keeps, card or none
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * LENGTH for _ in windows]})
    oneshot(model=model, dataset=data, recipe=modifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
            max_seq_length=LENGTH, num_calibration_samples=len(windows))
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def auto_round():
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = [{"input_ids": torch.tensor([window]), "attention_mask": torch.ones(1, LENGTH, dtype=torch.long)} for window in windows]
    rounder = AutoRound(model, tokenizer, bits=options["bits"], group_size=options["group_size"], sym=options["symmetric"],
                        iters=options["iters"], batch_size=options["batch_size"], dataset=data, nsamples=len(windows), seqlen=LENGTH, device_map="cpu")
    rounder.quantize_and_save(out, format="auto_gptq")
    for folder in pathlib.Path(out).glob("*-w*g*"):  # where it saves since 0.16
        for file in folder.iterdir():
            shutil.move(file, out)
        folder.rmdir()


def bitsandbytes():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=options["quant_type"], bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, quantization_config=config, device_map="cpu")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


{"gptqmodel": gptqmodel, "llmcompressor": llmcompressor, "auto-round": auto_round, "bitsandbytes": bitsandbytes}[tool]()
