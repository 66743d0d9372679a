"""CTest `e2e_machine`: what the program says about the machine, and what it says where a device is missing."""

import json
import os
import pathlib
import subprocess
import tempfile
import time
import unittest

import nibble_process
from nibble_process import GOLDEN, run

EXIT_USAGE, EXIT_NO_RESOURCES = 2, 5
RUN = ("run", GOLDEN / "llama3", "--prompt", "a", "--max-tokens", 1)


def quantize(folder, *options, **environment):
    """Calibrated, to folder/out."""
    text = pathlib.Path(folder) / "prose.txt"
    text.write_text("The house on the hill and the road to the house. " * 100)
    command = ["quantize", GOLDEN / "llama3", "--out", text.parent / "out", "--calibration", text,
               "--calibration-length", 32, "--calibration-samples", 4, "--certificate-text", text, "--context", 64, *options]
    return subprocess.run([nibble_process.binary(), *map(str, command)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


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

    def test_quantize_without_a_card_says_what_is_missing_or_stays_on_the_cpu(self):
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("this machine has a card")
        with tempfile.TemporaryDirectory() as folder:
            result = quantize(folder, "--device", "cuda")
            self.assertEqual(result.returncode, EXIT_NO_RESOURCES, result.stderr)
            self.assertEqual(result.stdout, "")
            self.assertRegex(result.stderr, "nibble quantize: .*(built without CUDA|NVIDIA driver)")
            self.assertIn("--device cpu", result.stderr)
            self.assertEqual(os.listdir(folder), ["prose.txt"])
            self.stays_on_the_cpu(folder, quantize(folder, "--device", "auto"), "built without CUDA|NVIDIA driver")

    def test_quantize_stays_on_the_cpu_where_a_card_lacks_its_libraries(self):
        driver = os.environ.get("NIBBLE_FAKE_DRIVER")
        cuda = json.loads(nibble_process.check_run("doctor", "--json"))["cuda"]
        if driver is None or not cuda["built_in"] or cuda["problem"]:
            self.skipTest(cuda["problem"] or "NIBBLE_FAKE_DRIVER is not set, or this nibble has no CUDA")
        for library in ("libcublas.so.13", "libcusolver.so.12"):
            with self.subTest(library=library), tempfile.TemporaryDirectory() as folder:
                libraries = pathlib.Path(folder) / "libraries"
                libraries.mkdir()
                (libraries / library).symlink_to(pathlib.Path(driver) / "libcuda.so.1")  # any: it has none of the functions
                says = f"{library} of CUDA 13, which lacks functions: .*--device cpu"
                result = quantize(folder, "--device", "cuda", LD_LIBRARY_PATH=str(libraries))
                self.assertEqual(result.returncode, EXIT_NO_RESOURCES, result.stderr)
                self.assertRegex(result.stderr, says)
                self.stays_on_the_cpu(
                    folder, quantize(folder, "--device", "auto", LD_LIBRARY_PATH=str(libraries)), says)

    def stays_on_the_cpu(self, folder, result, says):
        self.assertEqual(result.returncode, 0, result.stderr)
        reasons = [line for line in result.stderr.splitlines() if line.startswith("device cpu: ")]
        self.assertEqual(len(reasons), 1, result.stderr)
        self.assertRegex(reasons[0], says)
        self.assertTrue((pathlib.Path(folder) / "out" / "nibble_certificate.json").exists())


class MemoryPlan(unittest.TestCase):
    def test_a_cache_beyond_the_machine_is_refused_at_once_with_numbers(self):
        begin = time.monotonic()
        result = run(*RUN, "--kv-cache-memory-bytes", "500T")
        self.assertEqual(result.returncode, EXIT_NO_RESOURCES, result.stderr)
        self.assertLess(time.monotonic() - begin, 5)  # a second, on a machine that is not busy
        self.assertIn("asks for a KV cache of 550 TB", result.stderr)
        self.assertRegex(result.stderr, r"[0-9.]+ .B of the machine's memory are free; "
                                        r"at most --kv-cache-memory-bytes \d+ fits")

    def test_the_plan_is_printed_before_loading(self):
        result = run(*RUN, "--kv-cache-memory-bytes", "2MiB")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"memory plan: .* of .* free \(weights .*workspace .*logits .*kv_cache 2\.")
        self.assertLess(result.stderr.index("memory plan"), result.stderr.index("ready in"))

    def test_a_share_of_a_card_changes_nothing_on_a_cpu_and_says_so(self):
        result = run(*RUN, "--gpu-memory-utilization", "0.5")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("--gpu-memory-utilization is for GPUs", result.stderr)

    def test_on_a_cpu_there_is_nothing_to_offload(self):
        result = run(*RUN, "--cpu-offload-gb", "1")
        self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
        self.assertIn("--cpu-offload-gb keeps weights out of a card's memory; with --device cpu all", result.stderr)
        self.assertIn("--device cuda", result.stderr)

    def test_wrong_values_are_refused(self):
        for flag, value in (("--kv-cache-memory-bytes", "1.5G"), ("--kv-cache-memory-bytes", "lots"),
                            ("--gpu-memory-utilization", "1.5"), ("--gpu-memory-utilization", "0"),
                            ("--gpu-memory-utilization", "nan")):
            with self.subTest(flag=flag, value=value):
                result = run(*RUN, flag, value)
                self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
                self.assertIn(f"{flag} {value}: expected", result.stderr)


    def test_blocks_whose_bytes_wrap_around_are_refused(self):
        for blocks in (2**62, 2**62 + 10, 2**63 - 1):
            with self.subTest(blocks=blocks):
                result = run(*RUN, "--num-gpu-blocks-override", blocks)
                self.assertEqual(result.returncode, EXIT_USAGE, result.stderr)
                self.assertIn(f"--num-gpu-blocks-override {blocks}: a KV cache has at most", result.stderr)


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
                         {"libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.13", "libcublas.so.13",
                          "libcublasLt.so.13", "libcusolver.so.12", "libnccl.so.2"})
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


    def test_a_broken_driver_is_not_called_missing(self):
        built_in = self.report()["cuda"]["built_in"]
        for content in (b"", b"no library"):
            with self.subTest(content=content), tempfile.TemporaryDirectory() as folder:
                library = pathlib.Path(folder) / "libcuda.so.1"
                library.write_bytes(content)
                problem = self.report(LD_LIBRARY_PATH=folder)["cuda"]["problem"]
                self.assertIn(f"libcuda.so.1 is here and cannot be used ({library}: ", problem)
                if built_in:
                    result = subprocess.run([nibble_process.binary(), *map(str, RUN), "--device", "cuda"], timeout=60,
                                            capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": folder})
                    self.assertEqual(result.returncode, EXIT_NO_RESOURCES)
                    self.assertIn("is here and cannot be used", result.stderr)


class Bench(unittest.TestCase):
    def test_each_figure_stands_beside_its_limit(self):
        result = run("bench", GOLDEN / "llama3", "--input-len", 20, "--output-len", 8, "--iterations", 1, "--batch", 1,
                     "--batch", 2, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(sum(report["plan_bytes"].values()), report["planned_bytes"])
        for row in report["batches"]:
            floor = row["bytes_per_step"] / (report["limits"]["read_gb_per_s"] * 1e9)
            self.assertAlmostEqual(row["floor_seconds_per_step"] / floor, 1.0)
            self.assertAlmostEqual(row["decode_share_of_floor"] / (row["decode_tokens_per_s"] / row["floor_tokens_per_s"]),
                                   1.0)

    def test_single_kernels(self):
        result = run("bench", "kernels", "--filter", "activations.", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertGreater(report["limits"]["read_gb_per_s"], 0)
        self.assertGreater(len(report["kernels"]), 0)

    def test_kernels_of_a_card_need_one(self):
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("this machine has a card")
        self.assertEqual(run("bench", "kernels", "--cuda").returncode, EXIT_NO_RESOURCES)
        self.assertEqual(run("bench", GOLDEN / "llama3", "--cuda").returncode, EXIT_USAGE)


nibble_process.binary()
unittest.main(verbosity=2)
