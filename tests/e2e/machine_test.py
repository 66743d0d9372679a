"""CTest `e2e_machine`: what the program says about the machine, and what it says where a device is missing."""

import json
import os
import pathlib
import subprocess
import unittest

import nibble_process
from nibble_process import GOLDEN, run

EXIT_NO_RESOURCES = 5
RUN = ("run", GOLDEN / "llama3", "--prompt", "a", "--max-tokens", 1)


class MissingDevice(unittest.TestCase):
    def test_cuda_without_a_card_says_what_is_missing_and_exits_5(self):
        for command in (RUN, ("serve", "no-such-model")):
            if pathlib.Path("/dev/nvidia0").exists():
                self.skipTest("this machine has a card")
            with self.subTest(command=command[0]):
                result = run(*command, "--device", "cuda")
                self.assertEqual(result.returncode, EXIT_NO_RESOURCES, result.stderr)
                self.assertEqual(result.stdout, "")
                self.assertRegex(result.stderr, "built without CUDA|NVIDIA driver")
                self.assertIn("--device cpu", result.stderr)


class Doctor(unittest.TestCase):
    def report(self, **environment):
        result = subprocess.run([nibble_process.binary(), "doctor", "--json"], capture_output=True, text=True,
                                timeout=60, env={**os.environ, **environment})
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_it_knows_system_cpu_and_memory(self):
        report = self.report()
        self.assertTrue(report["system"])
        self.assertEqual(report["kernel"], os.uname().release)
        self.assertEqual(report["cpu"]["cpuset_cores"], len(os.sched_getaffinity(0)))
        self.assertIn(report["cpu"]["kernels"], report["cpu"]["can_run"])
        self.assertLessEqual(1, report["cpu"]["threads"])
        meminfo = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        self.assertEqual(report["memory"]["total_bytes"], int(meminfo["MemTotal"].split()[0]) * 1024)

    def test_it_says_what_is_missing_for_a_card(self):
        cuda = self.report()["cuda"]
        self.assertEqual({l["name"] for l in cuda["libraries"]},
                         {"libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.13", "libcublasLt.so.13",
                          "libnccl.so.2"})
        if not cuda["cards"]:
            self.assertRegex(cuda["problem"], "NVIDIA driver")
            missing = run("doctor").stdout
            self.assertIn("missing    a card, for --device cuda: ", missing)

    def test_it_reads_a_driver_and_its_cards(self):
        folder = os.environ.get("NIBBLE_FAKE_DRIVER")
        if folder is None:
            self.skipTest("NIBBLE_FAKE_DRIVER is not set")
        cuda = self.report(LD_LIBRARY_PATH=folder)["cuda"]
        self.assertEqual(cuda["driver_cuda_version"], "13.1")
        self.assertIsNone(cuda["problem"])
        card = cuda["cards"][0]
        self.assertEqual((card["name"], card["compute_capability"], card["sms"], card["clock_mhz"]),
                         ("Invented Card", "9.0", 132, 1980))
        self.assertEqual(card["total_bytes"], 80 << 30)
        self.assertEqual(cuda["libraries"][0]["path"], folder + "/libcuda.so.1")


nibble_process.binary()
unittest.main(verbosity=2)
