#!/usr/bin/env python3
"""Puts load on a running server with streaming requests and reports what its users saw, as JSON. Needs python3 alone.

    load_client.py http://127.0.0.1:8000 --requests 256 --concurrency 64           # 64 at any time
    load_client.py http://127.0.0.1:8000 --requests 960 --rate 16                  # Poisson arrivals, 16 a second
    load_client.py http://127.0.0.1:8000 --requests 1000 --concurrency 1000        # all at once
    load_client.py http://127.0.0.1:8000 --requests 500 --concurrency 64 --cancel-storm

Every request has a prompt of its own, so that no prefix cache serves it. --cancel-storm leaves each request at a random
moment: before the answer begins or within it. In every mode the server must be idle afterwards (no request running or
waiting, no KV block held) and must still answer. Exits with 1 if it is not, or if a request failed.

Times are of this client: to the first token from before the connection is made; between tokens from event to event.
`client_cpu_share` near 1 means that the client, not the server, was the limit.
"""

import argparse
import asyncio
import json
import math
import random
import resource
import socket
import struct
import sys
import time
import urllib.parse
import urllib.request

WORDS = ("time year people way day man thing woman life child world school state family student group country problem "
         "hand part place case week company system program question work number night point home water room mother "
         "area money story fact month lot right study book eye job word business issue side kind head house service "
         "friend father power hour game line end member law car city community name").split()
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


class Refused(Exception):
    """An answer that is not a stream of tokens."""


