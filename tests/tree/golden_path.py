"""CTest `golden_path`: the ten stops of docs/architecture.md exist in the code, in the files that it names.

Usage: golden_path.py SOURCE_DIR
A stop is a numbered line `N. `file.cpp`[, `file.cpp`], **Name**[, **Type::Name**]...`; each name must be defined in one of the
stop's files.
"""

import pathlib
import re
import sys

NUM_STOPS = 10


def main():
    root = pathlib.Path(sys.argv[1])
    text = (root / "docs" / "architecture.md").read_text()
    section = text.split("## The golden path")[1].split("\n## ")[0]
    stops = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\n\n)", section, re.M | re.S)
    errors = [] if [n for n, _ in stops] == [str(i + 1) for i in range(NUM_STOPS)] else [
        f"docs/architecture.md: expected stops 1 to {NUM_STOPS}, found {', '.join(n for n, _ in stops)}"]
    for number, stop in stops:
        files = re.findall(r"`([\w/]+\.cpp)`", stop)
        names = re.findall(r"\*\*([\w:]+)\*\*", stop)
        missing = [f for f in files if not (root / "src" / f).exists()]
        errors += [f"stop {number}: src/{f} does not exist" for f in missing]
        code = "\n".join((root / "src" / f).read_text() for f in files if f not in missing)
        last_type = ""
        for name in names:
            if name.startswith("::"):
                name = last_type + name
            last_type = name.rpartition("::")[0]
            short = name.rpartition("::")[2]
            if not re.search(rf"\b{short}\(", code):
                errors.append(f"stop {number}: {name} is not in {', '.join(files)}")
        if not files:
            errors.append(f"stop {number}: names no file")
    print("\n".join(errors + [f"golden_path: {len(stops)} stops, {len(errors)} errors"]))
    return 1 if errors else 0


sys.exit(main())
