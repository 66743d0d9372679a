"""Small tokenizers of every kind that nibble reads, with the ids that the `tokenizers` library gives.

Usage: make_tokenizers.py OUT            (tests/golden/tokenizer; the Python needs tokenizers, see OUT/PROVENANCE.md)

OUT/bases.json   {name: tokenizer.json}: a byte-level BPE, a SentencePiece-style BPE with byte fallback and a BPE of
                 characters with an unknown token, trained on the text below.
OUT/cases.jsonl  one variant a line: {"name", "base", "set": {member of tokenizer.json: value, "model.x": value},
                 "cases": [{"text", "ids", "special"?, "decoded", "skipped"?}]}: ids without special tokens, "special"
                 with the post-processor and "skipped" the text without special tokens, where they differ.
"""

import copy
import hashlib
import json
import pathlib
import platform
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = """
The scheduler picks the next sequence, and the kernels compute its logits. A block holds sixteen tokens of the cache.
When a client disconnects, the sequence is cancelled within two steps; nobody waits for a token that nobody reads.
Weights are quantized to four bits: a scale and a zero point for every group of sixty-four. It's small, we're happy,
they'll measure it, I'd say, and you've seen 12 of 345 tables in 2024. 3.14159, 1,000,000 and 0x1F are numbers too.
Die Größe der Gruppe hängt von der Schärfe des Maßes ab. La précision dépend naïvement du débit. Быстрее и точнее!
数字和标点符号也要测试。日本語のテキストも少し。한국어 문장도 하나. 🚀 🎉 if (x < 10) { return x + 1; }  // done
""".strip()

TEXTS = [
    "",
    " ",
    "Hello, world!",
    " The scheduler  picks   the next sequence.\n\n  And then\t\tit waits. \n",
    "I'm they'll WE'RE DON'T 'ſ it's'x ''",
    "1 12 123 1234 0x1F ½ ² Ⅷ ٣٤ 1/2\n\n1",
    "naïve Größe e\u0301 ﬁ İstanbul ẞ Å Å",
    "数字和标点。日本語の１２３ 한국어 Быстрее",
    "🚀🎉 👩\u200d💻 \U000e0041 \ufffd \u0000\u0007",
    "a\u00a0b\u3000c\u2028d\u180ee\u200bf\r\ng\rh",
    "<s>scheduler</s> [INST] a<tok>b <tok> [MASK]. x[MASK]y <word> <words> xword word",
    "   \t leading and trailing   ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaathethethethethethethethethethethe",
    "if (x<10){return x+1;}//---...!!!$$$+=<>|~^`",
    "▁under▁ ▁ ▁▁line <0x41> Ġ",
    "0000½½ 1234² 12345Ⓐ ’▁é’▁’ ก\u0e34ค\u093f",
]

L3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
      r"|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def added(first_id):
    def token(content, **flags):
        return {"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": False, **flags}
    tokens = [token("<s>", special=True), token("</s>", special=True), token("[INST]"), token("[MASK]", lstrip=True),
              token("<tok>", rstrip=True, normalized=True), token("word", single_word=True), token("<word>"),
              token("<words>", special=True)]
    for i, t in enumerate(tokens):
        t["id"] = first_id + i
    return tokens


