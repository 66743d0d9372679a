"""CTest `e2e_verify`: `nibble verify` finds a flipped bit in any file of any format and names it; without a certificate it
says what it cannot prove."""

import hashlib
import json
import pathlib
import random
import shutil
import tempfile
import unittest

import nibble_process
from nibble_process import GOLDEN, check_run, run

EXIT_MODEL = 4
FLIPS = 8  # of each file, besides its first and last byte; of files of weights five times as many

FORMATS = {
    "compressed-tensors": ["--scheme", "int4"],
    "gptq": ["--scheme", "int4", "--group-size", 64],
    "awq": ["--scheme", "int4", "--group-size", 64, "--no-symmetric"],
    "bitsandbytes": ["--scheme", "int8", "--group-size", 0],
    "bitsandbytes-nested": ["--scheme", "nf4"],
    "gguf": ["--scheme", "q4_0"],
}


class Verify(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def quantized(self, name):
        return nibble_process.quantized(GOLDEN / "llama3", self.root / name, "--format", name, *FORMATS[name])

    def verify(self, model):
        result = run("verify", model, "--json")
        return result.returncode, json.loads(result.stdout) if result.stdout else {"damage": [result.stderr]}

    def copy(self, source, name):
        copy = self.root / name
        shutil.rmtree(copy, ignore_errors=True)
        return pathlib.Path(shutil.copytree(source, copy))

    def test_every_format_is_proven_whole(self):
        for name in FORMATS:
            with self.subTest(format=name):
                folder = self.quantized(name)
                code, found = self.verify(folder)
                self.assertEqual(code, 0, found)
                self.assertTrue(found["certified"])
                self.assertEqual(found["unproven"], [])
                self.assertEqual(found["proven_tensors"], 29)
                # All files but the certificate, which proves itself.
                self.assertEqual(found["proven_files"], len(list(folder.iterdir())) - 1)

    def test_a_flipped_bit_anywhere_is_found_and_its_file_or_tensor_named(self):
        draw = random.Random(20261127)
        for name in FORMATS:
            copy = self.copy(self.quantized(name), "flipped")
            for file in sorted(copy.iterdir()):
                whole = file.read_bytes()
                flips = FLIPS * (5 if file.suffix in (".safetensors", ".gguf") else 1)
                places = {0, len(whole) - 1} | {draw.randrange(len(whole)) for _ in range(flips)}
                for at in sorted(places):
                    damaged = bytearray(whole)
                    damaged[at] ^= 1 << draw.randrange(8)
                    file.write_bytes(damaged)
                    with self.subTest(format=name, file=file.name, offset=at):
                        code, found = self.verify(copy)
                        self.assertEqual(code, EXIT_MODEL, found)
                        damage = " ".join(found["damage"])
                        self.assertTrue(file.name in damage or "model.layers." in damage, damage)
                file.write_bytes(whole)
            self.assertEqual(self.verify(copy)[0], 0)

    def test_damage_in_a_tensor_names_that_tensor_alone(self):
        copy = self.copy(self.quantized("compressed-tensors"), "tensor")
        file = copy / "model.safetensors"
        data = bytearray(file.read_bytes())
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        name = "model.layers.1.mlp.up_proj.weight"
        data[8 + size + header[name + "_packed"]["data_offsets"][0] + 5] ^= 16
        file.write_bytes(data)
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertEqual(len(found["damage"]), 1)
        self.assertIn(name, found["damage"][0])
        self.assertEqual(found["proven_tensors"], 28)

    def test_files_that_came_or_went_are_found(self):
        whole = self.quantized("gptq")
        copy = self.copy(whole, "lost")
        (copy / "tokenizer_config.json").unlink()
        (copy / "chat_template.jinja").unlink(missing_ok=True)
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertIn("tokenizer_config.json", " ".join(found["damage"]))
        copy = self.copy(whole, "without")
        (copy / "nibble_certificate.json").unlink()
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertIn("promises a certificate", found["damage"][0])
        copy = self.copy(self.quantized("gguf"), "without_gguf")  # whose config has no place for a promise
        (copy / "nibble_certificate.json").unlink()
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertIn("nibble_certificate.json: is missing", found["damage"][0])
        copy = self.copy(whole, "more")
        (copy / "added.json").write_text("{}")
        (copy / "README.md").write_text("mine")
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertEqual(len(found["damage"]), 1)
        self.assertIn("added.json", found["damage"][0])
        self.assertIn("README.md", found["unproven"][0])

    def test_without_a_certificate_it_checks_structure_and_says_what_is_not_proven(self):
        code, found = self.verify(GOLDEN / "llama3")
        self.assertEqual(code, 0, found)
        self.assertFalse(found["certified"])
        self.assertEqual(found["proven_tensors"], 0)
        self.assertIn("29 tensors: no hash vouches for them", found["unproven"][0])
        for cut, what in (("model.safetensors", "model.safetensors"), ("tokenizer.json", "tokenizer.json")):
            copy = self.copy(GOLDEN / "llama3", "cut")
            data = (copy / cut).read_bytes()
            (copy / cut).write_bytes(data[:len(data) // 2])
            code, found = self.verify(copy)
            self.assertEqual(code, EXIT_MODEL)
            self.assertIn(what, found["damage"][0])
        copy = self.copy(GOLDEN / "llama3", "nan")
        data = bytearray((copy / "model.safetensors").read_bytes())
        data[-4:] = b"\xff\xff\xff\xff"
        (copy / "model.safetensors").write_bytes(data)
        code, found = self.verify(copy)
        self.assertEqual(code, EXIT_MODEL)
        self.assertIn("not a number", found["damage"][0])

    def test_a_blob_of_the_hub_cache_is_held_against_its_name(self):
        blobs = self.root / "hub" / "models--org--tiny" / "blobs"
        snapshot = blobs.parent / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for file in (GOLDEN / "llama3").iterdir():
            data = file.read_bytes()
            large = file.suffix == ".safetensors"
            blob = blobs / (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
            blob.write_bytes(data)
            (snapshot / file.name).symlink_to(pathlib.Path("../../blobs") / blob.name)
        code, found = self.verify(snapshot)
        self.assertEqual(code, 0, found)
        self.assertEqual(found["proven_files"], 1)
        self.assertFalse(any("tensors" in line for line in found["unproven"]), found["unproven"])
        weights = (snapshot / "model.safetensors").resolve()
        data = bytearray(weights.read_bytes())
        data[-7] ^= 1
        weights.write_bytes(data)
        code, found = self.verify(snapshot)
        self.assertEqual(code, EXIT_MODEL)
        self.assertIn("hub cache", found["damage"][0])

    def test_people_are_told_the_same(self):
        folder = self.quantized("compressed-tensors")
        self.assertIn("no damage found; hashes prove 29 tensors and 7 files", check_run("verify", folder))
        self.assertEqual(run("verify", self.root / "nothing-here").returncode, EXIT_MODEL)


nibble_process.binary()
unittest.main(verbosity=2)
