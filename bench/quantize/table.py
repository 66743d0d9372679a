"""What every scheme and solver costs and gives, ours and the peers', judged by one judge.

Usage: table.py --source FOLDER --data SHARED/data --work DIR --out FILE.json [--nibble build/release/nibble]
                [--rows REGEX] [--seeds 3] [--tasks lambada,arc_easy,hellaswag] [--task-items N]
                [--peer gptqmodel=PYTHON ...] [--quantize-only] [--report-only] [--commit HASH of the binary]

--source: a float folder (SmolLM2-135M-Instruct from its GGUF: tools/golden/make_smollm2.py says how). Every row of rows.py
whose name matches --rows is quantized with the same calibration tokens, 32 windows of 512 of WikiText-2's valid text, taken
at another offset for every seed; then one judge, `nibble eval` on the first 10 windows of 2,048 tokens of the test text
(int16 activations unless the row says int8, float32 cache), gives perplexity, KL to the source, top-1 and, with --tasks, scores on the first N items
(acc_norm where a task has it, else acc; the first seed's alone). Peers write
formats that nibble reads; tools/golden/check_consumers.py shows that nibble computes what they compute.

A peer's row runs with the Python that --peer names (peer.py's head lists the packages); without one it is left out, and a
peer that fails is recorded with its error. Each finished (row, seed) is a file of --work/done, so a stopped run goes on where
it was; delete the file to measure again. SIGINT and SIGTERM end what it has started, too; --work is one run's at a time, also
after a kill -9, as long as a child of it lives. Minutes are wall time; CPU minutes tell what a loaded machine stole, whose load is
recorded beside them.
FILE.json holds all of --work/done, FILE.html beside it the table and the plot.
"""

import argparse
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import report
import rows

WINDOWS, LENGTH = 32, 512
JUDGE = ["--context", "2048", "--windows", "10", "--kv-cache-dtype", "float32", "--json"]
MIB = {"kB": 1e3 / 2**20, "MB": 1e6 / 2**20, "GB": 1e9 / 2**20}
PEER_SCRIPT = pathlib.Path(__file__).with_name("peer.py")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--nibble", default="build/release/nibble")
    parser.add_argument("--rows", default=".")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--task-items", type=int, default=200)
    parser.add_argument("--peer", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--quantize-only", action="store_true", help="judge them when the same command runs without this flag")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--commit", help="that the binary is of, if not the one of this file")
    return parser.parse_args()


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def take(folder):
    """Locks the folder until this process and all that it starts have ended: children inherit the descriptor."""
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{folder}: another run works there, or something that a killed one has left (fuser {lock.name}): end it, or "
                 "give another --work")
    os.set_inheritable(lock.fileno(), True)
    return lock


