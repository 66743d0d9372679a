#!/usr/bin/env python3
"""Records what the standard packages make of small texts: tests/golden/text_metrics.

Usage: tools/golden/make_text_metrics.py tests/golden/text_metrics
Needs rouge-score, sacrebleu, langdetect, immutabledict and packaging, and lm-eval's files (pip install --no-deps lm-eval).

All texts are written for this purpose. The instructions of IFEval are judged by lm-eval's copy of
google-research/instruction_following_eval. Its sentences are those of NLTK's Punkt, which knows one abbreviation, "U.S.A.",
instead of those that it is trained on.
"""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import platform
import random
import re
import sys
import types

import sacrebleu
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from rouge_score import rouge_scorer

SEED = 20261127
STEMS = ("a be cat relate condition ration valence hesitance digit conform radical differ vile analogous vietnam "
         "predicate operate feud decisive hope callous formal sensitive sense triplicate form electric good revive "
         "allow infer airline gyroscope adjust defend irritate replace depend adopt homolog commun active angular "
         "effect bowdler probe rate cease control roll happy enjoy sky fly spy cry agree feed bleed plaster motor sing "
         "hop tan fall hiss fizz fail file troubl siz conflat archaeo logi theo psycho model network quantiz compress "
         "die lie tie tree oat ivy orrery syzygy yyy toy by box tax fix snow").split()
ENDINGS = ("", "s", "es", "ies", "sses", "ed", "eed", "ied", "ing", "ating", "bling", "izing", "y", "ly", "ally", "alli",
           "ational", "tional", "enci", "anci", "izer", "bli", "entli", "eli", "ousli", "ization", "ation", "ator",
           "alism", "iveness", "fulness", "ousness", "aliti", "iviti", "biliti", "fully", "ology", "icate", "ative",
           "alize", "iciti", "ical", "ful", "ness", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment",
           "ent", "sion", "tion", "ion", "ou", "ism", "ate", "iti", "ous", "ive", "ize", "e", "ll", "lle")
IRREGULAR = ("sky skies dying lying tying news innings inning outings outing cannings canning howe proceed exceed "
             "succeed proceeds dies ties").split()

SUMMARIES = [
    (["The quick brown fox jumps over the lazy dog."], "The quick brown dog jumps on the log."),
    (["We present a method that quantizes models to 4 bits.", "A 4-bit quantization method for language models."],
     "We propose quantization methods for large language models in 4-bit precision."),
    (["Cats are running; a cat ran."], "cat runs, CATS RUN!"),
    (["", "one two"], "one two three"),
    (["nothing alike here"], "completely different words"),
    (["a b c d e f"], ""),
    (["\u0130stanbul'da na\u00efve caf\u00e9s \u212aelvin"], "istanbul da naive cafes kelvin"),
    (["the the the the"], "the the"),
    (["x y z w", "w z y x", "x z y w"], "x y w z"),
    (["Generalization of conditional, relational and sensational hopefulness."],
     "general conditions relate sensations, hopefully"),
]

CORPORA = [
    ("13a", ["Hello, world! It costs $3.50 (or 1,000 yen).", "The end-to-end 3-way test... isn't over."],
     [["Hello world: it costs $3.50, or 1,000 yen.", "The end-to-end 3-way test is not over."]]),
    ("13a", ["the cat sat on the mat"], [["the cat sat on the mat"], ["there is a cat on the mat"]]),
    ("13a", ["the the the the the the the"], [["the cat is on the mat"], ["there is a cat on the mat"]]),
    ("13a", ["A <skipped>tag &amp; an &quot;entity&quot; &lt;b&gt;, split- \nline 5-6."],
     [["A tag & an \"entity\" <b>, split line 5-6."]]),
    ("13a", ["short"], [["a much longer reference sentence than that"]]),
    ("13a", ["no overlap whatsoever in these words"], [["completely other tokens make up this line"]]),
    ("13a", ["Wir haben jetzt vier Monate alte M\u00e4use.", "", "Er f\u00fcgte hinzu: \u201eJa\u201c."],
     [["Jetzt haben wir 4 Monate alte M\u00e4use.", "leer", "Er sagte: \u201eJa\u201c."]]),
    ("zh", ["\u6211\u4eec\u6709 4 \u4e2a\u6708\u5927\u7684\u8001\u9f20\u3002", "\u4ed6\u8bf4\uff1a\u201c\u597d\u201d abc,def\u2026"],
     [["\u6211\u4eec\u73b0\u5728\u6709 4 \u4e2a\u6708\u5927\u7684\u8001\u9f20\u3002", "\u4ed6\u8bf4\uff1a\u201c\u5f88\u597d\u201d abc, def."]]),
    ("char", ["\u7cd6\u5c3f\u75c5\u3067\u306f\u306a\u3044 mice"], [["\u7cd6\u5c3f\u75c5\u3067\u306a\u304b\u3063\u305f mouse"]]),
    ("char", ["abc def "], [["abd  def"]]),
]

