"""CTest `e2e_report`: what people are shown: nibble report's table, nibble eval's page of HTML; on a tiny model."""

import json
import pathlib
import tempfile
import unittest

import nibble_process
from nibble_process import GOLDEN, check_run, run

SHORT = ["--iterations", 5, "--input-len", 8, "--output-len", 4, "--batch", 2]


class Report(unittest.TestCase):
    def test_json_has_what_each_precision_costs(self):
        report = json.loads(check_run("report", GOLDEN / "llama3", *SHORT, "--price-per-hour", 3.6, "--json"))
        rows = {row["precision"]: row for row in report["rows"]}
        self.assertEqual(list(rows)[:3], ["bf16", "int8", "int4"])
        self.assertGreater(rows["bf16"]["weight_bytes"], rows["int8"]["weight_bytes"])
        self.assertGreater(rows["int8"]["weight_bytes"], rows["int4"]["weight_bytes"])
        for row in rows.values():
            self.assertGreater(row["latency_p50_seconds"], 0)
            self.assertLessEqual(row["latency_p50_seconds"], row["latency_p99_seconds"])
            self.assertLess(row["first_token_p50_seconds"], row["latency_p99_seconds"])
            self.assertGreater(row["planned_bytes"], row["weight_bytes"])
            self.assertAlmostEqual(row["cost_per_million_output_tokens"] * row["output_tokens_per_second"], 1000)
            self.assertTrue(row["watts"] or row["power_unreadable"])

    def test_a_quantized_model_has_a_line_of_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            model = nibble_process.quantized(GOLDEN / "llama3", pathlib.Path(folder) / "int4")
            table = check_run("report", model, *SHORT, "--precisions", "file", "int8")
            self.assertIn("the file", table)
            self.assertIn("w8 g", table)
            self.assertNotIn("BF16", table)

    def test_wrong_flags_are_named(self):
        for flags, says in ((["--precisions", "int5"], "int5"), (["--iterations", 0], "--iterations"),
                            (["--output-len", 1], "--output-len"), (["--price-per-hour", "-1"], "--price-per-hour")):
            with self.subTest(flags=flags):
                result = run("report", GOLDEN / "llama3", *flags)
                self.assertEqual(result.returncode, 2)
                self.assertIn(says, result.stderr)


class Html(unittest.TestCase):
    def test_a_run_and_a_comparison_each_make_a_page(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            model = nibble_process.quantized(GOLDEN / "llama3", root / "int4")
            text = root / "text.txt"
            text.write_text("The house on the hill and the road to the house. " * 40)
            for name, path in (("a<b", model), ("source", GOLDEN / "llama3")):
                check_run("eval", path, "--perplexity", text, "--context", 32, "--output", root / f"{name}.json",
                          "--html", root / f"{name}.html")
            page = (root / "a<b.html").read_text()
            self.assertIn("error of each layer", page)
            result = json.loads((root / "a<b.json").read_text())
            self.assertGreater(result["weight_bytes"], 0)
            self.assertLess(4, result["bits_per_weight"])
            self.assertIn("model.layers.0.mlp.up_proj.weight", result["layer_errors"])
            check_run("eval", "--compare", root / "a<b.json", root / "source.json", "--html", root / "both.html")
            page = (root / "both.html").read_text()
            self.assertIn("perplexity against the size of the weights", page)
            self.assertIn("a&lt;b", page)
            self.assertNotIn("a<b", page)

    def test_wrong_files_and_flags_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            other = pathlib.Path(folder) / "other.json"
            other.write_text("{}")
            for flags, says in ((["--compare", other], "--html"), (["--compare", other, "--html", "x.html"], "other.json"),
                                (["--html", f"{folder}/none/x.html"], "no folder")):
                with self.subTest(flags=flags):
                    result = run("eval", *flags)
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(says, result.stderr)


if __name__ == "__main__":
    unittest.main()
