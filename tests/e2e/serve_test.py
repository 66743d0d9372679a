"""CTest `e2e_serve`: what an OpenAI client sees of `nibble serve`, on a tiny random model."""

import http.client
import json
import pathlib
import tempfile
import time
import unittest

import nibble_process
from nibble_process import Server, golden, in_parallel

CHAT = {"messages": [{"role": "user", "content": "What is the weather?"}]}
GREEDY = {"temperature": 0, "ignore_eos": True}
MAX_POSITIONS = 4096


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        model = nibble_process.long_context_model(pathlib.Path(cls.folder.name) / "llama3", MAX_POSITIONS)
        # 512 blocks of 16 tokens: 32 streams of 4096 tokens cannot all end.
        cls.server = Server(model, "--max-num-seqs", 64, "--max-model-len", MAX_POSITIONS,
                            "--num-gpu-blocks-override", 512)

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        code, log = cls.server.wait(60), cls.server.log()
        cls.server.close()
        cls.folder.cleanup()
        assert code == 0, f"the server ended with {code}:\n{log}"

    def idle(self):
        return self.server.wait_for_metrics(
            lambda m: m["vllm:num_requests_running"] == 0 and m["vllm:num_requests_waiting"] == 0)

    def test_health_models_and_tokenize(self):
        self.assertEqual(self.server.get("/health").status, 200)
        self.assertEqual(self.server.get("/ready").status, 200)
        models = self.server.get("/v1/models").json()
        self.assertEqual(models["object"], "list")
        self.assertIn(self.server.name, [m["id"] for m in models["data"]])
        ids = self.server.post("/tokenize", {"prompt": "The wind, the rain", "add_special_tokens": False}).json()
        self.assertEqual(ids["count"], len(ids["tokens"]))
        text = self.server.post("/detokenize", {"tokens": ids["tokens"]}).json()
        self.assertEqual(text["prompt"], "The wind, the rain")

    def test_chat_answer_has_every_field_and_usage_adds_up(self):
        response = self.server.chat(**CHAT, **GREEDY, max_tokens=12)
        self.assertEqual(response.status, 200, response.body)
        self.assertTrue(response.headers["Content-Type"].split(";")[0].endswith("json"))
        body = response.json()
        self.assertTrue(body["id"].startswith("chatcmpl-"))
        self.assertEqual(body["object"], "chat.completion")
        self.assertEqual(body["model"], self.server.name)
        choice, = body["choices"]
        self.assertEqual((choice["index"], choice["finish_reason"]), (0, "length"))
        self.assertEqual(choice["message"]["role"], "assistant")
        usage = body["usage"]
        prompt = self.server.post("/tokenize", {**CHAT, "model": self.server.name}).json()
        self.assertEqual(usage["prompt_tokens"], prompt["count"])
        self.assertEqual(usage["completion_tokens"], 12)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + 12)

    def test_chat_stream_is_the_answer_in_pieces(self):
        whole = self.server.chat(**CHAT, **GREEDY, max_tokens=20).json()
        stream = self.server.stream("/v1/chat/completions", {
            **CHAT, **GREEDY, "max_tokens": 20, "model": self.server.name, "stream_options": {"include_usage": True}})
        self.assertEqual(stream.headers["Content-Type"].split(";")[0], "text/event-stream")
        events = list(stream)
        self.assertTrue(stream.done)
        self.assertEqual({(e["id"], e["object"], e["created"]) for e in events},
                         {(events[0]["id"], "chat.completion.chunk", events[0]["created"])})
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        deltas = [e["choices"][0]["delta"] for e in events if e["choices"]]
        self.assertEqual([d for d in deltas[1:] if "role" in d], [])
        self.assertEqual("".join(d.get("content") or "" for d in deltas), whole["choices"][0]["message"]["content"])
        reasons = [e["choices"][0]["finish_reason"] for e in events if e["choices"]]
        self.assertEqual([r for r in reasons if r], ["length"])
        self.assertEqual(events[-1]["choices"], [])
        for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(events[-1]["usage"][field], whole["usage"][field])

    def test_token_id_prompt_gives_the_recorded_greedy_tokens(self):
        expected = golden("llama3")
        text = self.server.complete(prompt=expected["input_ids"], **GREEDY, max_tokens=16, logprobs=0,
                                    skip_special_tokens=False).json()
        wanted = self.server.post("/detokenize", {"tokens": expected["greedy_kv_bf16"]}).json()["prompt"]
        self.assertEqual(text["choices"][0]["text"], wanted)
        self.assertEqual(len(text["choices"][0]["logprobs"]["tokens"]), 16)

    def test_text_and_token_id_prompts_are_the_same(self):
        prompt = "The engine takes the prompt"
        ids = self.server.post("/tokenize", {"prompt": prompt}).json()["tokens"]
        answers = [self.server.complete(prompt=p, **GREEDY, max_tokens=8).json()["choices"][0]["text"]
                   for p in (prompt, ids)]
        self.assertEqual(*answers)
        both = self.server.complete(prompt=[prompt, "One block"], **GREEDY, max_tokens=8).json()["choices"]
        self.assertEqual([c["index"] for c in both], [0, 1])
        self.assertEqual(both[0]["text"], answers[0])

    def test_echo_scores_the_prompt(self):
        prompt = "The house on the hill"
        body = self.server.complete(prompt=prompt, **GREEDY, max_tokens=1, echo=True, logprobs=2).json()
        choice = body["choices"][0]
        self.assertTrue(choice["text"].startswith(prompt))
        logprobs = choice["logprobs"]
        self.assertEqual(len(logprobs["tokens"]), body["usage"]["total_tokens"])
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertTrue(all(p <= 0 for p in logprobs["token_logprobs"][1:]))
        self.assertEqual(logprobs["text_offset"][0], 0)

    def test_chat_logprobs_are_sorted_and_hold_the_greedy_token_first(self):
        body = self.server.chat(**CHAT, **GREEDY, max_tokens=5, logprobs=True, top_logprobs=4).json()
        content = body["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 5)
        for entry in content:
            top = [t["logprob"] for t in entry["top_logprobs"]]
            self.assertEqual(len(top), 4)
            self.assertEqual(top, sorted(top, reverse=True))
            self.assertEqual(entry["top_logprobs"][0]["token"], entry["token"])
            self.assertEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"])

    def test_same_seed_same_text_and_n_choices_differ(self):
        request = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 24, "n": 2, "top_p": 1.0}
        texts = lambda seed: [c["message"]["content"] for c in
                              sorted(self.server.chat(**CHAT, **request, seed=seed).json()["choices"],
                                     key=lambda c: c["index"])]
        first = texts(7)
        self.assertEqual(first, texts(7))
        self.assertNotEqual(first[0], first[1])
        self.assertNotEqual(first, texts(8))
        body = self.server.chat(**CHAT, **request, seed=7).json()
        self.assertEqual(body["usage"]["completion_tokens"], 48)

    def test_stop_string_ends_and_is_left_out(self):
        request = {"prompt": "The scheduler", **GREEDY, "max_tokens": 40}
        text = self.server.complete(**request).json()["choices"][0]["text"]
        # The first two ASCII characters in a row that are not at the very beginning.
        stop = next(text[i : i + 2] for i in range(4, len(text) - 1) if text[i : i + 2].isascii())
        choice = self.server.complete(**request, stop=[stop, "never this"]).json()["choices"][0]
        self.assertEqual(choice["text"], text[: text.index(stop)])
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", stop))
        choice = self.server.complete(**request, stop=stop, include_stop_str_in_output=True).json()["choices"][0]
        self.assertEqual(choice["text"], text[: text.index(stop) + 2])
        streamed = self.server.stream("/v1/completions", {**request, "stop": stop, "model": self.server.name})
        self.assertEqual("".join(e["choices"][0]["text"] for e in streamed if e["choices"]), text[: text.index(stop)])

    def test_refusals_name_what_is_wrong(self):
        cases = [
            (404, "does not exist", self.server.request("POST", "/v1/chat/completions", {**CHAT, "model": "other"})),
            (400, "", self.server.request("POST", "/v1/chat/completions", '{"messages": [')),
            (400, "tools", self.server.chat(**CHAT, tools=[{"type": "function", "function": {"name": "f"}}])),
            (400, "response_format", self.server.chat(**CHAT, response_format={"type": "json_object"})),
            (400, "temperature", self.server.chat(**CHAT, temperature=-1)),
            (400, "temperature", self.server.chat(**CHAT, temperature="hot")),
            (400, "messages", self.server.chat(messages=[])),
            (400, "maximum context length", self.server.complete(prompt=[5] * (MAX_POSITIONS + 1))),
            (400, "top_logprobs", self.server.chat(**CHAT, top_logprobs=2)),
            (404, "", self.server.get("/v1/nothing")),
            (405, "", self.server.get("/v1/chat/completions")),
            (415, "", self.server.request("POST", "/v1/completions", "{}", {"Content-Type": "text/plain"})),
        ]
        for status, words, response in cases:
            with self.subTest(status=status, words=words):
                self.assertEqual(response.status, status, response.body)
                error = response.json()["error"]
                self.assertEqual(set(error), {"message", "type", "param", "code"})
                self.assertIn(words, error["message"] + str(error["param"]))

    def test_null_fields_are_absent_fields(self):
        response = self.server.chat(**CHAT, max_tokens=2, stop=None, logprobs=None, seed=None, tools=None,
                                    stream=None, response_format=None, temperature=None)
        self.assertEqual(response.status, 200, response.body)

    def test_keep_alive_serves_several_requests_on_one_connection(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        for _ in range(3):
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}),
                               {"Content-Type": "application/json"})
            self.assertEqual(connection.getresponse().read()[:1], b"{")
        connection.close()

    def test_streams_run_together_and_killed_clients_leave_nothing(self):
        self.idle()
        before = self.server.metrics()
        request = {"prompt": "The wind", **GREEDY, "max_tokens": MAX_POSITIONS - 100, "model": self.server.name}

        def start(i):
            stream = self.server.stream("/v1/completions", {**request, "prompt": f"The wind {i}"})
            self.assertEqual(stream.status, 200)
            next(iter(stream))
            return stream

        streams = in_parallel([lambda i=i: start(i) for i in range(32)])
        during = self.server.wait_for_metrics(lambda m: m["vllm:num_requests_running"] >= 16)
        self.assertGreaterEqual(during["vllm:num_requests_running"], 16)
        self.assertGreater(during["vllm:kv_cache_usage_perc"], 0)
        for stream in streams:
            stream.close()
        after = self.idle()
        self.assertEqual(after["vllm:num_requests_running"], 0)
        self.assertEqual(after["vllm:num_requests_waiting"], 0)
        self.assertEqual(after["vllm:kv_cache_usage_perc"], 0)
        made = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
        self.assertLess(made, 32 * (MAX_POSITIONS - 100), "the requests ran to their end instead of being cancelled")
        self.assertEqual(self.server.chat(**CHAT, max_tokens=1).status, 200)

    def test_killed_client_of_a_plain_request_cancels_it(self):
        self.idle()
        before = self.server.metrics()["vllm:generation_tokens_total"]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "The rain", **GREEDY, "max_tokens": MAX_POSITIONS - 100, "n": 8}),
            {"Content-Type": "application/json"})
        self.server.wait_for_metrics(lambda m: m["vllm:num_requests_running"] > 0)
        connection.close()
        after = self.idle()
        self.assertEqual(after["vllm:kv_cache_usage_perc"], 0)
        self.assertLess(after["vllm:generation_tokens_total"] - before, 8 * (MAX_POSITIONS - 100))


