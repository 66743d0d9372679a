"""CTest `tree_self_test`: the checks of this folder report what they exist for.

Usage: self_test.py COMPILER NM
Each case writes a small tree with one mistake and expects the check to fail and to name it; and the same tree without
the mistake to pass.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
COMPILER, NM = sys.argv[1], sys.argv[2]

CLEAN = {"src/base/clean.h": "#pragma once\nint Three();\n",
         "src/json/uses.cpp": '#include "base/clean.h"\n// time(nullptr), getenv("HOME")\nconst char* s = "system(";\n'}


def run(check, tree, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in tree.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        if check == "isa_objects":
            for source in list(root.rglob("*.cpp")):
                subprocess.run([COMPILER, "-std=c++20", "-c", source, "-o", f"{source}.o"], check=True)
        result = subprocess.run([sys.executable, HERE / f"{check}.py", root, *arguments], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return result.returncode, result.stdout


failures = 0


def expect(check, tree, complaint, *arguments):
    global failures
    code, output = run(check, tree, *arguments)
    right = code == 0 if complaint is None else code == 1 and complaint in output
    if not right:
        failures += 1
        print(f"{check}: expected {complaint or 'success'}, got exit {code}:\n{output}")


expect("layers", CLEAN, None)
expect("layers", CLEAN | {"src/base/up.cpp": '#include "json/value.h"\n'}, "base may use nothing")
expect("layers", CLEAN | {"src/tokenizer/x.h": '#include "io/file.h"\n'}, "tokenizer may use base, json")
expect("layers", CLEAN | {"src/model/x.h": "#include <cuda_runtime.h>\n"}, "CUDA headers belong to")
expect("layers", CLEAN | {"src/model/x.cuh": "#include <mma.h>\n"}, "CUDA headers belong to")
expect("layers", CLEAN | {"src/kernels/x.h": "#include <cuda.h>\n"}, "a build without CUDA compiles this file")
expect("layers", CLEAN | {"src/kernels/x.cuh": "\n", "src/kernels/x.cpp": '#include "kernels/x.cuh"\n'}, "only nvcc")
expect("layers", CLEAN | {"src/serve/x.h": "#include <boost/asio.hpp>\n"}, "a heavy header")
expect("layers", CLEAN | {"src/util/x.h": "\n"}, "not a module")
expect("layers", CLEAN | {"src/json/x.h": '#include "base/none.h"\n'}, "no such file")

expect("headers", CLEAN, None, COMPILER, "-std=c++20")
expect("headers", CLEAN | {"src/base/x.h": "std::string Name();\n"}, "base/x.h does not compile alone", COMPILER)
expect("headers", CLEAN | {"src/base/x.h": "struct Twice {};\n"}, "base/x.h does not compile alone", COMPILER)

expect("forbidden", CLEAN, None)
for mistake in ("auto t = std::chrono::steady_clock::now();", "auto t = time(nullptr);", "int r = rand();",
                "std::random_device d;", "std::this_thread::sleep_for(s);", 'auto v = std::getenv("A");',
                'int x = system("ls");', "long n = std::strtol(p, nullptr, 10);", "int n = std::stoi(text);",
                "int n = atoi(p);", "#include <regex>", "void* p = alloca(n);", "if (fork() == 0) {}",
                'sscanf(p, "%d", &n);'):
    expect("forbidden", CLEAN | {"src/json/x.cpp": mistake + "\n"}, "src/json/x.cpp:1: ")
expect("forbidden", CLEAN | {"src/kernels/x.cuh": "int r = rand();\n"}, "src/kernels/x.cuh:1: ")

kernel = "namespace nibble { int Table() { return 3; } }\n"
expect("isa_objects", {"src/kernels/a_avx512.cpp": kernel}, None, NM)
expect("isa_objects", {"src/kernels/a_avx512.cpp": "inline int Shared() { return 1; }\n" + kernel.replace("3", "Shared()")},
       "shared with the rest", NM)
expect("isa_objects", {"src/kernels/a_avx2.cpp": "int Loose() { return 1; }\n" + kernel}, "outside namespace", NM)
expect("isa_objects", {"src/kernels/a_avx2.cpp": "extern int f(); static int early = f();\n" + kernel}, "before main", NM)
expect("isa_objects", {"src/kernels/a_amx.cpp": "static int unused;\n"}, "exports nothing", NM)
expect("isa_objects", {"src/kernels/plain.cpp": kernel}, "0 objects", NM)
for file, flags in (("plain.cpp", "-O2 -mavx2"), ("x.cu", "-O2 -Xcompiler=-march=native")):
    command = json.dumps([{"file": f"/nibble/src/kernels/{file}", "command": f"c++ {flags} -c {file}"}])
    expect("isa_objects", {"src/kernels/a_avx2.cpp": kernel, "compile_commands.json": command},
           f"{file}: compiled with -m", NM)

print(f"tree_self_test: {failures} failures")
sys.exit(1 if failures else 0)
