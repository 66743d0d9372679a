"""CTest `e2e_eval`: tasks, gates and the journal of `nibble eval` as a user meets them.

The tiny models know nothing: what is tested is that their numbers come out alike, however the run went.
"""

import json
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

from nibble_process import GOLDEN, binary, check_run, long_context_model, run

EXIT_USAGE, EXIT_GATE = 2, 3
MODEL = GOLDEN / "llama3"
NUM_ITEMS = 40


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.data = cls.root / "data"
        cls.write("arc-easy/arc-easy.jsonl",
                  [{"id": f"q{i}", "question": f"Which of these is the number {i}?",
                    "choices": [f"the number {i}", f"the house {i}", "a road"], "answer": i % 3} for i in range(NUM_ITEMS)])
        cls.write("lambada/lambada.jsonl",
                  [{"id": i, "text": f"The house on hill {i} and the road to the house"} for i in range(NUM_ITEMS)])
        cls.write("scitldr/test.jsonl", [{"id": f"s{i}", "source": [f"The house {i}.", "The road."],
                                          "references": ["the house and the road"]} for i in range(4)])
        cls.write("flores200/devtest.jsonl",
                  [{"id": i, "eng_Latn": f"The house {i}.", "zho_Hans": "\u623f\u5b50\u3002"} for i in range(4)])
        cls.text = cls.root / "text.txt"
        cls.text.write_text("The engine takes the prompt, and the kernels take the time. " * 60)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def write(cls, name, docs):
        path = cls.data / name
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))

    def tasks(self, *options):
        return ["eval", MODEL, "--tasks", "lambada,arc_easy", "--data", self.data, *options]

    def refused(self, code, *options):
        result = run(*options)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertNotIn("ready in", result.stderr, "the model was loaded before the flags were checked")
        return result.stderr

    def test_tasks_report_numbers_with_errors_and_the_items_if_asked(self):
        out = json.loads(check_run(*self.tasks("--json", "--samples", "--limit", 30)))
        arc = out["tasks"]["arc_easy"]
        self.assertEqual(arc["num_items"], 30)
        self.assertEqual(len(arc["data_sha256"]), 64)
        correct = [sample["acc"] for sample in arc["samples"]]
        self.assertAlmostEqual(arc["metrics"]["acc"]["value"], sum(correct) / 30, places=12)
        self.assertGreater(arc["metrics"]["acc"]["stderr"], 0)
        for sample, index in zip(arc["samples"], range(30)):
            self.assertEqual(sample["id"], f"q{index}")
            best = max(range(3), key=lambda i: sample["results"][i]["logprob"])
            self.assertEqual(sample["acc"], best == sample["answer"])
        self.assertGreater(out["tasks"]["lambada"]["metrics"]["perplexity"]["value"], 1)
        self.assertEqual(len(out["weights_sha256"]), 64)
        table = check_run(*self.tasks("--limit", 5))
        for name in ("lambada", "perplexity", "arc_easy", "acc_norm"):
            self.assertIn(name, table)

    def test_a_run_that_was_killed_goes_on_to_the_same_numbers(self):
        whole = json.loads(check_run(*self.tasks("--json", "--samples")))
        output = self.root / "resumed.json"
        journal = self.root / "resumed.json.journal"
        command = [binary(), *map(str, self.tasks("--output", output, "--max-num-batched-tokens", 16, "--samples"))]
        lines = 0
        for stop in (signal.SIGKILL, signal.SIGINT):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            while process.poll() is None and (not journal.exists() or journal.read_text().count("\n") < lines + 4):
                time.sleep(0.002)  # a few more items than the run before
            process.send_signal(stop)
            stderr = process.communicate()[1]
            if stop == signal.SIGINT and process.returncode:
                self.assertIn("goes on with them", stderr)
            if output.exists():
                break  # it was faster than the signal
            lines = journal.read_text().count("\n")
            self.assertGreaterEqual(lines, 4)
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertFalse(journal.exists())
        resumed = json.loads(output.read_text())
        for name in ("lambada", "arc_easy"):
            self.assertEqual(resumed["tasks"][name]["metrics"], whole["tasks"][name]["metrics"])
            self.assertEqual(resumed["tasks"][name]["samples"], whole["tasks"][name]["samples"])

    def test_a_journal_of_another_run_is_refused(self):
        output = self.root / "other.json"
        (self.root / "other.json.journal").write_text('{"nibble_eval_journal":1,"run_sha256":"0"}\n')
        result = run(*self.tasks("--output", output, "--limit", 2))
        self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
        self.assertIn("choose another --output", result.stderr)

    def test_tasks_answered_by_a_text_and_a_chat_template(self):
        model = long_context_model(self.root / "long")

        def answers(*options):
            out = json.loads(check_run("eval", model, "--tasks", "scitldr, flores_en-zh", "--data", self.data, "--json",
                                       "--samples", *options))
            texts = [[sample["results"][0]["text"] for sample in task["samples"]] for task in out["tasks"].values()]
            return out, texts

        plain, texts = answers()
        self.assertEqual(list(plain["tasks"]["scitldr"]["metrics"]), ["rouge1", "rouge2", "rougeL"])
        self.assertEqual(list(plain["tasks"]["flores_en-zh"]["metrics"]), ["bleu", "chrf"])
        self.assertIn("tokenizer zh", plain["tasks"]["flores_en-zh"]["notes"][0])
        self.assertFalse(any("\n" in text for task in texts for text in task))
        self.assertEqual(answers()[1], texts)
        chat, chat_texts = answers("--apply-chat-template")
        self.assertTrue(chat["apply_chat_template"])
        self.assertNotEqual(chat_texts, texts)

    def test_gates_exit_3_with_number_and_bound(self):
        passed = run(*self.tasks("--limit", 5, "--gate", "arc_easy.acc>=0", "--gate", "lambada.acc<=1"))
        self.assertEqual(passed.returncode, 0, passed.stderr)
        missed = run(*self.tasks("--limit", 5, "--json", "--gate", "arc_easy.acc>=0", "--gate", "lambada.perplexity<1"))
        self.assertEqual(missed.returncode, EXIT_GATE, missed.stderr)
        perplexity = json.loads(missed.stdout)["tasks"]["lambada"]["metrics"]["perplexity"]["value"]
        self.assertIn(f"gate lambada.perplexity<1 is missed: lambada.perplexity is {perplexity:.5g}", missed.stderr)
        self.assertIn("the bound is 1", missed.stderr)
        self.assertEqual([gate["holds"] for gate in json.loads(missed.stdout)["gates"]], [True, False])
        text = ("--perplexity", self.text, "--context", 128, "--windows", 2)
        distance = run("eval", MODEL, "--reference", MODEL, *text, "--gate", "kl<=0.01", "--gate", "top1>=0.99")
        self.assertEqual(distance.returncode, 0, distance.stderr)
        self.assertEqual(run("eval", MODEL, *text, "--gate", "perplexity<=1").returncode, EXIT_GATE)

    def test_wrong_flags_are_refused_before_any_work(self):
        self.assertIn("it measures lambada.acc",
                      self.refused(EXIT_USAGE, *self.tasks("--gate", "arc_easy.accuracy>=0.5")))
        self.assertIn("kl", self.refused(EXIT_USAGE, *self.tasks("--gate", "kl<=0.2")))
        self.assertIn("'kl<=0.2'", self.refused(EXIT_USAGE, *self.tasks("--gate", "arc_easy.acc=0.5")))
        self.assertIn("there are lambada", self.refused(EXIT_USAGE, "eval", MODEL, "--tasks", "arc", "--data", self.data))
        self.assertIn("--data DIR", self.refused(EXIT_USAGE, "eval", MODEL, "--tasks", "arc_easy"))
        self.assertIn("twice", self.refused(EXIT_USAGE, "eval", MODEL, "--tasks", "lambada,lambada", "--data", self.data))
        self.assertIn("what is to be measured", self.refused(EXIT_USAGE, "eval", MODEL))
        text = pathlib.Path(self.data) / "short.txt"
        text.write_text("The house", encoding="utf-8")
        self.assertIn("--context 2048: the model has 256 positions", self.refused(EXIT_USAGE, "eval", MODEL, "--perplexity", text))
        short = run("eval", MODEL, "--perplexity", text, "--context", 64)
        self.assertEqual(short.returncode, EXIT_USAGE, short.stderr)
        self.assertIn(f"--perplexity {text}: the text has 2 tokens", short.stderr)


if __name__ == "__main__":
    unittest.main()
