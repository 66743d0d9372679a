"""CTest `quality_table`: bench/quantize/table.py ends what it has started, and shares its folder with nobody."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TABLE = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "quantize" / "table.py"
SECONDS = 30
SLEEPER = """#!/bin/sh
echo $$ > "$(dirname "$0")/pid"
exec sleep 600
"""


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"  # an orphan waits for whoever took it


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class QualityTable(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.pid = self.root / "pid"
        self.nibble = self.root / "nibble"
        self.nibble.write_text(SLEEPER)
        self.nibble.chmod(0o700)
        (self.root / "work").mkdir()
        (self.root / "work" / "calibration-0.json").write_text("[]")  # made already

    def tearDown(self):
        if self.pid.exists() and alive(int(self.pid.read_text())):
            os.kill(int(self.pid.read_text()), signal.SIGKILL)
        self.folder.cleanup()

    def command(self):
        return [sys.executable, str(TABLE), "--source", str(self.root), "--data", str(self.root), "--work", str(self.root / "work"),
                "--out", str(self.root / "out.json"), "--nibble", str(self.nibble), "--rows", "^int4-sym-g64-absmax$",
                "--commit", "none"]

    def started(self):
        """A run whose quantization lasts, and the process of that."""
        run = subprocess.Popen(self.command(), stderr=subprocess.DEVNULL)
        wait_for(lambda: self.pid.exists() and self.pid.read_text().strip())
        return run, int(self.pid.read_text())

    def test_a_signal_ends_what_it_has_started(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            run, child = self.started()
            run.send_signal(number)
            self.assertEqual(run.wait(SECONDS), 128 + number)
            self.assertFalse(alive(child))
            self.pid.unlink()

    def test_the_report_has_kl_by_scheme_and_solver_and_peers_only_in_the_long_table(self):
        done = self.root / "work" / "done"
        done.mkdir()
        for name, tool, solver, kl in (("int4-sym-g64-absmax", "nibble", "absmax", 0.4), ("int4-sym-g64-gptq", "nibble", "gptq", 0.09),
                                       ("gptqmodel-gptq-int4-sym-g64", "gptqmodel", "gptq", 0.22)):
            (done / f"{name}-0.json").write_text(json.dumps(
                {"row": name, "tool": tool, "scheme": "int4-sym-g64", "kind": "uniform", "solver": solver, "seed": 0, "commit": "none",
                 "bits_per_weight": 4.25, "bytes": 1, "kl_mean": kl, "cpu": "a CPU"}))
        report = subprocess.run([*self.command(), "--report-only"], stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True).stdout
        long, short = report.strip().split("\n\n")
        self.assertIn("0.2200", long)
        self.assertEqual(short.splitlines()[2:], ["| int4-sym-g64 | 4.25 | 0.4000 |  |  | 0.0900 |  |  |"])
        page = (self.root / "out.html").read_text()
        self.assertIn("<tr><td>int4-sym-g64</td><td>4.25</td><td>0.4000</td><td></td><td></td><td>0.0900</td>", page)

    def test_two_runs_do_not_share_a_folder_even_if_one_was_killed(self):
        run, child = self.started()
        for _ in range(2):
            second = subprocess.run(self.command(), stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
            self.assertNotEqual(second.returncode, 0)
            self.assertIn("another run works there", second.stderr)
            run.kill()
            run.wait()
        os.kill(child, signal.SIGKILL)
        self.pid.unlink()
        wait_for(lambda: not alive(child))
        again, _ = self.started()
        again.terminate()
        self.assertEqual(again.wait(SECONDS), 128 + signal.SIGTERM)


unittest.main(verbosity=2)
