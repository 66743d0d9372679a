"""CTest `forbidden`: sources of nondeterminism and dangerous calls occur only where they are implemented.

Usage: forbidden.py SOURCE_DIR
Time, randomness, sleeping and the environment go through base (Clock, Random) and cli; processes are never started;
foreign numbers are parsed by our own functions, which accept no signs, blanks, overflow or locale.
"""

import pathlib
import re
import sys

# (what it is, pattern, files that may use it)
RULES = [
    ("a clock: use Clock", r"\b(steady_clock|system_clock|high_resolution_clock)\s*::\s*now\b|\bclock_gettime\s*\("
     r"|\bgettimeofday\s*\(|(?<![\w.>])(?:std::|::)?time\s*\(\s*(?:nullptr|NULL|0|&)",
     ["src/base/clock.cpp",
      "src/base/thread_pool.cpp",   # how long a worker spins before it sleeps: no result depends on it
      "src/serve/http_server.cpp",  # time-outs of connections, on its own event loop
      "src/tokenizer/regex.cpp"]),  # the last bound on a hostile pattern; ordinary text never meets it
    ("randomness: use Random", r"\brandom_device\b|\bmt19937\b|(?<![\w.>:])(?:std::|::)?s?rand\s*\(\s*\)?"
     r"|\bgetrandom\s*\(|\bgetentropy\s*\(|/dev/u?random|\bRAND_bytes\s*\(", ["src/base/random.cpp"]),
    ("sleeping: wait on a condition, or use Clock", r"\bsleep_(?:for|until)\s*\(|(?<![\w.>:])(?:::)?u?sleep\s*\("
     r"|\bnanosleep\s*\(", ["src/serve/http_server.cpp"]),  # waits for the last answers to be sent
    ("the environment: cli/main.cpp is its only reader", r"\b(?:secure_)?getenv\s*\(|\bsetenv\s*\(|\benviron\b",
     ["src/cli/main.cpp"]),
    ("another process", r"(?<![\w.>:])(?:std::|::)?system\s*\(|\bpopen\s*\(|\bexec(?:l|lp|le|v|vp|vpe|ve)\s*\("
     r"|\bv?fork\s*\(|\bposix_spawnp?\s*\(", ["src/eval/sandbox_child.cpp"]),  # programs of coding tasks
    ("C number parsing: use ParseInt and its kin", r"\bstrto(?:l|ll|ul|ull|f|d|ld|imax|umax)\s*\("
     r"|\bato(?:i|l|ll|f)\s*\(|\bsto(?:i|l|ll|ul|ull|f|d|ld)\s*\(|\bv?f?s?scanf\s*\(", []),
    ("std::regex: exponential time on foreign data", r"#\s*include\s*<regex>|\bstd::(?:basic_|w)?regex\b", []),
    ("stack arrays of a size from outside", r"\balloca\s*\(", []),
    ("code from a file", r"\bdlopen\s*\(", ["src/device/vendor_library.cpp"]),  # fixed names of the driver's libraries
]


def code_of(text):
    """Blanks comments and literals, keeping line numbers; includes keep their header name."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)

    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])

    return token.sub(lambda m: m[0] if re.fullmatch(r'"/dev/u?random"', m[0]) else blank(m), text)


def main():
    root = pathlib.Path(sys.argv[1])
    files = sorted(p for p in (root / "src").rglob("*") if p.suffix in (".h", ".inc", ".cpp", ".cu", ".cuh"))
    errors, used = [], set()
    for path in files:
        name = str(path.relative_to(root))
        code = code_of(path.read_text(encoding="utf-8"))
        for index, (what, pattern, allowed) in enumerate(RULES):
            for match in re.finditer(pattern, code):
                used.add((index, name))
                if name not in allowed:
                    line = code.count("\n", 0, match.start()) + 1
                    errors.append(f"{name}:{line}: {match[0].strip()}: {what}")
    for index, (what, _, allowed) in enumerate(RULES):
        errors += [f"forbidden.py: {name} no longer needs its exception ({what})" for name in allowed
                   if (root / name).exists() and (index, name) not in used]
    print("\n".join(errors + [f"forbidden: {len(files)} files, {len(errors)} errors"]))
    return 1 if errors or not files else 0


sys.exit(main())