class Overload(unittest.TestCase):
    def test_who_waits_too_long_is_told_when_to_come_back(self):
        with tempfile.TemporaryDirectory() as folder:
            model = nibble_process.long_context_model(pathlib.Path(folder) / "llama3", MAX_POSITIONS)
            with Server(model, "--max-model-len", MAX_POSITIONS, "--max-num-seqs", 1, "--queue-timeout", 1) as server:
                # 16 choices, one after the other: seconds, however fast the machine is.
                busy = {"prompt": "The stone", **GREEDY, "max_tokens": MAX_POSITIONS - 100, "n": 16}
                running = server.stream("/v1/completions", busy)
                first = next(iter(running))
                self.assertTrue(first["choices"])
                begin = time.monotonic()
                plain, stream = in_parallel([
                    lambda: server.complete(prompt="The wind", max_tokens=1),
                    lambda: list(server.stream("/v1/completions", {"prompt": "The rain", "max_tokens": 1}))])
                waited = time.monotonic() - begin
                self.assertGreaterEqual(waited, 1)
                self.assertEqual(plain.status, 503, plain.body)
                self.assertGreater(int(plain.headers["Retry-After"]), 1)
                self.assertIn("waited too long", plain.json()["error"]["message"])
                self.assertEqual(stream[-1]["error"]["code"], 503)
                running.close()
                after = server.wait_for_metrics(lambda m: m["vllm:num_requests_running"] == 0)
                self.assertEqual(after["vllm:num_requests_waiting"], 0)
                self.assertEqual(after["vllm:kv_cache_usage_perc"], 0)
                self.assertEqual(server.complete(prompt="The wind", max_tokens=1).status, 200)


