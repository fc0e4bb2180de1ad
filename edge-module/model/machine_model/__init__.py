"""The models of vibration: trained, evaluated, exported. README.md says what they are and what they cannot do."""

import os

# Before NumPy is imported: one thread adds in one order, so that a second run gives the same digits.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