def base(kind):
    if kind == "byte":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=False)
    elif kind == "spm":
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=520, limit_alphabet=70, show_progress=False,
                                      special_tokens=["<unk>"] + [f"<0x{i:02X}>" for i in range(256)])
    else:
        t = Tokenizer(models.BPE(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=160, limit_alphabet=60, show_progress=False, special_tokens=["<unk>"])
    t.train_from_iterator(CORPUS.split("\n"), trainer)
    spec = json.loads(t.to_str())
    spec["added_tokens"] = [a for a in spec["added_tokens"] if a["content"] == "<unk>"] + added(t.get_vocab_size())
    if kind == "spm":
        spec["pre_tokenizer"] = None
    return spec


def split(pattern, behavior="Isolated", invert=False, regex=True):
    return {"type": "Split", "pattern": {"Regex" if regex else "String": pattern}, "behavior": behavior,
            "invert": invert}


def sequence(*items, member="pretokenizers"):
    return {"type": "Sequence", member: list(items)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BYTES_REGEX = {**BYTES, "use_regex": True}


def template(before, after, ids):
    single = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": t, "type_id": 0}} for t in after]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in before + after}}


def variants(bases):
    ids = {k: {a["content"]: a["id"] for a in b["added_tokens"]} for k, b in bases.items()}
    byte = lambda name, **over: (name, "byte", over)
    spm = lambda name, **over: (name, "spm", over)
    chars = lambda name, **over: (name, "chars", over)
    digits = lambda individual: {"type": "Digits", "individual_digits": individual}
    meta = lambda scheme, do_split: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
                                     "split": do_split}
    yield byte("gpt2")
    yield byte("gpt2_prefix_space", pre_tokenizer={**BYTES_REGEX, "add_prefix_space": True})
    yield byte("llama3", pre_tokenizer=sequence(split(L3), BYTES), **{"model.ignore_merges": True},
               post_processor={"type": "Sequence", "processors": [BYTES, template(["<s>"], [], ids["byte"])]})
    yield byte("cl100k_removed_inverted", pre_tokenizer=sequence(split(L3, "Removed", True), BYTES))
    yield byte("qwen2", normalizer={"type": "NFC"},
               pre_tokenizer=sequence(split(L3.replace("{1,3}", "")), BYTES), post_processor=BYTES)
    yield byte("qwen35", normalizer={"type": "NFC"}, pre_tokenizer=sequence(
        split(L3.replace("{1,3}", "").replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]",
                                                                                    r"[^\s\p{L}\p{M}\p{N}]")), BYTES))
    yield byte("smollm", pre_tokenizer=sequence(digits(True), BYTES_REGEX))
    yield byte("o200k", pre_tokenizer=sequence(split(O200K), BYTES))
    yield byte("deepseek_v3", normalizer=sequence(member="normalizers"),
               pre_tokenizer=sequence(*[split(p) for p in DEEPSEEK], BYTES))
    yield byte("kimi", pre_tokenizer=sequence(split(KIMI), BYTES))
    yield byte("falcon", pre_tokenizer=sequence({"type": "Punctuation", "behavior": "Contiguous"}, BYTES_REGEX,
                                                digits(False), split("[0-9][0-9][0-9]")))
    yield byte("triples", pre_tokenizer=sequence(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(GPT2), BYTES))
    yield byte("triples_zero_width", pre_tokenizer=sequence(split(r"(?=(\d{3})+(?!\d))"), BYTES))
    yield byte("line_ends", pre_tokenizer=sequence(split(r"\s+$"), split(r"^\w"), BYTES))
    yield byte("words", pre_tokenizer=sequence(split(r"\w+|[^\w\s]+", "Removed", True), split(r"\bw|\Bo"), BYTES))
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            yield byte(f"split_{behavior}{'_inverted' if invert else ''}",
                       pre_tokenizer=sequence(split(r"[aeiou\s]", behavior, invert), BYTES))
    yield byte("split_string", pre_tokenizer=sequence(split("the", "MergedWithPrevious", regex=False), BYTES))
    yield byte("white_space_split", pre_tokenizer=sequence({"type": "WhitespaceSplit"},
                                                           {"type": "Punctuation"}, BYTES))
    yield byte("delimiter", pre_tokenizer=sequence({"type": "CharDelimiterSplit", "delimiter": "i"}, BYTES))
    for form in ["NFC", "NFD", "NFKC", "NFKD"]:
        yield byte(f"form_{form}", normalizer={"type": form})
    yield byte("lowercase_strip", normalizer=sequence(
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFD"}, {"type": "StripAccents"},
        {"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        member="normalizers"))
    yield byte("normalizer_bytes", normalizer={"type": "ByteLevel"}, pre_tokenizer=None)
    yield byte("roberta", post_processor={"type": "RobertaProcessing", "cls": ["<s>", ids["byte"]["<s>"]],
                                          "sep": ["</s>", ids["byte"]["</s>"]], "trim_offsets": True,
                                          "add_prefix_space": False})
    yield byte("no_decoder", decoder=None)
    yield spm("llama2", post_processor=template(["<s>"], ["</s>"], ids["spm"]))
    yield spm("gemma", normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
              pre_tokenizer=split(" ", "MergedWithPrevious", regex=False),
              decoder=sequence({"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                               {"type": "ByteFallback"}, {"type": "Fuse"}, member="decoders"))
    for scheme in ["always", "first", "never"]:
        for do_split in [True, False]:
            yield spm(f"metaspace_{scheme}{'' if do_split else '_whole'}", normalizer=None,
                      pre_tokenizer=meta(scheme, do_split), decoder=meta(scheme, do_split))
    yield chars("characters")
    yield chars("characters_fused", **{"model.fuse_unk": True})
    yield chars("characters_dropped", **{"model.unk_token": None}, decoder={"type": "Fuse"})
    yield chars("characters_metaspace", pre_tokenizer=sequence({"type": "Punctuation"}, meta("always", True)),
                decoder=sequence(meta("always", True), {"type": "Strip", "content": "a", "start": 1, "stop": 0},
                                 member="decoders"))


def apply(spec, over):
    spec = copy.deepcopy(spec)
    for key, value in over.items():
        if key.startswith("model."):
            spec["model"][key[len("model."):]] = value
        else:
            spec[key] = value
    return spec


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    # Training breaks ties in hash order: another run gives other vocabularies, so an existing one is kept.
    if not (out / "bases.json").exists():
        bases = {kind: base(kind) for kind in ["byte", "spm", "chars"]}
        with open(out / "bases.json", "w", encoding="utf-8") as file:
            json.dump(bases, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
    bases = json.loads((out / "bases.json").read_text(encoding="utf-8"))
    count = 0
    with open(out / "cases.jsonl", "w", encoding="utf-8") as file:
        for name, kind, over in variants(bases):
            t = Tokenizer.from_str(json.dumps(apply(bases[kind], over)))
            cases = []
            for text in TEXTS:
                ids = t.encode(text, add_special_tokens=False).ids
                case = {"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False)}
                special = t.encode(text).ids
                skipped = t.decode(ids, skip_special_tokens=True)
                if special != ids:
                    case["special"] = special
                if skipped != case["decoded"]:
                    case["skipped"] = skipped
                cases.append(case)
                count += 1
            json.dump({"name": name, "base": kind, "set": over, "cases": cases}, file, ensure_ascii=False,
                      separators=(",", ":"))
            file.write("\n")
    sums = "".join(f"{hashlib.sha256((out / f).read_bytes()).hexdigest()}  {f}\n" for f in ["bases.json", "cases.jsonl"])
    (out / "PROVENANCE.md").write_text(f"""# Small tokenizers and the ids that the reference library gives

Written by `tools/golden/make_tokenizers.py tests/golden/tokenizer`: three tokenizers trained on the script's own text,
variants of their pipelines, and {count} texts encoded and decoded. Nothing is downloaded. The script's head says what
each file holds.

Python {platform.python_version()}, tokenizers {tokenizers.__version__}. Training breaks ties in hash order, so the script
keeps bases.json if it is there; cases.jsonl then comes out the same.

sha256:

```
{sums}```
""")


main()
