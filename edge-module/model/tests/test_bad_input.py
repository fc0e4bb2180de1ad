import contextlib
import io
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

from machine_model.__main__ import main
from machine_model.judge import EXIT_UNAVAILABLE
from machine_model.recordings import EXIT_DATA, EXIT_NO_INPUT

from .synthetic_data import femto_folder, motor_folder, skab_folder


class BadInput(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "data"
        self.folder.mkdir()

    def check(self, code, *words):
        """One line that names all of these."""
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            found = main(
                [
                    "evaluate",
                    "--data",
                    str(self.folder),
                    "--out",
                    str(self.folder / "out"),
                    "--edge-module",
                    "/no/program",
                ]
            )
        said = errors.getvalue()
        self.assertEqual(found, code, said)
        self.assertEqual(said.count("\n"), 1, said)
        for word in words:
            self.assertIn(word, said)

    def test_folder_that_does_not_exist(self):
        self.folder = self.folder / "nowhere"
        self.check(EXIT_NO_INPUT, "nowhere", "does not exist")

    def test_empty_folder(self):
        self.check(EXIT_NO_INPUT, str(self.folder), "none of adi_motor, femto, skab")

    def test_missing_table_and_missing_array(self):
        motor = motor_folder(self.folder)
        (motor / "recordings.npy").unlink()
        self.check(EXIT_NO_INPUT, "recordings.npy", "does not exist")
        (motor / "recordings.csv").unlink()
        self.check(EXIT_NO_INPUT, "recordings.csv", "does not exist")

    def test_wrong_shape_and_wrong_type(self):
        motor = motor_folder(self.folder)
        array = np.load(motor / "recordings.npy")
        np.save(motor / "recordings.npy", array[:, :, 0])
        self.check(EXIT_DATA, "recordings.npy", "shape [12, 36864]", "[recordings, samples, 3]")
        np.save(motor / "recordings.npy", array.astype(float))
        self.check(EXIT_DATA, "recordings.npy", "float64", "int16")
        (motor / "recordings.npy").write_bytes(b"no array")
        self.check(EXIT_DATA, "recordings.npy", "no NumPy array")

    def test_a_table_that_names_rows_that_are_not_there(self):
        motor = motor_folder(self.folder)
        np.save(motor / "recordings.npy", np.load(motor / "recordings.npy")[:5])
        self.check(EXIT_DATA, "recordings.csv", "names row 11", "which has 5")

    def test_a_program_that_is_not_there(self):
        motor_folder(self.folder)
        self.check(EXIT_UNAVAILABLE, "/no/program", "cargo build")

    def test_columns_that_are_not_known(self):
        motor = motor_folder(self.folder)
        text = (motor / "recordings.csv").read_text()
        (motor / "recordings.csv").write_text(text.replace("rpm", "speed", 1))
        self.check(EXIT_DATA, "recordings.csv", "no column rpm", "speed")

    def test_a_value_that_is_no_number_and_a_line_cut_short(self):
        motor = motor_folder(self.folder)
        lines = (motor / "recordings.csv").read_text().splitlines()
        (motor / "recordings.csv").write_text(
            "\n".join([lines[0], lines[1].replace("1200,", "fast,", 1), *lines[2:]])
        )
        self.check(EXIT_DATA, "recordings.csv", "line 2", "rpm is 'fast'")
        (motor / "recordings.csv").write_text("\n".join([*lines[:3], "3,short"]))
        self.check(EXIT_DATA, "recordings.csv", "line 4", "fields")
        (motor / "recordings.csv").write_text(lines[0])
        self.check(EXIT_DATA, "recordings.csv", "no rows")

    def test_kind_and_label_that_disagree(self):
        motor = motor_folder(self.folder)
        text = (motor / "recordings.csv").read_text()
        (motor / "recordings.csv").write_text(text.replace("healthy,0", "healthy,1", 1))
        self.check(EXIT_DATA, "recordings.csv", "disagree")

    def test_femto_with_a_bearing_whose_array_is_missing_or_of_another_length(self):
        femto = femto_folder(self.folder)
        np.save(femto / "bearing9_7.npy", np.zeros((40, 2048, 2), dtype="<i2"))
        self.check(EXIT_DATA, "bearing9_7.npy", "shape [40, 2048, 2]", "2560")
        (femto / "bearing9_7.npy").unlink()
        self.check(EXIT_NO_INPUT, "bearing9_7.npy", "does not exist")

    def test_skab_without_files_without_columns_or_damaged(self):
        skab = skab_folder(self.folder)
        (skab / "leak_1.csv.gz").write_bytes(b"no gzip")
        self.check(EXIT_NO_INPUT, "leak_1.csv.gz", "cannot be read")
        (skab / "leak_1.csv.gz").unlink()
        (skab / "leak_1.csv").write_text("datetime;Current\n2020;1\n")
        self.check(EXIT_DATA, "leak_1.csv", "no column", "Accelerometer1RMS")
        for path in skab.iterdir():
            path.unlink()
        self.check(EXIT_NO_INPUT, "skab", "no .csv")

    def test_no_data_at_all(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), unittest.mock.patch.dict(
            "os.environ", clear=False
        ) as environment:
            environment.pop("DATA_DIR", None)
            self.assertEqual(main(["evaluate", "--out", str(self.folder / "out")]), EXIT_DATA)
        self.assertIn("--data", errors.getvalue())
