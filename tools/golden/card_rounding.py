#!/usr/bin/env python3
"""How far a card's golden logits may lie from the CPU's: the measurement behind kGoldenTolerance.

Usage: card_rounding.py FOLDER [PROMPTS]      (a folder of `nibble quantize --scheme int4`; the Python needs numpy)

Runs the llama of FOLDER twice in NumPy over the certificate's golden prompt and over random ones of the same length: with
the roundings that a CPU's logits have (keys and values in bf16; int16 activations are exact beside that), and with those of
a card (docs/adr/0007: weights, inputs of products, queries, weights of attention in fp16; keys and values in the cache's
type). Prints the difference as CompareGoldenLogits measures it, over the five largest logits. Then the same with a mistake
in the scales of one matrix, or of one kind of matrix in all layers: what share of such mistakes a tolerance catches.
"""

import json
import pathlib
import struct
import sys

import numpy as np

KINDS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj"]
DTYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64}
folder = pathlib.Path(sys.argv[1])
num_prompts = int(sys.argv[2]) if len(sys.argv) > 2 else 12
config = json.loads((folder / "config.json").read_text())
golden = json.loads((folder / "nibble_certificate.json").read_text())["golden_logits"]
data = np.memmap(folder / "model.safetensors", dtype=np.uint8, mode="r")
header_bytes = struct.unpack("<Q", data[:8].tobytes())[0]
header = json.loads(data[8:8 + header_bytes].tobytes())
LAYERS, HEADS, KV_HEADS = (config[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
DIM = config.get("head_dim") or config["hidden_size"] // HEADS
THETA = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]


def tensor(name):
    begin, end = header[name]["data_offsets"]
    raw = data[8 + header_bytes + begin:8 + header_bytes + end].tobytes()
    return np.frombuffer(raw, DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])


def exact(x):
    return x


def f16(x):
    return x.astype(np.float16).astype(np.float32)


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def e4m3(x):
    size = np.minimum(np.abs(x), 448.0)
    step = 2.0 ** (np.floor(np.log2(np.maximum(size, 2.0 ** -6))) - 3)
    return (np.sign(x) * np.minimum(np.round(size / step) * step, 448)).astype(np.float32)


def int8(x):  # a scale a token and head
    scale = f16(np.abs(x).max(-1, keepdims=True) / 127)
    return np.round(x / np.where(scale == 0, 1, scale)).clip(-127, 127) * scale


def packed(w):  # fp16 beside a power of two a row
    factor = 2.0 ** np.floor(np.log2(np.maximum(np.abs(w).max(1, keepdims=True), 1e-30)))
    return (f16(w / factor) * factor).astype(np.float32)


class Matrix:
    def __init__(self, name):
        words = tensor(name + ".weight_packed").view(np.uint32)
        self.scales = tensor(name + ".weight_scale").astype(np.float32)
        self.codes = np.stack([words >> (4 * i) & 15 for i in range(8)], -1).reshape(len(words), -1).astype(np.float32) - 8

    def values(self, change=exact):
        scales = change(self.scales)
        return (self.codes.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(self.codes.shape)


def table_in_8_bits(w):  # embedding and head as they are served: groups of 32
    groups = w.astype(np.float32).reshape(len(w), -1, 32)
    scale = f16(np.abs(groups).max(-1, keepdims=True) / 127)
    return (np.round(groups / np.where(scale == 0, 1, scale)).clip(-127, 127) * scale).reshape(w.shape).astype(np.float32)


def forward(prompt, weights, table, act, kv):
    n = len(prompt)
    angles = np.arange(n)[:, None] * THETA ** (-np.arange(0, DIM, 2) / DIM)[None]
    cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))

    def rope(x):
        a, b = x[..., :DIM // 2], x[..., DIM // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(x, name):
        return act(x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * tensor(name).astype(np.float32))

    x = table[prompt].copy()
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        w = [weights[layer, kind] for kind in KINDS]
        h = norm(x, name + "input_layernorm.weight")
        q = act(rope((h @ w[0].T).reshape(n, HEADS, DIM)))
        k = np.repeat(kv(rope((h @ w[1].T).reshape(n, KV_HEADS, DIM))), HEADS // KV_HEADS, 1)
        v = np.repeat(kv((h @ w[2].T).reshape(n, KV_HEADS, DIM)), HEADS // KV_HEADS, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(DIM) + mask
        p = act(np.exp(scores - scores.max(-1, keepdims=True)))
        x = x + act((np.einsum("hij,jhd->ihd", p, v) / p.sum(-1).T[..., None]).reshape(n, -1)) @ w[3].T
        h = norm(x, name + "post_attention_layernorm.weight")
        gate, up = h @ w[4].T, h @ w[5].T
        x = x + act(gate / (1 + np.exp(-gate)) * up / 32) * 32 @ w[6].T
    return (norm(x[-1:], "model.norm.weight") @ table.T)[0]


def difference(top, logits):
    scale = max(np.sqrt((logits.astype(np.float64) ** 2).mean()), max(abs(value) for _, value in top))
    worst = max(abs(logits[token] - value) for token, value in top)
    return max(worst, np.delete(logits, [token for token, _ in top]).max() - top[-1][1]) / scale


matrices = {(layer, kind): Matrix(f"model.layers.{layer}.{kind}") for layer in range(LAYERS) for kind in KINDS}
table = table_in_8_bits(tensor("model.embed_tokens.weight"))
of_cpu = {key: matrix.values() for key, matrix in matrices.items()}, table
of_card = {key: packed(w) for key, w in of_cpu[0].items()}, packed(table)
prompts = [np.array(golden["prompt"])]
random = np.random.default_rng(5)
prompts += [random.integers(0, len(table), len(prompts[0])) for _ in range(num_prompts - 1)]
print("this CPU against the certificate: %.1e" %
      difference(golden["int16"]["top"], forward(prompts[0], *of_cpu, exact, bf16)))
found = {}
for prompt in prompts:
    logits = forward(prompt, *of_cpu, exact, bf16)
    top = [(token, float(logits[token])) for token in np.argsort(-logits)[:5]]
    for kv in (f16, bf16, e4m3, int8):
        found.setdefault(kv.__name__, []).append(difference(top, forward(prompt, *of_card, f16, kv)))
for kv, values in found.items():
    print(f"a card with a cache of {kv}: median {np.median(values):.1e}, largest {max(values):.1e}")

MISTAKES = {"twice": lambda s: s * 2, "half": lambda s: s / 2, "of the next group": lambda s: np.roll(s, 1, 1),
            "of the next row": lambda s: np.roll(s, 1, 0)}


def spoilt(change, keys):
    weights = {key: packed(matrices[key].values(change)) if key in keys else w for key, w in of_card[0].items()}
    return difference(golden["int16"]["top"], forward(prompts[0], weights, of_card[1], f16, f16))


for mistake, change in MISTAKES.items():
    one = np.array([spoilt(change, {(layer, kind)}) for layer in range(0, LAYERS, 5) for kind in KINDS])
    shares = ", ".join(f"{np.mean(one > t):.0%} above {t:.0%}" for t in (0.01, 0.02, 0.05))
    kinds = [spoilt(change, {(layer, kind) for layer in range(LAYERS)}) for kind in KINDS]
    print(f"scales {mistake}: one matrix {shares}; one kind in all layers at least {min(kinds):.1e}")
