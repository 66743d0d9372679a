"""CTest `e2e_interrupted_quantize`: whatever ends a quantization early, the output is absent, and running it again
gives the bytes of an unbroken run."""

import pathlib
import resource
import signal
import subprocess
import tempfile
import time
import unittest

import nibble_process
from nibble_process import GOLDEN, binary, run

EXIT_USAGE, EXIT_FAILURE = 2, 1
MOMENTS = 16


class InterruptedQuantize(unittest.TestCase):
    OPTIONS = ["--method", "rtn"]

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.text = cls.root / "text.txt"
        cls.text.write_text("The house on the hill and the road to the house. " * 400)
        begin = time.monotonic()
        result = run(*cls.command(cls.root / "whole"))
        cls.seconds = time.monotonic() - begin
        assert result.returncode == 0, result.stderr
        cls.whole = cls.contents(cls.root / "whole")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def command(cls, out):
        return ["quantize", GOLDEN / "llama3", "--out", out, "--scheme", "int4", "--certificate-text", cls.text,
                "--context", 128, *cls.OPTIONS, *(["--calibration", cls.text] if "gptq" in cls.OPTIONS else [])]

    @staticmethod
    def contents(folder):
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    def start_and_kill(self, out, seconds):
        """True if it was finished before it could be killed."""
        process = subprocess.Popen([binary(), *map(str, self.command(out))], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)  # the moment of the kill is the case under test
        process.kill()
        return process.wait() == 0

    def finish(self, out):
        result = run(*self.command(out))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.contents(out), self.whole)
        left = [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
        self.assertEqual(left, [], "the partial folder or its journal is still there")

    def test_killed_at_any_moment_it_is_absent_or_complete_and_resumes_to_the_same_bytes(self):
        killed = 0
        for moment in range(MOMENTS):
            out = self.root / f"killed-{moment}"
            if self.start_and_kill(out, self.seconds * (moment + 0.5) / MOMENTS):
                self.assertEqual(self.contents(out), self.whole)
                continue
            if out.exists():  # killed between the last rename and the exit
                self.assertEqual(self.contents(out), self.whole)
                continue
            killed += 1
            self.finish(out)
        self.assertGreaterEqual(killed, MOMENTS // 2)

    def test_killed_again_and_again_it_still_arrives(self):
        out = self.root / "again"
        for attempt in range(MOMENTS):
            if self.start_and_kill(out, self.seconds * (attempt + 1) / MOMENTS) or out.exists():
                break
        if not out.exists():
            self.finish(out)
        self.assertEqual(self.contents(out), self.whole)

    def test_half_a_certificate_does_not_stop_it(self):
        out = self.root / "half"
        partial = self.root / ".half.partial"
        for moment in range(MOMENTS):
            self.start_and_kill(out, self.seconds * (moment + 0.5) / MOMENTS)
            if partial.is_dir() or out.exists():
                break
        self.assertTrue(partial.is_dir(), "no kill met it while it wrote")
        (partial / "nibble_certificate.json").write_bytes(b"")  # killed between creating and writing it
        self.finish(out)

    def test_sigterm_stops_it_and_says_how_to_go_on(self):
        out = self.root / "stopped"
        process = subprocess.Popen([binary(), *map(str, self.command(out))], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(self.seconds * 0.5)  # in the middle of its work
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
        self.assertEqual(stdout, "")
        if process.returncode != 0:
            self.assertFalse(out.exists())
            if process.returncode == 130:  # else it came before the handler stood
                self.assertIn("run the same command again", stderr)
            self.finish(out)

    def test_a_full_disk_is_named_and_what_is_done_is_kept(self):
        """A limit on the size of files stands in for the disk: it needs no root, and write() fails as on a full one."""
        out = self.root / "full"

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

        result = subprocess.run([binary(), *map(str, self.command(out))], capture_output=True, text=True,
                                preexec_fn=limit, timeout=300)
        self.assertEqual(result.returncode, EXIT_FAILURE, result.stderr)
        self.assertIn("cannot write", result.stderr)
        self.assertIn("run the same command again", result.stderr)
        self.assertFalse(out.exists())
        self.finish(out)

    def test_an_output_that_cannot_be_created_is_refused_at_once(self):
        for out in (self.text / "out", pathlib.Path("/proc/nibble-out")):
            with self.subTest(out=out):
                result = run(*self.command(out))
                self.assertEqual(result.returncode, EXIT_FAILURE, result.stderr)
                self.assertIn(str(out.parent), result.stderr)
                self.assertIn("cannot create", result.stderr)

    def test_another_recipe_does_not_continue_the_old_one(self):
        for share in (0.8, 0.6, 0.7, 0.5, 0.4, 0.3):
            out = self.root / f"recipe-{share}"
            if self.start_and_kill(out, self.seconds * share) or out.exists():
                continue  # it was finished, or killed between the last rename and the exit
            other = self.command(out)
            other[other.index("int4")] = "int8"
            result = run(*other)
            if result.returncode == 0:
                continue  # killed before the journal was there
            self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
            self.assertIn("rm -r", result.stderr)
            return
        self.skipTest("no kill met a journal")


class InterruptedGptq(InterruptedQuantize):
    OPTIONS = ["--method", "gptq", "--calibration-samples", 24, "--calibration-length", 64]


nibble_process.binary()
unittest.main(verbosity=2)
