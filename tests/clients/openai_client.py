#!/usr/bin/env python3
"""Checks a running server with the official `openai` client (pip install openai), by hand:

    python tests/clients/openai_client.py http://127.0.0.1:8000 [--api-key KEY] [--streams 32]

Prints one line a check and exits with 1 if any failed. It needs a model with a chat template and a context of at
least 1,024 tokens, served with --max-num-seqs 16 or more.
"""

import argparse
import math
import sys
import threading
import time
import traceback
import urllib.request

import openai

CHECKS = []
MESSAGES = [{"role": "user", "content": "Name three colours of the rainbow."}]


def check(function):
    CHECKS.append(function)
    return function


def require(condition, message):
    if not condition:
        raise AssertionError(message)


class Subject:
    """The server under test."""

    def __init__(self, url, key):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=key or "none", max_retries=0, timeout=300)
        first = self.client.models.list().data[0]
        self.model, self.context = first.id, first.model_extra["max_model_len"]

    def metrics(self):
        """The sum of each metric over its labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        sums = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def wait_for(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            metrics = self.metrics()
            if condition(metrics):
                return metrics
            time.sleep(0.02)
        raise AssertionError(f"not reached within {seconds} s: running {metrics['vllm:num_requests_running']}, "
                             f"waiting {metrics['vllm:num_requests_waiting']}, "
                             f"kv {metrics['vllm:kv_cache_usage_perc']}")

    def chat(self, **kwargs):
        return self.client.chat.completions.create(model=self.model, **{"messages": MESSAGES, **kwargs})

    def complete(self, **kwargs):
        return self.client.completions.create(model=self.model, **kwargs)

    def tokenize(self, text):
        import json
        request = urllib.request.Request(self.url + "/tokenize", json.dumps(
            {"prompt": text, "add_special_tokens": False}).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["tokens"]


def check_usage(usage, completion=None):
    require(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, f"usage does not add up: {usage}")
    require(completion is None or usage.completion_tokens == completion, f"completion_tokens: {usage}")


@check
def models_are_listed_and_found(s):
    model = s.client.models.retrieve(s.model)
    require(model.id == s.model, model)


@check
def chat_whole(s):
    answer = s.chat(temperature=0, max_tokens=24)
    require(answer.object == "chat.completion" and answer.id.startswith("chatcmpl-"), answer)
    require(answer.choices[0].message.role == "assistant" and answer.choices[0].message.content, answer)
    require(answer.choices[0].finish_reason in ("stop", "length"), answer)
    check_usage(answer.usage)


@check
def chat_stream_equals_whole(s):
    whole = s.chat(temperature=0, max_tokens=24, seed=1)
    text, roles, reasons, usage = "", [], [], None
    for chunk in s.chat(temperature=0, max_tokens=24, seed=1, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage or usage
    require(text == whole.choices[0].message.content, f"{text!r} != {whole.choices[0].message.content!r}")
    require(roles == ["assistant"], roles)
    require(reasons == [whole.choices[0].finish_reason], reasons)
    require(usage.completion_tokens == whole.usage.completion_tokens, usage)
    check_usage(usage)


@check
def chat_content_parts(s):
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    a = s.chat(temperature=0, max_tokens=8)
    b = s.chat(temperature=0, max_tokens=8, messages=parts)
    require(a.choices[0].message.content == b.choices[0].message.content, (a, b))


@check
def max_tokens_ends_with_length(s):
    answer = s.chat(max_completion_tokens=5, max_tokens=50, extra_body={"ignore_eos": True})
    require(answer.choices[0].finish_reason == "length", answer)
    check_usage(answer.usage, 5)


@check
def chat_logprobs(s):
    answer = s.chat(temperature=0, max_tokens=6, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True})
    content = answer.choices[0].logprobs.content
    require(len(content) == 6, len(content))
    for entry in content:
        top = [t.logprob for t in entry.top_logprobs]
        require(len(top) == 3 and top == sorted(top, reverse=True), top)
        require(entry.logprob == top[0] and entry.logprob <= 0, entry)
        require(sum(math.exp(p) for p in top) <= 1.001, top)
    text = b"".join(bytes(e.bytes) for e in content).decode(errors="replace")
    require(text.startswith(answer.choices[0].message.content), (text, answer.choices[0].message.content))


@check
def chat_stream_logprobs(s):
    whole = s.chat(temperature=0, max_tokens=6, logprobs=True, top_logprobs=1, extra_body={"ignore_eos": True})
    streamed = []
    for chunk in s.chat(temperature=0, max_tokens=6, logprobs=True, top_logprobs=1, stream=True,
                        extra_body={"ignore_eos": True}):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    require([e.logprob for e in streamed] == [e.logprob for e in whole.choices[0].logprobs.content], streamed)


@check
def stop_string_is_left_out(s):
    request = {"prompt": "The quick brown fox", "temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    text = s.complete(**request).choices[0].text
    at = next(i for i in range(4, len(text) - 2) if text[i:i + 2].isascii())
    stop = text[at:at + 2]
    choice = s.complete(**request, stop=[stop]).choices[0]
    require(choice.text == text[:text.index(stop)], (choice.text, text, stop))
    require(choice.finish_reason == "stop" and choice.model_extra["stop_reason"] == stop, choice)


@check
def n_choices_differ_and_seed_repeats(s):
    def texts(seed):
        answer = s.chat(n=2, seed=seed, temperature=1.0, max_tokens=24, extra_body={"ignore_eos": True})
        require([c.index for c in answer.choices] == [0, 1], answer)
        check_usage(answer.usage, 48)
        return [c.message.content for c in answer.choices]

    first = texts(11)
    require(first[0] != first[1], "both choices are the same")
    require(first == texts(11), "the same seed gave another text")
    require(first != texts(12), "another seed gave the same text")


@check
def n_choices_stream(s):
    texts = {}
    for chunk in s.chat(n=2, seed=11, temperature=1.0, max_tokens=24, stream=True, extra_body={"ignore_eos": True}):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    whole = s.chat(n=2, seed=11, temperature=1.0, max_tokens=24, extra_body={"ignore_eos": True})
    require([texts[0], texts[1]] == [c.message.content for c in whole.choices], texts)


@check
def completion_whole_and_stream(s):
    request = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
    whole = s.complete(**request)
    require(whole.object == "text_completion" and whole.id.startswith("cmpl-"), whole)
    text = "".join(c.choices[0].text for c in s.complete(**request, stream=True) if c.choices)
    require(text == whole.choices[0].text, (text, whole))


@check
def prompts_in_four_shapes(s):
    ids = s.tokenize("Once upon a time")
    request = {"temperature": 0, "max_tokens": 8}
    one = s.complete(prompt=ids, **request)
    nested = s.complete(prompt=[ids], **request)
    require(one.usage.prompt_tokens == len(ids), one.usage)
    require(one.choices[0].text == nested.choices[0].text, (one, nested))
    several = s.complete(prompt=["Once upon a time", "The sky is"], **request)
    require([c.index for c in several.choices] == [0, 1], several)
    require(several.choices[0].text == s.complete(prompt="Once upon a time", **request).choices[0].text, several)


@check
def echo_scores_the_prompt_as_lm_eval_reads_it(s):
    ids = s.tokenize("The capital of France is Paris")
    answer = s.complete(prompt=[ids], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    logprobs = answer.choices[0].logprobs
    require(len(logprobs.token_logprobs) == len(ids) + 1, logprobs)
    require(logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None, logprobs)
    for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:]):
        require(value <= max(top.values()), (value, top))
        require(value in top.values(), (value, top))
    require(logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values()), "the greedy token is not the best")
    require(answer.choices[0].text.startswith("The capital of France is Paris"), answer.choices[0].text)


@check
def scoring_only(s):
    ids = s.tokenize("The capital of France is Paris")
    answer = s.complete(prompt=ids, max_tokens=0, logprobs=1, echo=True)
    require(len(answer.choices[0].logprobs.token_logprobs) == len(ids), answer)
    check_usage(answer.usage, 0)


@check
def errors_have_the_right_class(s):
    cases = [
        (openai.NotFoundError, "does not exist", lambda: s.client.chat.completions.create(
            model="no-such-model", messages=MESSAGES)),
        (openai.BadRequestError, "temperature", lambda: s.chat(temperature=9)),
        (openai.BadRequestError, "tools", lambda: s.chat(tools=[{"type": "function", "function": {"name": "f"}}])),
        (openai.BadRequestError, "response_format", lambda: s.chat(response_format={"type": "json_object"})),
        (openai.BadRequestError, "maximum context length", lambda: s.complete(prompt=[5] * (s.context + 1))),
    ]
    for kind, words, call in cases:
        try:
            call()
        except openai.APIStatusError as error:
            require(type(error) is kind, f"{words}: {type(error).__name__}")
            require(words in str(error), f"{words}: {error}")
            require(error.request_id, "no request id")
        else:
            raise AssertionError(f"{words}: no error")


def long_stream(s, i, started, texts):
    stream = s.complete(prompt=f"Story number {i}:", max_tokens=400, temperature=1.0, seed=i, stream=True,
                        extra_body={"ignore_eos": True})
    for chunk in stream:
        started[i].set()
        if texts is None:
            return stream
        texts[i] += len(chunk.choices) and 1
    return stream


@check
def concurrent_streams_run_together(s):
    count = s.num_streams
    started = [threading.Event() for _ in range(count)]
    texts = [0] * count
    threads = [threading.Thread(target=long_stream, args=(s, i, started, texts)) for i in range(count)]
    for thread in threads:
        thread.start()
    most = 0
    while any(t.is_alive() for t in threads):
        most = max(most, s.metrics()["vllm:num_requests_running"])
        time.sleep(0.05)
    require(most >= 16, f"at most {most} requests ran at once")
    require(min(texts) >= 1 and all(e.is_set() for e in started), texts)
    s.note = f"{int(most)} at once"


@check
def killed_clients_leave_nothing(s):
    count = s.num_streams
    started = [threading.Event() for _ in range(count)]
    streams = [None] * count

    def run(i):
        streams[i] = long_stream(s, i, started, None)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
        stream.close()
    begin = time.monotonic()
    s.wait_for(lambda m: m["vllm:num_requests_running"] == 0 and m["vllm:num_requests_waiting"] == 0
               and m["vllm:kv_cache_usage_perc"] == 0, seconds=20)
    s.note = f"idle after {time.monotonic() - begin:.2f} s"
    require(s.chat(max_tokens=2).choices, "no answer afterwards")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    arguments = parser.parse_args()
    subject = Subject(arguments.url, arguments.api_key)
    subject.num_streams = arguments.streams
    failed = 0
    for function in CHECKS:
        if arguments.only not in function.__name__:
            continue
        subject.note = ""
        begin = time.monotonic()
        try:
            function(subject)
            outcome = "ok  "
        except Exception as error:  # one bad answer must not hide the other checks
            failed += 1
            outcome = "FAIL"
            place = traceback.extract_tb(error.__traceback__)[-1].lineno
            subject.note = f"{type(error).__name__}: {str(error)[:300]} (line {place})"
        print(f"{outcome} {function.__name__} {time.monotonic() - begin:.2f} s {subject.note}".rstrip(), flush=True)
    print(f"{len(CHECKS)} checks, {failed} failed, openai {openai.__version__}, model {subject.model}")
    return 1 if failed else 0


sys.exit(main())
