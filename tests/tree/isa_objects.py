"""CTest `isa_objects`: objects built for one instruction set share no code with the rest of the program.

Usage: isa_objects.py BUILD_DIR NM
An inline function in a file built with -mavx512* would be compiled with AVX-512, and the linker may keep that copy for
everyone: the program then dies on a machine without it. So these objects define no weak, unique or common symbol, and
what they export is named in namespace nibble. They also run no initializer before main. No other source, C++ or CUDA,
is compiled with such a flag.
"""

import json
import pathlib
import re
import subprocess
import sys

ISA_FILE = re.compile(r"_(avx2|avx512|amx)\.cpp\.o$")
ISA_FLAG = re.compile(r"(?<=[\s,=])-m(?:avx|amx|fma|f16c|bmi|arch=|cpu=|tune=)\S*")


def check(path, nm):
    listing = subprocess.run([nm, "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True)
    exported = 0
    for line in listing.stdout.splitlines():
        match = re.match(r"^[0-9a-f]*\s+(\w)\s+(.*)$", line)
        if not match:
            continue
        kind, name = match.groups()
        if kind in "WVuvwC":
            yield f"{path.name}: {kind} {name}: shared with the rest of the program; make it static"
        elif kind == "T" and not name.startswith("nibble::"):
            yield f"{path.name}: exports {name} outside namespace nibble"
        elif name.startswith("_GLOBAL__sub_I"):
            yield f"{path.name}: {name} runs before main, on machines without this instruction set too"
        exported += kind in "TDRB" and name.startswith("nibble::")
    if not exported:
        yield f"{path.name}: exports nothing: no kernel table or entry point"


def stray_flags(commands):
    for entry in json.loads(commands.read_text()):
        flag = ISA_FLAG.search(entry["command"])
        if flag and not ISA_FILE.search(entry["file"] + ".o"):
            yield f"{entry['file']}: compiled with {flag[0]}: only *_avx2.cpp, *_avx512.cpp and *_amx.cpp may be"


def main():
    build, nm = pathlib.Path(sys.argv[1]), sys.argv[2]
    objects = sorted(p for p in (build / "src" / "kernels").rglob("*.o") if ISA_FILE.search(p.name))
    errors = [e for path in objects for e in check(path, nm)]
    commands = build / "compile_commands.json"
    errors += stray_flags(commands) if commands.exists() else []
    print("\n".join(errors + [f"isa_objects: {len(objects)} objects, {len(errors)} errors"]))
    return 1 if errors or not objects else 0


sys.exit(main())
