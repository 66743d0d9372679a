#!/usr/bin/env python3
"""Records what a plain GPTQ in double precision makes of small random problems: tests/golden/gptq.

Usage: tools/golden/make_gptq.py tests/golden/gptq      (needs numpy and safetensors)

The algorithm is that of Frantar et al. 2022, written from the paper: the inverse of the damped Hessian, its upper
Cholesky factor, columns from left to right, the error of each spread over the rest. Nothing here knows the form that
src/solve uses. Scales are absmax, rounded to fp16, of the weights as the columns before their group left them
("sweep"), or of the original ones ("static", with columns by falling diagonal).
"""

import hashlib
import pathlib
import platform
import sys

import numpy as np
import safetensors.numpy

SEED = 20261127
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0])


def grid(weights, case):
    """Scale and zero point of a group, [rows]."""
    top = 2 ** case["bits"] - 1
    if case["kind"] == "nf4":
        return np.abs(weights).max(axis=1).astype(np.float32).astype(np.float64), None
    if case["kind"] == "sym":
        scale = (2 * np.abs(weights).max(axis=1) / top).astype(np.float16).astype(np.float64)
        return scale, np.full(len(weights), (top + 1) // 2, dtype=np.float64)
    low, high = np.minimum(weights.min(axis=1), 0), np.maximum(weights.max(axis=1), 0)
    scale = ((high - low) / top).astype(np.float16).astype(np.float64)
    return scale, np.clip(np.rint(-low / scale), 0, top)


def quantize(column, scale, zero, case):
    if case["kind"] == "nf4":
        codes = np.abs(column[:, None] / scale[:, None] - NF4[None, :]).argmin(axis=1)
        return codes, NF4[codes] * scale
    codes = np.clip(np.rint(column / scale) + zero, 0, 2 ** case["bits"] - 1)
    return codes, (codes - zero) * scale


def gptq(weights, inputs, case):
    rows, cols = weights.shape
    group = case["group"]
    hessian = inputs.T @ inputs
    order = np.arange(cols)
    if case["order"] == "descending":
        order = np.argsort(-np.diag(hessian), kind="stable")
    hessian = hessian[np.ix_(order, order)]
    hessian += case["damping"] * np.diag(hessian).mean() * np.eye(cols)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T  # H^-1 = U^T U
    work = weights[:, order].copy()
    codes = np.zeros((rows, cols), dtype=np.uint8)
    result = np.zeros((rows, cols))
    scales = np.zeros((rows, cols // group))
    zeros = np.zeros((rows, cols // group))
    if case["order"] == "descending":
        for g in range(cols // group):
            scale, zero = grid(weights[:, g * group:(g + 1) * group], case)
            scales[:, g], zeros[:, g] = scale, 0 if zero is None else zero
    margin = np.inf
    for i in range(cols):
        g = order[i] // group
        if case["order"] == "natural" and i % group == 0:
            scale, zero = grid(work[:, i:i + group], case)
            scales[:, g], zeros[:, g] = scale, 0 if zero is None else zero
        code, value = quantize(work[:, i], scales[:, g], zeros[:, g], case)
        if case["kind"] != "nf4":  # how close a decision was
            x = work[:, i] / scales[:, g]
            margin = min(margin, np.abs(x - np.floor(x) - 0.5).min())
        codes[:, order[i]] = code
        result[:, order[i]] = value
        error = (work[:, i] - value) / upper[i, i]
        work[:, i:] -= np.outer(error, upper[i, i:])
    difference = (result - weights)[:, order]
    return codes, scales, zeros, np.trace(difference @ hessian @ difference.T), margin


CASES = {
    "sym4_g32": {"bits": 4, "kind": "sym", "group": 32, "order": "natural", "damping": 0.01},
    "asym4_g32": {"bits": 4, "kind": "asym", "group": 32, "order": "natural", "damping": 0.01},
    "sym3_row": {"bits": 3, "kind": "sym", "group": 96, "order": "natural", "damping": 0.05},
    "sym8_g32": {"bits": 8, "kind": "sym", "group": 32, "order": "natural", "damping": 0.01},
    "sym4_g32_act_order": {"bits": 4, "kind": "sym", "group": 32, "order": "descending", "damping": 0.01},
    "asym2_g32": {"bits": 2, "kind": "asym", "group": 32, "order": "natural", "damping": 0.01},
    "nf4_g32": {"bits": 4, "kind": "nf4", "group": 32, "order": "natural", "damping": 0.01},
}


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, case) in enumerate(CASES.items()):
        random = np.random.default_rng(SEED + number)
        cols, rows, tokens = 96, 20, 140
        # Correlated inputs, some columns loud, one nearly a copy of another, one dead.
        inputs = random.normal(size=(tokens, cols)) @ (np.eye(cols) + 0.3 * random.normal(size=(cols, cols)))
        inputs *= np.exp(random.normal(size=cols))
        inputs[:, 7] = inputs[:, 40] * 0.7 + 0.01 * inputs[:, 7]
        inputs[:, 11] = 0.0
        inputs = inputs.astype(np.float32)
        weights = (0.05 * random.standard_t(5, size=(rows, cols))).astype(np.float32)
        codes, scales, zeros, error, margin = gptq(weights.astype(np.float64), inputs.astype(np.float64), case)
        safetensors.numpy.save_file(
            {"weights": weights, "inputs": inputs, "codes": codes, "scales": scales.astype(np.float32),
             "zero_points": zeros.astype(np.uint8), "error": np.array([error])}, out / f"{name}.safetensors")
        digest = hashlib.sha256((out / f"{name}.safetensors").read_bytes()).hexdigest()
        lines.append(f"| {name} | {SEED + number} | {margin:.1e} | {digest} |")
    (out / "PROVENANCE.md").write_text(
        "# GPTQ in double precision\n\nWritten by `tools/golden/make_gptq.py tests/golden/gptq`: random weights and "
        "inputs, and what the algorithm of the\npaper makes of them. margin: the smallest distance of a decision from "
        "a tie, in steps.\n\n"
        f"Python {platform.python_version()}, numpy {np.__version__}, safetensors {safetensors.__version__}.\n\n"
        "| case | seed | margin | sha256 |\n|---|---|---|---|\n" + "\n".join(lines) + "\n")


main()
