"""Runs the nibble binary for the end-to-end tests: one-shot commands, and a server with a small HTTP client.

Standard library only. NIBBLE is the binary, GOLDEN the folder of tiny models (tests/golden/models/PROVENANCE.md).
"""

import http.client
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "models"
NIBBLE = pathlib.Path(os.environ["NIBBLE_BINARY"]) if "NIBBLE_BINARY" in os.environ else None
START_SECONDS = 300  # a busy machine; a server that dies is noticed at once
REQUEST_SECONDS = 120


def binary():
    if NIBBLE is None or not NIBBLE.exists():
        print(f"skipped: set NIBBLE_BINARY to the nibble program (now: {NIBBLE})")
        sys.exit(77)
    return str(NIBBLE)


def run(*arguments, stdin="", timeout=300):
    """A finished command with .returncode, .stdout, .stderr as text."""
    return subprocess.run([binary(), *map(str, arguments)], input=stdin, text=True, capture_output=True,
                          timeout=timeout)


def check_run(*arguments, stdin=""):
    result = run(*arguments, stdin=stdin)
    if result.returncode:
        raise AssertionError(f"nibble {' '.join(map(str, arguments))}: exit {result.returncode}\n{result.stderr}")
    return result.stdout


def quantized(source, folder, *options):
    """Quantizes source to folder (once) and returns it."""
    if not (folder / "nibble_certificate.json").exists():
        text = folder.parent / "calibration.txt"
        text.write_text("The house on the hill and the road to the house. " * 100)
        check_run("quantize", source, "--out", folder, *(options or ("--scheme", "int4")), "--certificate-text", text)
    return folder


def long_context_model(folder, max_positions=4096):
    """The tiny llama3 with a longer context, so that a generation lasts long enough to be disturbed."""
    shutil.copytree(GOLDEN / "llama3", folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = max_positions
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_random_llama(file, config, seed):
    """F32 weights of a Llama of this config, its embedding tied."""
    draw = random.Random(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        shapes |= {block + "input_layernorm.weight": (hidden,), block + "post_attention_layernorm.weight": (hidden,),
                   block + "self_attn.q_proj.weight": (heads, hidden), block + "self_attn.o_proj.weight": (hidden, heads),
                   block + "mlp.gate_proj.weight": (inner, hidden), block + "mlp.up_proj.weight": (inner, hidden),
                   block + "mlp.down_proj.weight": (hidden, inner)}
        shapes |= {block + f"self_attn.{kind}_proj.weight": (kv_heads, hidden) for kind in "kv"}
    header, body = {}, bytearray()
    for name, shape in shapes.items():
        size = math.prod(shape)
        spread = 1.5 / math.sqrt(hidden)
        values = [1.0] * size if len(shape) == 1 else [draw.gauss(0.0, spread) for _ in range(size)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + 4 * size]}
        body += struct.pack(f"<{size}f", *values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def golden(name):
    """The int64 tensors of tests/golden/models/<name>.expected.safetensors."""
    data = (GOLDEN / f"{name}.expected.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for key, tensor in header.items():
        if key != "__metadata__" and tensor["dtype"] == "I64":
            begin, end = tensor["data_offsets"]
            raw = data[8 + size + begin : 8 + size + end]
            tensors[key] = list(struct.unpack(f"<{len(raw) // 8}q", raw))
    return tensors


class Response:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Stream:
    """A streaming request under way: an iterator over the JSON of its events; `done` after [DONE]."""

    def __init__(self, port, path, body):
        self.done = False
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
        self._connection.request("POST", path, json.dumps({**body, "stream": True}),
                                 {"Content-Type": "application/json"})
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = dict(self._response.getheaders())

    def __iter__(self):
        while True:
            line = self._response.readline()
            if not line:
                return
            if line == b"\n":
                continue
            assert line.startswith(b"data: ") and line.endswith(b"\n") and not line.endswith(b"\r\n"), line
            payload = line[len(b"data: ") : -1]
            if payload == b"[DONE]":
                self.done = True
                self.close()
                return
            yield json.loads(payload)

    def close(self):
        """Leaves at once, as a killed client does."""
        if self._connection.sock is not None:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._response.close()
        self._connection.close()


class Server:
    """`nibble serve`, from start to end of a with block."""

    def __init__(self, model, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")
        self.name = "tiny"
        self._process = subprocess.Popen(
            [binary(), "serve", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name",
             self.name, *map(str, options)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.get("/ready").status == 200:
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"the server did not become ready:\n{self.log()}")
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
        code = self._process.returncode
        if kind is not None or code != 0:
            print(f"--- log of the server\n{self.log()}---", file=sys.stderr)
        self.close()
        # What a sanitizer finds at the end, such as a leak, shows only here.
        assert kind is not None or code == 0, f"the server ended with exit code {code}"

    def close(self):
        self._log.close()

    def log(self):
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def terminate(self):
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout):
        return self._process.wait(timeout)

    def running(self):
        return self._process.poll() is None

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {"Content-Type": "application/json"})
            response = connection.getresponse()
            return Response(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, **headers):
        return self.request("POST", path, body)

    def stream(self, path, body):
        return Stream(self.port, path, body)

    def chat(self, **fields):
        return self.request("POST", "/v1/chat/completions", {"model": self.name, **fields})

    def complete(self, **fields):
        return self.request("POST", "/v1/completions", {"model": self.name, **fields})

    def metrics(self):
        """Values by name, labels left out and summed over."""
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            match = re.match(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)$", line)
            if match:
                values[match[1]] = values.get(match[1], 0.0) + float(match[2])
        return values

    def wait_for_metrics(self, condition, seconds=10):
        """Polls until condition(metrics) holds; returns the metrics, or the last ones on time-out."""
        deadline = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            if condition(metrics) or time.monotonic() > deadline:
                return metrics
            time.sleep(0.02)


def in_parallel(functions):
    """Runs all at once, one thread each; returns their results in order, or raises the first error."""
    results, errors = [None] * len(functions), []

    def call(index):
        try:
            results[index] = functions[index]()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
