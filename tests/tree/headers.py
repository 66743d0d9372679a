"""CTests `headers` and, in a build with CUDA, `headers_cuda`: every header of src/ compiles alone.

Usage: headers.py SOURCE_DIR COMPILER [FLAGS...]          the .h files, or with nvcc as COMPILER the .cuh files
One run of the front end a header, as many at once as there are cores. The header is included twice, so that a missing
#pragma once shows as well.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

HEADERS_OF = {".h": ".cpp", ".cuh": ".cu"}  # and the kind of source that includes them


def check(source, command, header):
    name = header.relative_to(source)
    text = f'#include "{name}"\n#include "{name}"\n'
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / f"twice{HEADERS_OF[header.suffix]}"
        file.write_text(text)
        only_check = ["-fsyntax-only"] if header.suffix == ".h" else ["--ptx", "-o", f"{folder}/out.ptx"]
        run = subprocess.run([*command, "-I", str(source), *only_check, str(file)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{name} does not compile alone:\n{run.stdout}" if run.returncode else None


def main():
    source, command = pathlib.Path(sys.argv[1]) / "src", sys.argv[2:]
    kind = ".cuh" if pathlib.Path(command[0]).name == "nvcc" else ".h"
    headers = sorted(source.rglob(f"*{kind}"))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        errors = [e for e in pool.map(lambda h: check(source, command, h), headers) if e]
    print("\n".join(errors + [f"headers: {len(headers)} headers, {len(errors)} errors"]))
    return 1 if errors or not headers else 0


sys.exit(main())
