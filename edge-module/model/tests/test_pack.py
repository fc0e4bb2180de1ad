import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import unittest
from pathlib import Path

from machine_model.__main__ import main
from machine_model.pack import FILE_BYTES_MAX
from machine_model.recordings import EXIT_DATA, EXIT_NO_INPUT

BUNDLES = Path(__file__).parents[1] / "bundles"
BUNDLE = BUNDLES / "motor-line-v1"


class Pack(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "bundle"
        self.file = Path(temporary.name) / "bundle.tar"
        self.folder.mkdir()
        for name in ("bundle.json", "model.tflite"):
            shutil.copy(BUNDLE / name, self.folder)

    def pack(self):
        """Exit code, what was printed, what was complained of."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main(["pack", str(self.folder), str(self.file)])
        return code, output.getvalue(), errors.getvalue()

    def check(self, code, *words):
        """One line that names all of these, and no file."""
        found, output, errors = self.pack()
        self.assertEqual((found, output), (code, ""), errors)
        self.assertEqual(errors.count("\n"), 1, errors)
        for word in words:
            self.assertIn(word, errors)
        self.assertFalse(self.file.exists())

    def test_the_printed_hash_is_that_of_the_file(self):
        code, output, errors = self.pack()
        self.assertEqual((code, errors), (0, ""))
        self.assertEqual(output, hashlib.sha256(self.file.read_bytes()).hexdigest() + "\n")
        self.assertEqual(sorted(os.listdir(self.file.parent)), ["bundle", "bundle.tar"])

    def test_two_plain_files_and_nothing_else(self):
        (self.folder / "notes.txt").write_text("not packed")
        self.pack()
        with tarfile.open(self.file, "r:") as tar:
            self.assertEqual(tar.getnames(), ["bundle.json", "model.tflite"])
            for entry in tar:
                self.assertTrue(entry.isreg())
                self.assertEqual((entry.mode, entry.mtime), (0o644, 0))
                self.assertEqual((entry.uid, entry.gid, entry.uname, entry.gname), (0, 0, "", ""))
                content = (BUNDLE / entry.name).read_bytes()
                self.assertEqual(tar.extractfile(entry).read(), content)

    def test_times_and_modes_do_not_change_the_hash(self):
        first = self.pack()
        for path in self.folder.iterdir():
            os.utime(path, (1, 1))
            path.chmod(0o600)
        self.assertEqual(self.pack(), first)

    def test_the_committed_bundles_pack(self):
        for self.folder in BUNDLES.iterdir():
            code, output, errors = self.pack()
            self.assertEqual((code, len(output)), (0, 65), errors)

    def test_files_that_are_missing_or_too_long(self):
        (self.folder / "model.tflite").write_bytes(bytes(FILE_BYTES_MAX + 1))
        self.check(EXIT_DATA, "model.tflite", f"{FILE_BYTES_MAX + 1} bytes")
        (self.folder / "model.tflite").unlink()
        self.check(EXIT_NO_INPUT, "model.tflite", "does not exist")
        shutil.rmtree(self.folder)
        self.check(EXIT_NO_INPUT, "bundle.json", "does not exist")

    def test_a_model_of_another_bundle(self):
        (self.folder / "model.tflite").write_bytes(b"another")
        self.check(EXIT_DATA, "bundle.json", "of two bundles")
        for text in ("no JSON", "[]", "{}"):
            (self.folder / "bundle.json").write_text(text)
            self.check(EXIT_DATA, "bundle.json", "model-sha256")

    def test_a_place_that_cannot_be_written(self):
        self.file = self.file.parent / "nowhere" / "bundle.tar"
        self.check(EXIT_DATA, "nowhere", "cannot be written")