def percentiles(seconds):
    """p50 to p99, mean and maximum, in milliseconds; null where there is nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def at(share):
        return round(1e3 * ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)], 3)

    return {"p50": at(0.50), "p90": at(0.90), "p95": at(0.95), "p99": at(0.99), "max": at(1.0),
            "mean": round(1e3 * sum(ordered) / len(ordered), 3)}


class Server:
    def __init__(self, url, key):
        parts = urllib.parse.urlsplit(url.rstrip("/").removesuffix("/v1"))
        self.host, self.port = parts.hostname, parts.port or 80
        self.base = f"http://{self.host}:{self.port}"
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def call(self, path, body=None, timeout=60):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self.headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read().decode()

    def gauges(self):
        """The gauges that must be 0 on an idle server, summed over their labels."""
        values = dict.fromkeys(GAUGES, 0.0)
        for line in self.call("/metrics").splitlines():
            name = line.split("{")[0].split(" ")[0]
            if name in values:
                values[name] += float(line.rsplit(" ", 1)[1])
        return values


class Request:
    """One streaming request: sent, timed, and left early if told to."""

    def __init__(self, server, path, body):
        self.server, self.path, self.body = server, path, body
        self.begin = self.first = self.end = None
        self.gaps = []
        self.usage = None
        self.cancelled = False

    async def run(self, leave_after_events=None, leave_after_seconds=None):
        """Raises Refused or OSError if the answer is not a complete stream."""
        self.begin = time.perf_counter()
        if leave_after_seconds is None:
            await self._stream(leave_after_events)
            return
        try:
            await asyncio.wait_for(self._stream(leave_after_events), leave_after_seconds)
        except asyncio.TimeoutError:
            self.cancelled = True

    async def _stream(self, leave_after_events):
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port, limit=1 << 20)
        try:
            body = json.dumps(self.body).encode()
            head = [f"POST {self.path} HTTP/1.1", f"Host: {self.server.host}:{self.server.port}",
                    f"Content-Length: {len(body)}", "Connection: close",
                    *(f"{name}: {value}" for name, value in self.server.headers.items())]
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            status, chunked = await self._read_head(reader)
            if status != 200:
                text = (await reader.read(4096)).decode(errors="replace")
                raise Refused(f"HTTP {status}: {text[-300:]}" if status not in (429, 503) else f"HTTP {status}")
            await self._read_events(self._pieces(reader, chunked), leave_after_events)
        finally:
            # Leaves at once: what has not arrived is refused, as when a client is killed.
            connection = writer.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    @staticmethod
    async def _read_head(reader):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        return int(head.split(" ", 2)[1]), "transfer-encoding: chunked" in head

    @staticmethod
    async def _pieces(reader, chunked):
        while True:
            if not chunked:
                piece = await reader.read(65536)
            else:
                size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
                piece = (await reader.readexactly(size + 2))[:-2]
            if not piece:
                return
            yield piece

    async def _read_events(self, pieces, leave_after_events):
        rest, events, last = b"", 0, None
        async for piece in pieces:
            now = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    self.end = now
                    return
                if b'"error"' in line and b'"choices"' not in line:
                    raise Refused(f"in the stream: {line[6:300].decode(errors='replace')}")
                if b'"usage":{' in line.replace(b" ", b""):
                    self.usage = json.loads(line[6:]).get("usage") or self.usage
                # The first event of a chat names the role alone; the last ones carry no token.
                if b'"role"' in line or b'"choices":[]' in line.replace(b" ", b""):
                    continue
                events += 1
                if self.first is None:
                    self.first = now
                else:
                    self.gaps.append(now - last)
                last = now
                if leave_after_events is not None and events >= leave_after_events:
                    self.cancelled = True
                    return
        raise Refused("the stream ended early")


class Load:
    def __init__(self, server, arguments):
        self.server, self.arguments = server, arguments
        self.random = random.Random(arguments.seed)
        model = json.loads(server.call("/v1/models"))["data"][0]
        self.model = arguments.model or model["id"]
        self.words_per_token = self.measure_words()
        self.requests, self.errors = [], {}

    def text(self, tokens):
        count = max(1, round(tokens * self.words_per_token))
        return f"{self.random.getrandbits(32):08x} " + " ".join(self.random.choices(WORDS, k=count))

    def measure_words(self):
        """Words a token, so that prompts have about the length asked for."""
        self.words_per_token = 1.0
        try:
            sample = self.text(256)
            return 256 / json.loads(self.server.call("/tokenize", {"prompt": sample, "add_special_tokens": False}))["count"]
        except (OSError, KeyError, ValueError):
            return 1.0

    def body(self):
        common = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
                  "max_tokens": self.arguments.output_len, "temperature": self.arguments.temperature,
                  "seed": self.random.getrandbits(31)}
        text = self.text(self.arguments.input_len)
        if self.arguments.endpoint == "completions":
            return {**common, "prompt": text}
        return {**common, "messages": [{"role": "user", "content": text}]}

    async def one(self, request):
        leave = {}
        if self.arguments.cancel_storm:
            # Half of them by events, from the first token to just before the last; half by the clock, which also
            # meets requests that wait or whose prompt is being computed.
            if self.random.random() < 0.5:
                leave["leave_after_events"] = self.random.randint(1, max(1, self.arguments.output_len - 1))
            else:
                leave["leave_after_seconds"] = self.random.uniform(0.0, self.arguments.cancel_seconds)
        try:
            await request.run(**leave)
        except (Refused, OSError, asyncio.IncompleteReadError, ValueError) as error:
            text = f"{type(error).__name__}: {error}" if not isinstance(error, Refused) else str(error)
            self.errors[text] = self.errors.get(text, 0) + 1

    async def run(self):
        path = "/v1/chat/completions" if self.arguments.endpoint == "chat" else "/v1/completions"
        self.requests = [Request(self.server, path, self.body()) for _ in range(self.arguments.requests)]
        if self.arguments.rate:
            tasks = []
            due = time.perf_counter()
            for request in self.requests:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.ensure_future(self.one(request)))
                due += self.random.expovariate(self.arguments.rate)
            await asyncio.gather(*tasks)
            return
        waiting = iter(self.requests)

        async def user():
            for request in waiting:
                await self.one(request)

        await asyncio.gather(*(user() for _ in range(self.arguments.concurrency)))

    def wait_until_idle(self):
        """The gauges of the idle server, or of the last look at it, and how long that took."""
        begin = time.perf_counter()
        while True:
            gauges = self.server.gauges()
            seconds = time.perf_counter() - begin
            if not any(gauges.values()) or seconds > self.arguments.idle_seconds:
                return gauges, seconds
            time.sleep(0.02)  # a disconnect is noticed within a step: asked again until then

    def answers(self):
        """Whether the server still answers a plain request."""
        try:
            self.server.call("/v1/completions", {"model": self.model, "prompt": "hello", "max_tokens": 1})
            return True
        except OSError:
            return False

    def report(self, seconds, cpu_seconds):
        done = [r for r in self.requests if r.end is not None]
        begun = [r for r in self.requests if r.first is not None]
        prompt = sum(r.usage["prompt_tokens"] for r in done if r.usage)
        output = sum(r.usage["completion_tokens"] for r in done if r.usage)
        gauges, idle_seconds = self.wait_until_idle()
        asked = self.arguments
        return {
            "server": self.server.base, "model": self.model, "endpoint": asked.endpoint,
            "load": {"requests": asked.requests, "concurrency": None if asked.rate else asked.concurrency,
                     "requests_per_s": asked.rate or None, "input_len": asked.input_len,
                     "output_len": asked.output_len, "cancel_storm": asked.cancel_storm, "seed": asked.seed},
            "completed": len(done), "cancelled": sum(r.cancelled for r in self.requests),
            "failed": sum(self.errors.values()), "errors": self.errors,
            "seconds": round(seconds, 3), "requests_per_s": round(len(done) / seconds, 3),
            "prompt_tokens": prompt, "output_tokens": output,
            "output_tokens_per_s": round(output / seconds, 1),
            "total_tokens_per_s": round((prompt + output) / seconds, 1),
            "time_to_first_token_ms": percentiles([r.first - r.begin for r in begun]),
            "time_between_tokens_ms": percentiles([gap for r in self.requests for gap in r.gaps]),
            "request_ms": percentiles([r.end - r.begin for r in done]),
            "client_cpu_share": round(cpu_seconds / seconds, 3),
            "after": {"idle": not any(gauges.values()), "seconds_to_idle": round(idle_seconds, 3), **gauges,
                      "answers": self.answers()},
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16, help="requests at any time")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, Poisson; instead of --concurrency")
    parser.add_argument("--input-len", type=int, default=512, help="tokens of a prompt, about")
    parser.add_argument("--output-len", type=int, default=128, help="tokens of an answer, exactly")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--cancel-storm", action="store_true", help="leave every request at a random moment")
    parser.add_argument("--cancel-seconds", type=float, default=2.0, help="the latest of the moments chosen by the clock")
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="how long the server may take to become idle")
    parser.add_argument("--warm-up", type=int, default=0, help="requests before the measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--api-key-file", default="")
    parser.add_argument("--out", default="", help="also write the report to this file")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    key = ""
    if arguments.api_key_file:
        with open(arguments.api_key_file, encoding="utf-8") as file:
            key = file.read().split()[0]
    server = Server(arguments.url, key)
    if arguments.warm_up:
        warm = argparse.Namespace(**{**vars(arguments), "requests": arguments.warm_up, "rate": 0.0,
                                     "cancel_storm": False, "seed": arguments.seed + 1})
        asyncio.run(Load(server, warm).run())
    load = Load(server, arguments)
    begin, cpu = time.perf_counter(), time.process_time()
    asyncio.run(load.run())
    report = load.report(time.perf_counter() - begin, time.process_time() - cpu)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    return 0 if report["after"]["idle"] and report["after"]["answers"] and not report["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
