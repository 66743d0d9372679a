"""Compares `nibble eval --tasks` with lm-evaluation-harness 0.4.13 before `nibble serve`, item by item.

Usage: check_lm_eval.py RESULT.json DATA TOKENIZER URL [LM.json]        (the Python needs lm-eval[api], transformers)

RESULT.json comes from `nibble eval MODEL --tasks lambada,arc_easy,hellaswag,piqa --limit 20 --data DATA --samples
--kv-cache-dtype float32 --output RESULT.json`. TOKENIZER is a folder with MODEL's tokenizer.json; it must split digits.
URL, http://127.0.0.1:8000 for example, is `nibble serve MODEL --kv-cache-dtype float32 --queue-timeout 0`. lm-eval asks it
as `local-completions` for the same tasks and as many items. Its answers go to LM.json, or come from there if the file exists.

Prints a line a task: items, requests, the largest difference of a log-likelihood, and each number as both have it. Exits 1
if an item's scores, a greedy answer, or one of the four decimals that lm-eval prints of a number differs.
"""

import json
import os
import pathlib
import sys

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

DECIMALS = 4
QUESTION = "Question: {{question}}\nAnswer:"


def winogrande_context(doc):
    return doc["answer"]  # the choices are contexts here, and which of them is right is lm-eval's text


def winogrande_rest(doc):
    return doc["sentence"][doc["sentence"].index("_") + 1:].strip()


def winogrande_choices(doc):
    return [doc["sentence"][:doc["sentence"].index("_")] + choice for choice in doc["choices"]]


def choice_task(file, text, metrics=("acc", "acc_norm", "acc_bytes"), **more):
    return {"file": file, "output_type": "multiple_choice", "doc_to_text": text, "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}", "metrics": metrics, **more}


# As lm-eval's own YAML files have them, but for the names of fields.
TASKS = {
    "lambada": {"file": "lambada/lambada.jsonl", "output_type": "loglikelihood",
                "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}", "doc_to_target": "{{' '+text.split(' ')[-1]}}",
                "metrics": ("acc", "perplexity")},
    "arc_easy": choice_task("arc-easy/arc-easy.jsonl", QUESTION),
    "arc_challenge": choice_task("arc-challenge/arc-challenge.jsonl", QUESTION),
    "hellaswag": choice_task("hellaswag/hellaswag.jsonl", "{{ctx}}"),
    "piqa": choice_task("piqa/piqa.jsonl", "Question: {{goal}}\nAnswer:"),
    "winogrande": choice_task("winogrande/winogrande.jsonl", winogrande_context, ("acc",),
                              doc_to_choice=winogrande_choices, doc_to_target=winogrande_rest),
    "boolq": choice_task("boolq/boolq.jsonl", "{{passage}}\nQuestion: {{question}}?\nAnswer:", ("acc",),
                         doc_to_choice=["no", "yes"]),
    "openbookqa": choice_task("openbookqa/openbookqa.jsonl", "{{question}}"),
}


def lm_eval_task(name, data):
    from lm_eval.api.task import ConfigurableTask

    config = dict(TASKS[name])
    metrics = [{"metric": metric, "aggregation": "perplexity" if metric == "perplexity" else "mean",
                "higher_is_better": metric != "perplexity"} for metric in config.pop("metrics")]
    file = str((data / config.pop("file")).resolve())
    return ConfigurableTask(config={"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}},
                                    "test_split": "test", "metric_list": metrics, **config})


def ask(names, limit, data, tokenizer, url):
    """What lm-eval makes of the server's answers: {task: {metrics: {name: [value, error]}, samples: [...]}}."""
    import lm_eval
    import requests

    model = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    run = lm_eval.simple_evaluate(
        model="local-completions", limit=limit, tasks=[lm_eval_task(name, data) for name in names],
        model_args={"model": model, "base_url": f"{url}/v1/completions", "tokenizer_backend": "huggingface",
                    "tokenizer": tokenizer, "num_concurrent": 8, "timeout": 3600, "max_retries": 1, "max_length": 2048})
    out = {}
    for name in names:
        numbers = run["results"][name]
        out[name] = {"metrics": {metric: [numbers[f"{metric},none"], numbers[f"{metric}_stderr,none"]]
                                 for metric in TASKS[name]["metrics"]}, "samples": []}
        for sample in sorted(run["samples"][name], key=lambda sample: sample["doc_id"]):
            out[name]["samples"].append(
                {"id": str(sample["doc"]["id"]), "results": [answer[0] for answer in sample["resps"]],
                 **{metric: sample[metric] for metric in TASKS[name]["metrics"]}})
    return out


def same(ours, theirs):
    return f"{ours:.{DECIMALS}f}" == f"{theirs:.{DECIMALS}f}"


def compare_items(name, ours, theirs):
    """The complaints, the number of requests and the largest difference of a log-likelihood."""
    complaints, num_requests, largest = [], 0, 0.0
    for our, their in zip(ours, theirs, strict=True):
        where = f"{name}, item {our['id']}"
        if our["id"] != their["id"]:
            complaints.append(f"{where}: lm-eval has item {their['id']}")
        for index, (our_result, (logprob, is_greedy)) in enumerate(zip(our["results"], their["results"], strict=True)):
            num_requests += 1
            largest = max(largest, abs(our_result["logprob"] - logprob))
            if our_result["is_greedy"] != is_greedy or not same(our_result["logprob"], logprob):
                complaints.append(f"{where}, request {index}: {our_result['logprob']:.6f} {our_result['is_greedy']}, "
                                  f"lm-eval {logprob:.6f} {is_greedy}")
        for metric in TASKS[name]["metrics"]:
            if metric != "perplexity" and our[metric] != their[metric]:
                complaints.append(f"{where}: {metric} {our[metric]}, lm-eval {their[metric]}")
    return complaints, num_requests, largest


def compare_task(name, ours, theirs):
    complaints, num_requests, largest = compare_items(name, ours["samples"], theirs["samples"])
    numbers = []
    for metric in TASKS[name]["metrics"]:
        value, error = ours["metrics"][metric]["value"], ours["metrics"][metric]["stderr"]
        their_value, their_error = theirs["metrics"][metric]
        numbers.append(f"{metric} {value:.{DECIMALS}f} +- {error:.{DECIMALS}f} | {their_value:.{DECIMALS}f} +- "
                       f"{their_error:.{DECIMALS}f}")
        # Of a perplexity lm-eval draws its error at random.
        if not same(value, their_value) or (metric != "perplexity" and not same(error, their_error)):
            complaints.append(f"{name}: {numbers[-1]}")
    print(f"{name}: {len(ours['samples'])} items, {num_requests} requests, log-likelihoods within {largest:.1e}; "
          + "; ".join(numbers))
    return complaints


def main():
    ours = json.loads(pathlib.Path(sys.argv[1]).read_text())["tasks"]
    data, tokenizer, url = pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4].rstrip("/")
    kept = pathlib.Path(sys.argv[5]) if len(sys.argv) > 5 else None
    if kept is not None and kept.exists():
        theirs = json.loads(kept.read_text())
    else:
        names = [name for name in ours if name in TASKS]
        theirs = ask(names, max(ours[name]["num_items"] for name in names), data, tokenizer, url)
        if kept is not None:
            kept.write_text(json.dumps(theirs))
    complaints = [line for name in theirs for line in compare_task(name, ours[name], theirs[name])]
    print("\n".join(complaints) or "no item differs")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
