"""Counts what a run of ctest did, case by case. Usage: count_tests.py DIR   (tests.xml and cases/*.json in it)

A GoogleTest program counts with its cases, any other test as one; a program that ends without a report of its cases
(a crash, a time-out) counts as one failure. The last line is "N passed, N failed"; exit 1 unless all passed.
"""

import json
import pathlib
import sys
import xml.etree.ElementTree as xml

folder = pathlib.Path(sys.argv[1])
passed = failed = skipped = 0
tests = list(xml.parse(folder / "tests.xml").getroot().iter("testcase")) if (folder / "tests.xml").exists() else []
for test in tests:
    cases = folder / "cases" / (test.get("name") + ".json")
    ok = test.get("status") == "run"
    if cases.exists():
        suites = json.loads(cases.read_text())["testsuites"]
        results = [c for suite in suites for c in suite["testsuite"]]
        bad = sum("failures" in c for c in results)
        skips = sum(c.get("result") == "SKIPPED" for c in results)
        failed += bad + (not ok and bad == 0)
        skipped += skips
        passed += len(results) - bad - skips
    elif test.get("status") in ("notrun", "disabled"):
        missing = test.find("skipped") is not None and "SKIP" in (test.find("skipped").get("message") or "")
        skipped += missing
        failed += not missing
    else:
        passed += ok
        failed += not ok
if skipped:
    print(f"{skipped} skipped (each says why above, or with ctest -V)")
print(f"{passed} passed, {failed} failed")
sys.exit(0 if passed and not failed else 1)
