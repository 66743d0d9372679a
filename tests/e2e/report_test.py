"""CTest `e2e_report`: nibble report on a tiny model: every precision is measured, and the table says the same."""

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


if __name__ == "__main__":
    unittest.main()
