"""Records the SHA-256 of the logits of every tiny golden model, as the test that will check them computes them.

Usage: make_logit_hashes.py BUILD              (BUILD: build/dev, with the target model_test built)

Writes tests/golden/logit_hashes/hashes.json and PROVENANCE.md. Refuses to write unless every ISA of this machine (the
scalar reference is always one) gives the same hash: what is recorded is the arithmetic, not a machine. To be run only
where the arithmetic changes on purpose, with an ADR that says why: certificates made before will then be refused.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "golden" / "logit_hashes"


def main():
    (test,) = pathlib.Path(sys.argv[1]).rglob("model_test")
    OUT.mkdir(parents=True, exist_ok=True)
    if not (OUT / "hashes.json").exists():
        (OUT / "hashes.json").write_text("{}\n")
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        # Fails where the recorded hashes are old, which is why one runs this.
        subprocess.run([test, "--gtest_filter=*LogitHashes*", f"--gtest_output=json:{report}", "--gtest_brief=1"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        suites = json.loads(report.read_text())["testsuites"]
    hashes, isas = {}, set()
    for case in (case for suite in suites for case in suite["testsuite"]):
        model = case["value_param"].strip('"')
        found = {}
        for key, value in case.items():
            if "_kv_" in key:
                mode, isa = key.split(".")
                isas.add(isa)
                found.setdefault(mode, set()).add(value)
        for mode, values in found.items():
            if len(values) != 1:
                raise SystemExit(f"{model} {mode}: the ISAs of this machine disagree; nothing is written")
        hashes[model] = {mode: values.pop() for mode, values in sorted(found.items())}
    text = json.dumps(hashes, indent=2, sort_keys=True) + "\n"
    (OUT / "hashes.json").write_text(text)
    (OUT / "PROVENANCE.md").write_text(f"""# Hashes of logits

Written by `tools/golden/make_logit_hashes.py build/dev`: SHA-256 over the fp32 logits (little endian) of all
positions of a prompt, by activation mode and type of the KV cache, as nibble computes them: 40 tokens for every model in
`tests/golden/models`, 24 for three GGUF files of `fuzz/corpus/gguf`. Recorded from: {', '.join(sorted(isas))}, which agreed.

sha256 of hashes.json: {hashlib.sha256(text.encode()).hexdigest()}
""")
    print(f"{len(hashes)} models, {', '.join(sorted(isas))}")


main()
