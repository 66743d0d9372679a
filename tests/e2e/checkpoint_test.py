"""CTest `e2e_checkpoint`: quantize, inspect, run and eval on tiny models; damage is refused with exit code 4."""

import hashlib
import json
import pathlib
import random
import shutil
import struct
import tempfile
import unittest

import nibble_process
from nibble_process import GOLDEN, check_run, run

EXIT_USAGE, EXIT_MODEL = 2, 4


class Checkpoint(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.int4 = nibble_process.quantized(GOLDEN / "llama3", cls.root / "int4", "--scheme", "int4")
        cls.int8 = nibble_process.quantized(GOLDEN / "llama3", cls.root / "int8", "--scheme", "int8")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_inspect_reads_every_golden_model(self):
        for path in sorted(p for p in GOLDEN.iterdir() if p.is_dir()):
            with self.subTest(model=path.name):
                summary = json.loads(check_run("inspect", path, "--json"))
                self.assertIsInstance(summary, dict)

    def test_a_certified_folder_runs_with_every_cache_and_limit(self):
        for options in (["--kv-cache-dtype", "int8"], ["--kv-cache-dtype", "bfloat16"], ["--max-model-len", 8],
                        ["--kv-cache-dtype", "int8", "--num-gpu-blocks-override", 1],
                        ["--activations", "int8", "--max-num-batched-tokens", 5, "--max-num-seqs", 1]):
            with self.subTest(options=options):
                result = run("run", self.int4, "--prompt", "the", "--max-tokens", 2, *options)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("certificate verified", result.stderr)

    def test_a_quantized_folder_is_what_transformers_reads(self):
        for folder, bits in ((self.int4, 4), (self.int8, 8)):
            config = json.loads((folder / "config.json").read_text())
            quantization = config["quantization_config"]
            self.assertEqual(quantization["quant_method"], "compressed-tensors")
            self.assertEqual(quantization["format"], "pack-quantized")
            (group,) = quantization["config_groups"].values()
            self.assertEqual(group["weights"]["num_bits"], bits)
            for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
                self.assertTrue((folder / name).exists(), name)
            self.assertTrue(list(folder.glob("*.safetensors")))

    def test_quantizing_twice_gives_the_same_bytes(self):
        again = nibble_process.quantized(GOLDEN / "llama3", self.root / "again", "--scheme", "int4")
        for file in sorted(self.int4.glob("*.safetensors")):
            self.assertEqual(file.read_bytes(), (again / file.name).read_bytes(), file.name)

    def test_run_answers_on_standard_output_alone_and_twice_the_same(self):
        answers = [run("run", self.int4, "--prompt", "What is the weather?", "--max-tokens", 12, "--temperature", 0)
                   for _ in range(2)]
        self.assertEqual([a.returncode for a in answers], [0, 0], answers[0].stderr)
        self.assertEqual(answers[0].stdout, answers[1].stdout)
        self.assertTrue(answers[0].stdout.strip())

    def test_eval_reports_perplexity_and_distance_to_the_source(self):
        text = self.root / "text.txt"
        text.write_text("The engine takes the prompt, and the kernels take the time. " * 60)
        plain = json.loads(check_run("eval", GOLDEN / "llama3", "--perplexity", text, "--context", 128, "--json",
                                     "--windows", 3))
        self.assertGreater(plain["perplexity"], 1)
        distance = json.loads(check_run("eval", self.int8, "--perplexity", text, "--context", 128, "--json",
                                        "--windows", 3, "--reference", GOLDEN / "llama3"))
        self.assertLess(distance["kl_mean"], 0.05)
        self.assertGreater(distance["top1"], 0.9)
        coarse = json.loads(check_run("eval", self.int4, "--perplexity", text, "--context", 128, "--json",
                                      "--windows", 3, "--reference", GOLDEN / "llama3"))
        self.assertGreater(coarse["kl_mean"], distance["kl_mean"])

    def test_the_certificate_measures_every_evaluation_and_the_calibration_data(self):
        prose, chats, codes = (self.root / name for name in ("prose.txt", "chats.jsonl", "codes.txt"))
        prose.write_text("The house on the hill and the road to the house. " * 100)
        turn = {"messages": [{"role": "user", "content": "Where is the house?"},
                             {"role": "assistant", "content": "On the hill, by the road."}]}
        chats.write_text((json.dumps(turn) + "\n") * 20)
        codes.write_text("#!/bin/sh\nx=$((7*9)); [ -z \"$Q\" ] && exit 3; {}|~^%@ " * 40)
        out = self.root / "evaluated"
        command = ["quantize", GOLDEN / "llama3", "--out", out, "--calibration", prose, "--calibration-length", 64,
                   "--calibration-samples", 4, "--certificate-text", prose, "--context", 64]
        result = run(*command, "--evaluation", f"chats={chats}", "--evaluation", f"codes={codes}")
        self.assertEqual(result.returncode, 0, result.stderr)
        certificate = json.loads((out / "nibble_certificate.json").read_text())
        self.assertEqual([text["name"] for text in certificate["evaluations"]], ["chats", "codes"])
        for text, file in zip(certificate["evaluations"], (chats, codes)):
            self.assertEqual(text["sha256"], hashlib.sha256(file.read_bytes()).hexdigest())
            self.assertGreater(text["int16"]["kl_mean"], 0)
            self.assertGreater(text["source_perplexity"], 1)
        match = certificate["calibration_match"]
        self.assertEqual([text["name"] for text in match["texts"]], ["prose.txt", "chats", "codes"])
        self.assertEqual(match["texts"][0]["token_coverage"], 1.0)
        self.assertLess(match["texts"][2]["token_coverage"], 0.9)
        self.assertIn("warning: calibration data is far from codes", result.stderr)
        self.assertNotIn("is far from prose.txt", result.stderr)
        self.assertEqual(run("verify", out).returncode, 0)
        for argument, says in (("chats", "NAME=FILE"), (f"x={self.root / 'none'}", "none")):
            wrong = run(*command[:3], self.root / "never", *command[4:], "--evaluation", argument)
            self.assertEqual(wrong.returncode, EXIT_USAGE, wrong.stderr)
            self.assertIn(says, wrong.stderr)

    def damaged(self, folder, name, change):
        copy = self.root / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        data = bytearray((copy / name).read_bytes())
        change(data)
        (copy / name).write_bytes(data)
        return run("run", copy, "--prompt", "a", "--max-tokens", 1)

    def test_a_flipped_bit_anywhere_is_refused(self):
        draw = random.Random(20261124)
        for file in sorted(p for p in self.int4.iterdir() if p.suffix in (".safetensors", ".json")):
            size = file.stat().st_size
            for _ in range(12 if file.suffix == ".safetensors" else 3):
                at, bit = draw.randrange(size), 1 << draw.randrange(8)

                def flip(data):
                    data[at] ^= bit

                with self.subTest(file=file.name, offset=at, bit=bit):
                    result = self.damaged(self.int4, file.name, flip)
                    self.assertEqual(result.returncode, EXIT_MODEL, result.stdout + result.stderr)
                    self.assertTrue(result.stderr.strip())
                    self.assertEqual(result.stdout, "")

    def test_a_cut_file_is_refused_and_named(self):
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            with self.subTest(file=name):
                source = self.int4 if (self.int4 / name).exists() else GOLDEN / "llama3"
                result = self.damaged(source, name, lambda data: data.__delitem__(slice(len(data) // 2, None)))
                self.assertEqual(result.returncode, EXIT_MODEL, result.stdout + result.stderr)
                self.assertIn(name, result.stderr)

    def test_exit_codes(self):
        cases = [
            (EXIT_USAGE, ["run", GOLDEN / "llama3", "--no-such-flag"]),
            (EXIT_USAGE, ["quantize", GOLDEN / "llama3", "--out", self.root / "x", "--scheme", "int9"]),
            (EXIT_MODEL, ["run", self.root / "no-such-folder", "--prompt", "a"]),
            (EXIT_MODEL, ["inspect", self.root / "no-such-folder", "--json"]),
            (0, ["--help"]),
        ]
        for code, arguments in cases:
            with self.subTest(arguments=arguments):
                result = run(*arguments)
                self.assertEqual(result.returncode, code, result.stderr)
                if code:
                    self.assertTrue(result.stderr.strip())

    def test_a_group_that_does_not_divide_names_the_tensor(self):
        result = run("quantize", GOLDEN / "llama3", "--out", self.root / "bad", "--scheme", "int4", "--group-size", 128)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("model.layers.0", result.stderr)
        self.assertIn("this model takes 64, 32, or 0", result.stderr)
        self.assertFalse((self.root / "bad").exists())

    def test_kv_scales_are_for_an_fp8_cache_and_another_says_so(self):
        copy = self.root / "kv_scales"
        shutil.copytree(GOLDEN / "llama3", copy)
        data = (copy / "model.safetensors").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        header, body = json.loads(data[8:8 + size]), bytearray(data[8 + size:])
        for layer in range(3):
            for kind in "kv":
                header[f"model.layers.{layer}.self_attn.{kind}_scale"] = {
                    "dtype": "F32", "shape": [], "data_offsets": [len(body), len(body) + 4]}
                body += struct.pack("<f", 0.25)
        text = json.dumps(header).encode()
        (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        options = ("--prompt", "What is the weather?", "--max-tokens", 4, "--temperature", 0)
        plain, scaled = (run("run", folder, *options) for folder in (GOLDEN / "llama3", copy))
        self.assertEqual((plain.returncode, scaled.returncode), (0, 0), scaled.stderr)
        self.assertEqual(scaled.stdout, plain.stdout)
        self.assertIn("this one is bfloat16 and does not use them", scaled.stderr)
        self.assertNotIn("k_scale", plain.stderr)
        self.assertNotIn("warning", scaled.stderr)

    def test_inspect_says_which_grids_run_as_floats(self):
        out = self.root / "groups_of_16"
        result = run("quantize", GOLDEN / "llama3", "--out", out, "--scheme", "int4", "--group-size", 16)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("w4 g16 sym: no kernel has this grid", run("inspect", out).stdout)
        self.assertNotIn("no kernel", run("inspect", self.int4).stdout)

    def test_what_quantize_cannot_do_is_said_with_the_way_out(self):
        (self.root / "taken").mkdir(exist_ok=True)
        source, out = GOLDEN / "llama3", self.root / "never"
        cases = [
            ([source, "--out", out, "--scheme", "int9"], ["--scheme", "int4", "int8"]),
            ([source, "--scheme", "int4"], ["--out"]),
            ([source, "--out", out, "--calibration", self.root / "no-text", "--calibration-length", 64], ["--calibration", "no-text"]),
            ([source, "--out", out, "--group-size", 8], ["multiple of 16", "64, 32, or 0"]),
            ([source, "--out", out, "--group-size", -5], ["--group-size"]),
            ([source, "--out", self.root / "taken"], ["exists already", "another name"]),
            ([self.int4, "--out", out], ["quantized already", "original", "--allow-requantize"]),
        ]
        for arguments, words in cases:
            with self.subTest(arguments=arguments):
                result = run("quantize", *arguments)
                self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
                for word in words:
                    self.assertIn(word, result.stderr)
                self.assertLess(result.stderr.count("\n"), 4, "one message, not a wall of text")
                self.assertFalse(out.exists())


nibble_process.binary()
unittest.main(verbosity=2)