ANSWERS = [
    "So she makes 9 * 2 = $18.\n#### 18", "The answer is 1,234.50.", "#### -5\nQuestion: what?", "No number at all.",
    "#### 1,000. And then 7", "It is $$$ and 3", "5", "#### .", "x = 3.14, y = -2", "####12", "#### 12#### 13", "-",
    "He has 5..", "about 50% of 20", "a$1,b.2",
]
REFERENCES = ["a <<1+1=2>>2\n#### 1,234.50", "#### -5", "b\n#### 1000", "#### 12", "c #### 18"]

RESPONSES = [
    "", "   \n ", "Hello.", "\"All of it is quoted, really.\"", "no commas here at all",
    "<<A title>>\n\nFirst paragraph with some words.\n\nSecond one.\n\nP.S. Do not forget.",
    "<< >>\nP.P.S. twice", "P. P. S twice with blanks", "* one\n* two\n- three", "  * one\n ** not one\n-two\n\n- three\n",
    "One part ***\nTwo part *** Three part", "*** One\n***\nTwo", "One\n***\n***\nTwo",
    "{\"a\": [1, 2, {\"b\": null}]}", "```json\n{\"a\": 1}\n```", "```\n[1, 2\n```", "My answer is yes.", "I say: My answer is no. ",
    "[name] lives in [city] at [address], [zip", "This is *important* and **very important** and * * and ****.",
    "SECTION 1\nfoo\nSECTION 2\nbar\nSection 3", "Audience1 x Audience 2 y", "First answer.\n******\nSecond answer.",
    "Same.\n******\nSame.", "******A******B******", "A******  ******B",
    "Write an email to my boss.\nDear boss, I quit.", "It is done. Is there anything else I can help with?\"",
    "The keyword Apple appears; apples and APPLE too. Banana!", "word " * 12 + "caf\u00e9 na\u00efve x_y 3.5",
    "Weather is fine.\n\n\n\nToday, it rains.\n\nweather!", "'weather' is first\n\nsecond paragraph", "tttttt Tomato \u0130",
    "# Heading\n* item *emph* text\nLast line, with comma", "Preamble:\nno comma in the body\nBye, then.",
]

INSTRUCTIONS = [
    ("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}),
    ("detectable_format:json_format", {}), ("detectable_format:constrained_response", {}),
    ("combination:two_responses", {}), ("combination:repeat_prompt", {"prompt_to_repeat": "Write an email to my boss. "}),
    ("startend:end_checker", {"end_phrase": "Is there anything else I can help with?"}),
    ("startend:end_checker", {"end_phrase": " Bye, then."}),
    ("keywords:existence", {"keywords": ["apple", "banana"]}), ("keywords:existence", {"keywords": ["done"]}),
    ("keywords:frequency", {"keyword": "apple", "frequency": 3, "relation": "at least"}),
    ("keywords:frequency", {"keyword": " word ", "frequency": 2, "relation": "less than"}),
    ("keywords:forbidden_words", {"forbidden_words": ["apple"]}),
    ("keywords:forbidden_words", {"forbidden_words": ["part", "paragraph"]}),
    ("keywords:letter_frequency", {"letter": "T", "let_frequency": 6, "let_relation": "at least"}),
    ("keywords:letter_frequency", {"letter": "i", "let_frequency": 1, "let_relation": "less than"}),
    ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}),
    ("length_constraints:number_words", {"num_words": 17, "relation": "less than"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "Weather"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "today"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "weather"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 3}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}),
    ("detectable_content:postscript", {"postscript_marker": "Bye"}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Audience", "num_sections": 2}),
    ("change_case:capital_word_frequency", {"capital_frequency": 3, "capital_relation": "at least"}),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}),
]
# Pieces of the texts whose words in capitals are counted.
CAPITALS = (
    "WORD Word word A I USA U.S.A. A.B R2D2 X_Y \u00c9T\u00c9 \u01c5 \u0416\u0416 \u03a9 42 A1 'S 's 'LL 'Ll 'VE 'RE 'M 'D N'T n't CAN'T CANNOT "
    "Cannot GIMME GONNA GOTTA LEMME WANNA D'YE MORE'N 'TIS 'TWAS 'TWERE 'N' ROCK O'CLOCK JAMES' ' '' ''' \" `` ` \u2019S \u201cYES\u201d "
    "\u00abA\u00bb - -- --- \u2014 \u2013 / \\ | _ + = ~ ^ . .. ... , : ; ! ? @ # $ % & * ( ) [ ] { } < > ,, ,1 :30 1,000").split()
