"""Compares `nibble tokenize` with the `tokenizers` library on random text and random ids.

Usage: check_tokenizer.py NIBBLE FOLDER [--model PATH] [--rounds 4000] [--seed 1]
FOLDER holds the tokenizer.json that the library reads. nibble reads FOLDER too, or the --model given: a GGUF whose
tokenizer.json nibble wrote into FOLDER. Prints the differences; exits with 1 if there are any.

Known and wanted differences, which are counted apart:
  characters   the library's tables are of another version of Unicode: text with characters not assigned in Python's
  bytes        of a broken run of byte tokens the library replaces every byte, nibble only those that are no UTF-8
               (it has sent the others on already)
  added        an added token such as "\u00f5" is text to nibble; the library's ByteLevel decoder takes its letters for
               bytes
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import unicodedata

from tokenizers import Tokenizer

parser = argparse.ArgumentParser()
parser.add_argument("nibble")
parser.add_argument("folder")
parser.add_argument("--model")
parser.add_argument("--rounds", type=int, default=4000)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

rng = random.Random(args.seed)
reference = Tokenizer.from_file(str(pathlib.Path(args.folder) / "tokenizer.json"))
reference.no_truncation()
reference.no_padding()
names = [token.content for token in reference.get_added_tokens_decoder().values()][:50] or ["<s>"]
SCRIPTS = [(0x80, 0x800), (0x900, 0x980), (0xE00, 0xE80), (0x3040, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
           (0x1F300, 0x1F6FF), (0x20, 0xFFFF), (0x10000, 0x110000), (0, 32)]


def atom():
    kind = rng.randrange(8)
    if kind == 0:
        return chr(rng.randrange(32, 127))
    if kind == 1:
        return rng.choice([" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", " " * rng.randrange(40)])
    if kind == 2:
        return rng.choice(["'s", "'S", "'re", "'LL", "'\u017f", "n't", "'", "\u2019"])
    if kind == 3:
        return rng.choice(["the", " and", "Hello", "\u00e9", "e\u0301", "\ufb01", "\u0130", "\u2581", "a" * rng.randrange(60)])
    if kind == 4:
        return rng.choice("0123456789\u00bd\u00b2\u2167\u0663") * rng.randrange(5)
    if kind == 5:
        return rng.choice(["!", "...", "--", "/", "<", "}", "_"]) * rng.randrange(6)
    if kind == 6:
        return rng.choice(names)
    return chr(rng.randrange(*rng.choice(SCRIPTS)))


def nibble(rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    answer = subprocess.run([args.nibble, "tokenize", args.model or args.folder, "--jsonl"], input=lines, text=True,
                            capture_output=True, check=True, encoding="utf-8")
    return [json.loads(line) for line in answer.stdout.split("\n") if line]


different = unicode_only = bytes_only = added_only = 0
added = {i for i, token in reference.get_added_tokens_decoder().items() if not token.content.isascii()}
texts = ["".join(atom() for _ in range(rng.randrange(30))) for _ in range(args.rounds)]
texts = ["".join(c for c in text if not 0xD800 <= ord(c) < 0xE000) for text in texts]
for text, ours in zip(texts, nibble([{"text": text} for text in texts]), strict=True):
    theirs = {"ids": reference.encode(text, add_special_tokens=False).ids, "ids_special": reference.encode(text).ids}
    if ours != theirs:
        if any(unicodedata.category(c) == "Cn" for c in text):
            unicode_only += 1
        else:
            different += 1
            print(f"text {text!a}\n  tokenizers {theirs['ids']}\n  nibble     {ours['ids']}")
size = reference.get_vocab_size()
ids = [[rng.randrange(size) if rng.random() < 0.8 else rng.randrange(300) for _ in range(rng.randrange(12))]
       for _ in range(args.rounds)]
for row, ours in zip(ids, nibble([{"ids": row} for row in ids]), strict=True):
    theirs = reference.decode(row, skip_special_tokens=False)
    if ours["text"] != theirs:
        if "\ufffd" in theirs and any(re.fullmatch("<0x..>", reference.id_to_token(i) or "") for i in row):
            bytes_only += 1
        elif "\ufffd" in theirs and added.intersection(row):
            added_only += 1
        else:
            different += 1
            print(f"ids {row}\n  tokenizers {theirs!a}\n  nibble     {ours['text']!a}")
print(f"{2 * args.rounds} rounds, {different} different (not counted: {unicode_only} of unassigned characters, "
      f"{bytes_only} of broken byte runs, {added_only} of added tokens)")
sys.exit(1 if different else 0)
