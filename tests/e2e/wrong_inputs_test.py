"""CTest `e2e_wrong_inputs`: what people get wrong when they quantize and serve gives one clear error that says what to do,
and a folder is loaded as what it is, whatever the command line takes it for."""

import json
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import nibble_process
from nibble_process import GOLDEN, Server, binary, check_run, run

EXIT_FAILURE, EXIT_USAGE, EXIT_MODEL = 1, 2, 4
PROSE = "The house on the hill and the road to the house. "


class WrongInputs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.source = GOLDEN / "llama3"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def refused(self, code, says, *arguments):
        """One line of error that says all of `says`, and no output."""
        result = run(*arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("nibble ")]
        self.assertEqual(len(errors), 1, result.stderr)
        for words in says:
            self.assertIn(words, errors[0])
        self.assertEqual(result.stdout, "")
        self.assertFalse((self.root / "never").exists())
        self.assertFalse((self.root / ".never.partial").exists())

    def quantize(self, *options):
        return ["quantize", self.source, "--out", self.root / "never", *options]

    def test_pickled_weights(self):
        folder = self.root / "pickled"
        shutil.copytree(self.source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
        for path in (folder, folder / "pytorch_model.bin"):
            for command in (["quantize", path, "--out", self.root / "never"], ["run", path, "--prompt", "a"]):
                with self.subTest(command=command):
                    self.refused(EXIT_MODEL, ["pytorch_model.bin", "pickled", "save_pretrained"], *command)

    def test_gptq_weights_under_a_config_of_bitsandbytes(self):
        folder = self.root / "mixed_up"
        shutil.copytree(nibble_process.quantized(self.source, self.root / "gptq", "--format", "gptq"), folder)
        (folder / "nibble_certificate.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        del config["nibble_certificate"]
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(EXIT_MODEL, ["is GPTQ", ".qweight", 'says "bitsandbytes"', "set quant_method"],
                     "run", folder, "--prompt", "a")

    def test_a_scheme_that_the_format_has_no_place_for(self):
        for scheme, format, says in (
                ("nf4", "gptq", ["nf4", "GPTQ", "--format bitsandbytes", "--scheme int4"]),
                ("nf4", "awq", ["nf4", "AWQ", "--format bitsandbytes"]),
                ("fp4", "compressed-tensors", ["fp4", "compressed-tensors", "--format bitsandbytes"]),
                ("nf4", "gguf", ["nf4", "GGUF", "--scheme q4_0"]),
                ("int4", "bitsandbytes", ["bitsandbytes", "--scheme nf4"]),
                ("int5", "gptq", ["w5", "GPTQ", "--format compressed-tensors"])):
            with self.subTest(scheme=scheme, format=format):
                self.refused(EXIT_USAGE, says, *self.quantize("--scheme", scheme, "--format", format))
        nf4 = nibble_process.quantized(self.source, self.root / "nf4", "--scheme", "nf4")
        self.refused(EXIT_USAGE, ["nf4", "GPTQ", "use bitsandbytes"],
                     "convert", nf4, "--to", "gptq", "--out", self.root / "never")

    def test_a_pattern_that_matches_no_module(self):
        recipe = self.root / "recipe.yaml"
        for pattern, close in (("*.mlp.up_prj", "model.layers.*.mlp.up_proj"),
                               ("re:.*\\.self_att\\..*", "model.layers.*.self_attn.")):
            recipe.write_text(f"scheme: int4\nmodules:\n  - match: '{pattern}'\n    bits: 8\n")
            with self.subTest(pattern=pattern):
                self.refused(EXIT_USAGE, ["recipe.yaml:3:", pattern, "matches no module", "close to it", close],
                             *self.quantize("--recipe", recipe))

    def test_calibration_that_holds_nothing(self):
        for name, content, says in (
                ("empty.txt", "", "there is no text in it"),
                ("blank.txt", " \n\n", "there is no text in it"),
                ("empty.jsonl", "", "there is no text in it"),
                ("few.txt", "The house", "less than one sample"),
                ("rows.jsonl", '{"body": "The house"}', "line 1")):
            file = self.root / name
            file.write_text(content)
            with self.subTest(file=name):
                self.refused(EXIT_USAGE, ["--calibration", name, says],
                             *self.quantize("--calibration", file, "--calibration-length", 64))

    def test_a_number_out_of_range_is_refused_by_option(self):
        for option, value in (("--damping", -1), ("--damping", "nan"), ("--smooth-alpha", 2), ("--learn-iterations", 0),
                              ("--learn-batch", 0), ("--context", 1), ("--max-kl", 0), ("--max-kl", "inf")):
            with self.subTest(option=option, value=value):
                self.refused(EXIT_USAGE, [option], *self.quantize(option, value))

    def test_how_calibration_data_is_used_needs_some(self):
        for option in (("--damping", 0.02), ("--seed", 1), ("--calibration-samples", 8), ("--calibration-rows", "disk"),
                       ("--no-correct-inputs",), ("--learn-iterations", 10)):
            with self.subTest(option=option):
                self.refused(EXIT_USAGE, [option[0], "--calibration FILE"], *self.quantize(*option))

    def test_a_value_that_is_empty_or_beyond_64_bits_is_refused_by_flag(self):
        """As an unset shell variable leaves it: it must not mean a default."""
        for option in ("--recipe", "--budget", "--max-kl", "--candidates", "--calibration", "--group-size", "--seed",
                       "--damping", "--certificate-text", "--scheme", "--out"):
            with self.subTest(option=option):
                result = run(*self.quantize(), option, "") if option != "--out" else run("quantize", self.source, "--out", "")
                self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
                self.assertIn(option, result.stderr)
        for option in ("--seed", "--calibration-samples"):
            result = run(*self.quantize(option, "99999999999999999999"))
            self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
            self.assertIn(f"{option}: 99999999999999999999 is out of range", result.stderr)
        self.assertFalse((self.root / "never").exists())

    def test_where_nothing_can_be_written_is_said_before_an_evaluation(self):
        text = self.root / "prose.txt"
        text.write_text(PROSE * 100)
        for option in ("--output", "--html"):
            for target, says in ((self.root / "no" / "such.json", "there is no folder"), (self.root, "is a folder")):
                with self.subTest(option=option, target=target):
                    self.refused(EXIT_USAGE, [option, says], "eval", self.source, "--perplexity", text, "--context", 64,
                                 option, target)
        self.refused(EXIT_USAGE, ["--windows"], "eval", self.source, "--perplexity", text, "--windows", -1)
        for value in ("-1", "nan", "inf"):
            self.refused(EXIT_USAGE, ["--price-per-hour"], "report", self.source, "--price-per-hour", value)
        latin = self.root / "latin.txt"
        latin.write_bytes("Stra\u00dfe. ".encode("latin-1") * 100)
        self.refused(EXIT_USAGE, ["latin.txt, line 1", "UTF-8"], "eval", self.source, "--perplexity", latin)
        self.refused(EXIT_USAGE, ["latin.txt, line 1", "UTF-8"], *self.quantize("--certificate-text", latin))

    def changed(self, name, **settings):
        """A copy of the source with another config."""
        folder = self.root / name
        shutil.copytree(self.source, folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(settings)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_a_model_that_cannot_run_or_be_written_is_refused_before_the_work(self):
        heads = self.changed("heads", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
        yarn = self.changed("yarn", rope_scaling={"rope_type": "yarn", "factor": 4.0, "truncate": False,
                                                  "original_max_position_embeddings": 64})
        out = self.root / "never"
        self.refused(EXIT_MODEL, ["head_dim 8", "multiples of 16"], "quantize", heads, "--out", out)
        self.refused(EXIT_MODEL, ["truncate", "GGUF"], "quantize", yarn, "--out", out, "--scheme", "q4_0")
        folder = nibble_process.quantized(yarn, self.root / "int4", "--scheme", "int4", "--group-size", 32)
        for more in ([], ["--dry-run"]):
            self.refused(EXIT_MODEL, ["truncate", "GGUF"], "convert", folder, "--to", "gguf", "--out",
                         self.root / "never.gguf", *more)
        self.assertEqual([p.name for p in self.root.iterdir() if "partial" in p.name], [])

    def test_what_a_card_does_not_do_is_refused_by_option(self):
        """Before anyone asks whether there is a card."""
        text = self.root / "prose.txt"
        text.write_text(PROSE * 100)
        calibrated = ["--calibration", text, "--calibration-length", 32, "--calibration-samples", 4]
        for options, says in (
                ([], ["--calibration FILE"]),
                ([*calibrated, "--method", "learned"], ["--method learned", "--method gptq"]),
                ([*calibrated, "--method", "awq"], ["--method awq", "--method gptq"]),
                ([*calibrated, "--method", "awq+gptq"], ["--method awq+gptq", "--method gptq"]),
                ([*calibrated, "--method", "smoothquant", "--scheme", "int8"], ["--method smoothquant"]),
                ([*calibrated, "--budget", "4.5bpw"], ["--budget"]),
                ([*calibrated, "--max-kl", "0.1"], ["--max-kl"]),
                ([*calibrated, "--calibration-rows", "disk"], ["--calibration-rows disk"])):
            with self.subTest(options=options):
                self.refused(EXIT_USAGE, ["--device cuda: ", *says], *self.quantize("--device", "cuda", *options))

    def test_a_disk_that_is_full_or_too_small(self):
        """In a mount namespace of its own, where this user may make a small file system."""
        text = self.root / "prose.txt"
        text.write_text(PROSE * 100)

        def on_disk(size, command, then=""):
            script = f'mount -t tmpfs -o size={size} none "$0" && {{ "$@"; code=$?; ls -A "$0"; {then} exit $code; }}'
            disk = self.root / "disk"
            disk.mkdir(exist_ok=True)
            return subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk),
                                   binary(), *map(str, command)], capture_output=True, text=True, timeout=300)

        probe = on_disk("1m", ["--version"])
        if probe.returncode != 0 or "mount" in probe.stderr:
            self.skipTest(f"no small file system can be mounted here: {probe.stderr.strip()}")
        command = ["quantize", self.source, "--out", self.root / "disk" / "out", "--certificate-text", text]
        small = on_disk("64k", command)
        self.assertEqual(small.returncode, EXIT_FAILURE, small.stderr)
        self.assertIn("free", small.stderr)
        self.assertEqual(small.stdout, "", "something was left on the disk")
        full = on_disk("112k", command)  # room for the 89 kB of weights, but not for what is beside them
        self.assertEqual(full.returncode, EXIT_FAILURE, full.stderr)
        self.assertIn("run the same command again", full.stderr)
        self.assertEqual(full.stdout.split(), [".out.partial", ".out.partial.journal"])

    def test_a_folder_is_loaded_as_what_it_is(self):
        gptq = nibble_process.quantized(self.source, self.root / "gptq", "--format", "gptq")
        gguf = nibble_process.quantized(self.source, self.root / "gguf", "--scheme", "q4_0")
        for model, asked, warning in (
                (gptq, "bitsandbytes", "is GPTQ, and is loaded as that"),
                (gptq, "gptq", None),
                (gptq, "gptq_marlin", None),
                (gguf, "gguf", None),
                (gguf, "awq", "is GGUF, and is loaded as that"),
                (self.source, "bitsandbytes", "is not quantized, and is served as it is")):
            with self.subTest(model=model.name, asked=asked):
                result = run("run", model, "--prompt", "the", "--max-tokens", 2, "--quantization", asked)
                self.assertEqual(result.returncode, 0, result.stderr)
                if warning:
                    self.assertIn(f"warning: --quantization {asked}", result.stderr)
                    self.assertIn(warning, result.stderr)
                else:
                    self.assertNotIn("--quantization", result.stderr)

    def test_types_of_vllm_are_taken(self):
        plain = check_run("run", self.source, "--prompt", "the", "--max-tokens", 8, "--temperature", 0)
        for dtype in ("auto", "half", "float16", "bfloat16", "float", "float32"):
            with self.subTest(dtype=dtype):
                result = run("run", self.source, "--prompt", "the", "--max-tokens", 8, "--temperature", 0, "--dtype",
                             dtype)
                self.assertEqual(result.returncode, 0, result.stderr)
                if not dtype.startswith("float") or dtype == "float16":  # the cache of all of these is bfloat16
                    self.assertEqual(result.stdout, plain)

    def test_the_recipe_of_gptq_folder_and_bitsandbytes_reader(self):
        """GPTQ 4 bit g128 of a Llama-shaped folder, served with --quantization bitsandbytes."""
        model = self.llama_of_width(256)
        text = self.root / "calibration.txt"
        text.write_text(PROSE * 200)
        folder = self.root / "recipe"
        check_run("quantize", model, "--out", folder, "--method", "gptq", "--scheme", "int4", "--group-size", 128,
                  "--format", "gptq", "--calibration", text, "--calibration-samples", 8, "--calibration-length", 64,
                  "--certificate-text", text)
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["quant_method"], config["bits"], config["group_size"]), ("gptq", 4, 128))
        options = ["--quantization", "bitsandbytes", "--dtype", "float16", "--max-num-batched-tokens", 2048]
        with Server(f"--model={folder}", *options) as server:
            self.assertIn("is GPTQ, and is loaded as that", server.log())
            answer = server.complete(prompt="the house", max_tokens=4)
            self.assertEqual(answer.status, 200, answer.body)
            self.assertGreater(answer.json()["usage"]["completion_tokens"], 0)

    def llama_of_width(self, width):
        """A model of random weights, of the tokenizer and vocabulary of llama3."""
        folder = self.root / f"llama{width}"
        shutil.copytree(self.source, folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=4,
                      num_key_value_heads=2, head_dim=width // 4, tie_word_embeddings=True)
        (folder / "config.json").write_text(json.dumps(config))
        nibble_process.write_random_llama(folder / "model.safetensors", config, seed=5)
        return folder


nibble_process.binary()
unittest.main(verbosity=2)
