"""CTest `e2e_load`: the load client against a server of a tiny model. All requests end, and a storm of clients that leave
holds nothing afterwards."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import nibble_process

CLIENT = pathlib.Path(__file__).resolve().parent.parent / "clients" / "load_client.py"


class Load(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        model = nibble_process.long_context_model(pathlib.Path(cls.folder.name) / "llama3")
        cls.server = nibble_process.Server(model, "--max-model-len", 4096, "--max-num-seqs", 16,
                                           "--queue-timeout", 0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)
        cls.folder.cleanup()

    def load(self, *options):
        result = subprocess.run([sys.executable, str(CLIENT), f"http://127.0.0.1:{self.server.port}",
                                 *map(str, options)], capture_output=True, text=True, timeout=600)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["errors"], {})
        self.assertEqual((report["after"]["idle"], report["after"]["answers"]), (True, True))
        return report

    def test_concurrent_requests_end_with_the_tokens_asked_for(self):
        report = self.load("--requests", 40, "--concurrency", 20, "--input-len", 100, "--output-len", 16)
        self.assertEqual((report["completed"], report["cancelled"]), (40, 0))
        self.assertEqual(report["output_tokens"], 40 * 16)
        self.assertGreater(report["prompt_tokens"], 40 * 50)
        first, between = report["time_to_first_token_ms"], report["time_between_tokens_ms"]
        self.assertLess(0, first["p50"])
        self.assertLessEqual(first["p50"], first["p99"])
        self.assertLessEqual(between["p50"], between["max"])

    def test_requests_arrive_at_a_rate(self):
        report = self.load("--requests", 20, "--rate", 40, "--input-len", 20, "--output-len", 4, "--endpoint",
                           "completions")
        self.assertEqual(report["output_tokens"], 20 * 4)
        self.assertLess(report["requests_per_s"], 100)

    def test_a_cancel_storm_holds_nothing(self):
        report = self.load("--requests", 80, "--concurrency", 40, "--input-len", 100, "--output-len", 1000,
                           "--cancel-storm", "--cancel-seconds", 0.3)
        self.assertGreater(report["cancelled"], 20, "how many get through depends on the machine")
        self.assertEqual(report["cancelled"] + report["completed"], 80)


nibble_process.binary()
unittest.main(verbosity=2)