CAPITALS += ["\n", "\n\n", "\t", "  ", "\u00a0", *[" "] * 8]


def stems():
    """Words for every rule, and their stems."""
    words = sorted({stem + ending for stem, ending in itertools.product(STEMS, ENDINGS)})
    words = random.Random(SEED).sample(words, 1500) + IRREGULAR
    stemmer = PorterStemmer()
    return {word: stemmer.stem(word) for word in words}


def rouge():
    out = []
    for references, summary in SUMMARIES:
        case = {"references": references, "summary": summary}
        for stem in (True, False):
            scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem)
            scores = scorer.score_multi(references, summary)
            case["stemmed" if stem else "plain"] = {
                name: [score.precision, score.recall, score.fmeasure] for name, score in scores.items()}
        out.append(case)
    return out


def translation():
    out = []
    for tokenize, hypotheses, references in CORPORA:
        bleu = sacrebleu.BLEU(tokenize=tokenize)
        out.append({"tokenize": tokenize, "hypotheses": hypotheses, "references": references,
                    "tokens": [bleu._preprocess_segment(h).split() for h in hypotheses],
                    "bleu": bleu.corpus_score(hypotheses, references).score,
                    "chrf": sacrebleu.CHRF().corpus_score(hypotheses, references).score})
    return out


def load_lm_eval():
    """lm-eval's modules one by one: its packages' own __init__ would ask for torch."""
    root = pathlib.Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    from lm_eval.tasks.ifeval import utils
    return utils


def gsm8k():
    """The two filters and the comparison of lm-eval's gsm8k.yaml."""
    def first(pattern, text):
        found = re.findall(pattern, text)
        return found[0].strip() if found else None

    def last(pattern, text):
        found = re.findall(pattern, text)
        return [group for group in found[-1] if group][0].strip() if found else None

    def normal(text):
        for ignored in (",", "\\$", "(?s).*#### ", "\\.$"):
            text = re.sub(ignored, "", text)
        return text.lower()

    cases = [{"text": text, "strict": first(r"#### (\-?[0-9\.\,]+)", text),
              "flexible": last(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)} for text in ANSWERS]
    found = sorted({case[key] for case in cases for key in ("strict", "flexible") if case[key]})
    same = [[answer, reference, normal(answer) == normal(reference)] for answer in found for reference in REFERENCES]
    return {"cases": cases, "same": same}


def word_tokenize(text):
    parameters = PunktParameters()
    parameters.abbrev_types.add("u.s.a")
    return [word for sentence in PunktSentenceTokenizer(parameters).tokenize(text) for word in NLTKWordTokenizer().tokenize(sentence)]


def capitals(count=400):
    draw = random.Random(SEED)
    texts = ["".join(draw.choices(CAPITALS, k=draw.randint(1, 12))) for _ in range(count)]
    return [[text, sum(word.isupper() for word in word_tokenize(text))] for text in texts]


def instructions():
    utils = load_lm_eval()
    utils.instructions_registry.instructions.instructions_util.nltk.word_tokenize = word_tokenize
    out = {"responses": RESPONSES, "instructions": []}
    for name, kwargs in INSTRUCTIONS:
        case = utils.InputExample(key=0, instruction_id_list=[name], prompt="", kwargs=[kwargs])
        strict = [utils.test_instruction_following_strict(case, r).follow_all_instructions for r in RESPONSES]
        loose = [utils.test_instruction_following_loose(case, r).follow_all_instructions for r in RESPONSES]
        out["instructions"].append({"id": name, "kwargs": kwargs, "strict": "".join("01"[v] for v in strict),
                                    "loose": "".join("01"[v] for v in loose)})
    return out


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, make in (("stems", stems), ("rouge", rouge), ("translation", translation), ("gsm8k", gsm8k),
                       ("instructions", instructions), ("capitals", capitals)):
        text = json.dumps(make(), ensure_ascii=False, indent=None if name in ("stems", "capitals") else 1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        rows.append(f"| {name}.json | {hashlib.sha256(text.encode()).hexdigest()} |")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("rouge-score", "nltk", "sacrebleu", "lm-eval"))
    (folder / "PROVENANCE.md").write_text(
        "# Text metrics as the standard packages compute them\n\n"
        "Written by `tools/golden/make_text_metrics.py tests/golden/text_metrics`; the texts are the script's own.\n"
        "instructions.json: a digit a response, whether it follows the instruction, by lm-eval's copy of\n"
        "google-research/instruction_following_eval. capitals.json: texts, and how many of NLTK's words are in capitals.\n\n"
        f"Python {platform.python_version()}, {versions}. Seed {SEED}.\n\n"
        "| file | sha256 |\n|---|---|\n" + "\n".join(rows) + "\n", encoding="utf-8")


main()
