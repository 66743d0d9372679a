"""CTest `layers`: the #include lines of src/ follow the module table of docs/architecture.md.

Usage: layers.py SOURCE_DIR
A module may include itself, its dependencies, and what those use; a CUDA header only kernels, device and parallel, and
there only .cpp, .cu and .cuh files: every .h compiles in a build without CUDA. Only .cu and .cuh files include a .cuh.
The heavy libraries stay in the files listed here (each include costs every file that sees it).
"""

import pathlib
import re
import sys

# In the order of the table; arrows point up only.
DEPENDENCIES = {
    "base": [],
    "json": ["base"],
    "tensor": ["base"],
    "codec": ["tensor"],
    "device": ["tensor"],
    "io": ["json", "tensor"],
    "checkpoint": ["codec", "io"],
    "tokenizer": ["json"],
    "template": ["json"],
    "kernels": ["codec", "device"],
    "solve": ["kernels"],
    "parallel": ["device"],
    "model": ["checkpoint", "kernels", "parallel"],
    "engine": ["model", "tokenizer"],
    "eval": ["engine", "template"],
    "compress": ["eval", "solve"],
    "search": ["io", "kernels"],
    "onnx": ["model"],
    "serve": ["engine", "search", "template"],
    "cli": ["base", "json", "tensor", "codec", "device", "io", "checkpoint", "tokenizer", "template", "kernels",
            "solve", "parallel", "model", "engine", "eval", "compress", "search", "onnx", "serve"],
}
CUDA_MODULES = {"kernels", "device", "parallel"}
# Headers that cost seconds a file; they may appear in .cpp files only.
SOURCE_ONLY = re.compile(r"^(boost/|CLI/|simdjson|spdlog/|unicode/|openssl/|pcre2|yaml-cpp/|prometheus/)")

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')


def reachable(module, found=None):
    found = set() if found is None else found
    for dependency in DEPENDENCIES[module]:
        if dependency not in found:
            found.add(dependency)
            reachable(dependency, found)
    return found


def check_file(path, source):
    module = path.relative_to(source).parts[0]
    allowed = reachable(module) | {module}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, target = match[1] == '"', match[2]
        where = f"{path.relative_to(source.parent)}:{number}: {target}: "
        if quoted:
            used = target.split("/")[0]
            if "/" not in target:
                yield where + 'write it as "module/file.h"'
            elif used not in DEPENDENCIES:
                yield where + "no such module"
            elif used not in allowed:
                yield where + f"{module} may use {', '.join(sorted(allowed - {module})) or 'nothing'}"
            elif not (source / target).exists():
                yield where + "no such file"
            elif target.endswith(".cuh") and path.suffix not in (".cu", ".cuh"):
                yield where + "device code: only nvcc compiles it"
        elif re.match(r"^(cuda|cublas|cusolver|nccl|mma\.h|cooperative_groups|cub/|thrust/)", target):
            if module not in CUDA_MODULES:
                yield where + "CUDA headers belong to kernels, device and parallel"
            elif path.suffix == ".h":
                yield where + "a build without CUDA compiles this file too: declare what it needs, or make it a .cuh"
        elif path.suffix == ".h" and SOURCE_ONLY.match(target):
            yield where + "a heavy header belongs into a single .cpp"


def main():
    source = pathlib.Path(sys.argv[1]) / "src"
    order = list(DEPENDENCIES)
    errors = [f"layers.py: {m} uses {d}, which is below it" for m in order for d in DEPENDENCIES[m]
              if order.index(d) >= order.index(m)]
    files = sorted(p for p in source.rglob("*") if p.suffix in (".h", ".inc", ".cpp", ".cu", ".cuh"))
    errors += [f"src/{m.name}: not a module of the table" for m in source.iterdir() if m.name not in DEPENDENCIES]
    for path in files:
        if path.relative_to(source).parts[0] not in DEPENDENCIES:
            continue
        errors += check_file(path, source)
    print("\n".join(errors + [f"layers: {len(files)} files, {len(errors)} errors"]))
    return 1 if errors or not files else 0


sys.exit(main())
