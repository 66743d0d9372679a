"""CTest `headers`: every header of src/ compiles alone, with the flags of the build.

Usage: headers.py SOURCE_DIR COMPILER [FLAGS...]
One -fsyntax-only run a header, as many at once as there are cores. The header is included twice, so that a missing
#pragma once shows as well.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys


def check(source, command, header):
    name = header.relative_to(source)
    text = f'#include "{name}"\n#include "{name}"\n'
    run = subprocess.run([*command, "-I", str(source), "-fsyntax-only", "-x", "c++", "-"], input=text, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{name} does not compile alone:\n{run.stdout}" if run.returncode else None


def main():
    source, command = pathlib.Path(sys.argv[1]) / "src", sys.argv[2:]
    headers = sorted(source.rglob("*.h"))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        errors = [e for e in pool.map(lambda h: check(source, command, h), headers) if e]
    print("\n".join(errors + [f"headers: {len(headers)} headers, {len(errors)} errors"]))
    return 1 if errors or not headers else 0


sys.exit(main())