class Shutdown(unittest.TestCase):
    def test_sigterm_finishes_running_streams_and_refuses_new_work(self):
        with tempfile.TemporaryDirectory() as folder:
            model = nibble_process.long_context_model(pathlib.Path(folder) / "llama3", MAX_POSITIONS)
            with Server(model, "--max-model-len", MAX_POSITIONS) as server:
                stream = server.stream("/v1/completions", {"prompt": "The stone", **GREEDY, "max_tokens": 2000})
                events = iter(stream)
                next(events)
                server.terminate()
                time.sleep(0.1)
                try:
                    self.assertEqual(server.complete(prompt="late", max_tokens=1).status, 503)
                except OSError:
                    pass  # the listener is closed
                rest = list(events)
                self.assertTrue(stream.done, "the stream was cut")
                self.assertEqual([e["choices"][0]["finish_reason"] for e in rest if e["choices"]][-1], "length")
                self.assertEqual(server.wait(30), 0)

    def test_api_key_guards_the_api(self):
        with tempfile.TemporaryDirectory() as folder:
            key = pathlib.Path(folder) / "keys"
            key.write_text("secret-one\nsecret-two\n")
            key.chmod(0o600)
            with Server(nibble_process.GOLDEN / "llama3", "--api-key-file", key) as server:
                self.assertEqual(server.get("/health").status, 200)
                self.assertEqual(server.get("/v1/models").status, 401)
                for secret, status in (("secret-one", 200), ("secret-two", 200), ("secret", 401)):
                    answer = server.request("GET", "/v1/models", headers={"Authorization": f"Bearer {secret}"})
                    self.assertEqual(answer.status, status)


nibble_process.binary()
unittest.main(verbosity=2)