def end(process):
    """Ends a child and what it has started, kindly first."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


class Failed(Exception):
    """A command that did not end well, with the end of what it said."""


def run(command, log):
    """Runs it with its output in a file; wall and CPU minutes, the peak of its memory, and that without mapped files."""
    begin = time.monotonic()
    anonymous = 0
    with open(log, "wb") as output:
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, close_fds=False,
                                       env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
        except OSError as error:
            raise Failed(str(error)) from None
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid != 0:
                    break
                anonymous = max(anonymous, anonymous_kib(process.pid))
                time.sleep(0.1)
        except BaseException:  # stopped
            end(process)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text("utf-8", "replace")
    if process.returncode != 0:
        raise Failed(f"exit {process.returncode}: " + "\n".join(text[-2000:].strip().splitlines()[-5:]))
    out = {"minutes": (time.monotonic() - begin) / 60, "cpu_minutes": (usage.ru_utime + usage.ru_stime) / 60,
           "peak_mib": usage.ru_maxrss / 1024, "anonymous_mib": anonymous / 1024}
    stated = [float(number) * MIB[unit] for number, unit in re.findall(r"; at most ([0-9.]+) (kB|MB|GB) of ", text)]
    return out | ({"stated_mib": max(stated)} if stated else {})


def anonymous_kib(pid):
    try:
        return int(re.search(r"RssAnon:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):  # it has just ended
        return 0


def nibble_json(args, *command):
    done = subprocess.run([args.nibble, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                          close_fds=False)
    if done.returncode != 0:
        raise Failed(f"nibble {' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def tokenize(args, request):
    done = subprocess.run([args.nibble, "tokenize", str(args.source), "--jsonl"], stdout=subprocess.PIPE, text=True, check=True,
                          input=json.dumps(request) + "\n")
    return json.loads(done.stdout)


def calibration(args, seed):
    """A text of exactly WINDOWS * LENGTH tokens, another one for every seed, and its tokens: both files' paths."""
    text_file, ids_file = args.work / f"calibration-{seed}.txt", args.work / f"calibration-{seed}.json"
    if ids_file.exists():
        return text_file, ids_file
    text = (args.data / "wikitext2/wiki.valid.raw").read_bytes().decode()
    begin = text.index("\n", len(text) * seed // 4) + 1 if seed else 0
    count = WINDOWS * LENGTH
    ids = tokenize(args, {"text": text[begin: begin + 12 * count]})["ids"][:count]
    piece = tokenize(args, {"ids": ids})["text"]
    assert tokenize(args, {"text": piece})["ids"] == ids, "the cut text gives other tokens: choose another offset"
    text_file.write_text(piece, encoding="utf-8", newline="")
    ids_file.write_text(json.dumps(ids))
    return text_file, ids_file


def quantize(args, row, seed, out, log):
    text_file, ids_file = calibration(args, seed)
    if row.peer:
        return run([args.pythons[row.peer], str(PEER_SCRIPT), row.peer, str(args.source), str(out), str(ids_file),
                    json.dumps(row.options)], log)
    command = [args.nibble, "quantize", str(args.source), "--out", str(out), *row.options]
    if row.calibrated:
        command += ["--calibration", str(text_file), "--calibration-samples", str(WINDOWS), "--calibration-length", str(LENGTH),
                    "--seed", str(seed)]
    return run(command, log)


def bits_per_weight(args, folder):
    """Bits of an element of the linears, everything that decodes it included; and the bytes of all tensors."""
    seen = nibble_json(args, "inspect", str(folder), "--json")
    config = seen["config"]
    table = config["vocab_size"] * config["hidden_size"]
    coded = [entry for entry in seen["tensors"]["by_format"] if entry["format"] not in ("F32", "F16", "BF16")]
    elements, size = sum(entry["parameters"] for entry in coded), sum(entry["bytes"] for entry in coded)
    head_dims = (2 * config["num_heads"] + 2 * config["num_kv_heads"]) * config["head_dim"]
    linears = config["num_layers"] * config["hidden_size"] * (head_dims + 3 * config["intermediate_size"])
    if elements > linears:  # GGUF: the table is Q8_0
        elements, size = elements - table, size - table * 34 // 32
    return 8 * size / elements if elements else None, seen["tensors"]["bytes"]


def judge(args, row, seed, folder):
    """One run of nibble eval: the text beside the source, and the tasks."""
    command = ["eval", str(folder), "--reference", str(args.source), "--perplexity", str(args.data / "wikitext2/wiki.test.raw"), *JUDGE,
               "--activations", row.activations]
    if args.tasks and seed == 0:
        command += ["--tasks", args.tasks, "--data", str(args.data), "--limit", str(args.task_items)]
    seen = nibble_json(args, *command)
    keep = ("perplexity", "reference_perplexity", "kl_mean", "kl_stderr", "kl_p99", "top1", "cpu")
    scores = {name: task["metrics"].get("acc_norm", task["metrics"]["acc"]) for name, task in seen.get("tasks", {}).items()}
    return {key: seen[key] for key in keep} | {"activations": row.activations, "tasks": scores}


def quantized(args, row, seed):
    """The folder of a row, made or found finished, and what making it took."""
    if row.solver == "source":
        return args.source, {}
    folder, log = args.work / f"{row.name}-{seed}", args.work / f"{row.name}-{seed}.log"
    finished = args.work / f"{row.name}-{seed}.cost.json"
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)
        load = os.getloadavg()[0]
        cost = quantize(args, row, seed, folder, log) | {
            "cores": len(os.sched_getaffinity(0)), "load_before": load, "load_after": os.getloadavg()[0]}
        finished.write_text(json.dumps(cost))
    return folder, json.loads(finished.read_text())


def measure(args, row, seed):
    """One (row, seed): the record that goes to done/; none if it is to be judged later."""
    record = {"row": row.name, "tool": row.peer or "nibble", "scheme": row.scheme, "kind": row.kind, "solver": row.solver,
              "seed": seed, "commit": args.commit}
    try:
        folder, cost = quantized(args, row, seed)
        if args.quantize_only:
            return None
        record |= cost
        record["bits_per_weight"], record["bytes"] = bits_per_weight(args, folder)
        record |= judge(args, row, seed, folder)
    except Failed as error:
        record["error"] = str(error)
    for left in args.work.glob(f"{row.name}-{seed}"):
        shutil.rmtree(left)
    (args.work / f"{row.name}-{seed}.cost.json").unlink(missing_ok=True)
    return record


def main():
    args = parse_args()
    args.pythons = dict(pair.split("=", 1) for pair in args.peer)
    args.commit = args.commit or subprocess.run(["git", "-C", str(PEER_SCRIPT.parent), "rev-parse", "--short", "HEAD"],
                                                stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    done = args.work / "done"
    done.mkdir(parents=True, exist_ok=True)
    lock = None if args.report_only else take(args.work)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    for row in rows.ROWS if not args.report_only else []:
        if not re.search(args.rows, row.name) or (row.peer and row.peer not in args.pythons):
            continue
        for seed in range(args.seeds if row.calibrated else 1):
            file = done / f"{row.name}-{seed}.json"
            if file.exists():
                continue
            say("begin", row.name, "seed", seed)
            record = measure(args, row, seed)
            if record is None:
                continue
            file.write_text(json.dumps(record, indent=1) + "\n")
            say("done ", row.name, "seed", seed, f"KL {record['kl_mean']:.4f}" if "kl_mean" in record else record["error"])
    records = [json.loads(file.read_text()) for file in sorted(done.glob("*.json"))]
    cpus = sorted({record["cpu"] for record in records if "cpu" in record})
    commits = sorted({record["commit"] for record in records if record.get("commit")})
    result = {"commit": ", ".join(commits), "cpu": ", ".join(cpus), "source": args.source.name,
              "calibration": f"wiki.valid {WINDOWS} x {LENGTH}, another piece of it for each seed",
              "judge": "nibble eval, wiki.test " + " ".join(JUDGE[:-1]) + ", int16 activations unless the solver says int8",
              "tasks": f"first {args.task_items} items, first seed" if args.tasks else "", "rows": report.summarize(records, rows.ROWS),
              "runs": records}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".html").write_text(report.html(result), encoding="utf-8")
    print(report.text(result))


main()
