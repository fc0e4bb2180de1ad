"""A bundle as one file, for a disk or a server: a tar of its two files, which the edge module takes as it is.

The same folder gives the same bytes on every machine: entries by name, no times, no owners. So the sha256 that settings name
can be made again from the folder.
"""

import hashlib
import io
import json
import os
import tarfile

from .recordings import EXIT_NO_INPUT, DataFault, missing

METADATA_FILE = "bundle.json"
MODEL_FILE = "model.tflite"
# As in ../../src/scoring/mod.rs.
FILE_BYTES_MAX = 1 << 20


def pack(folder, file):
    """Writes the bundle of a folder into a file and returns the sha256 of that file, in hexadecimal."""
    contents = {name: read(folder / name) for name in sorted((METADATA_FILE, MODEL_FILE))}
    check_model(folder, contents)
    packed = archive(contents)
    write(file, packed)
    return hashlib.sha256(packed).hexdigest()


def archive(contents):
    """The bytes of a tar of these files, bytes by name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(contents.items()):
            # Everything but these is zero or empty as it is made.
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def read(path):
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing(path, "name the folder of a bundle, as export writes it") from None
    except OSError as error:
        raise DataFault(
            path, f"cannot be read: {error.strerror}", "check the folder", EXIT_NO_INPUT
        ) from None
    if len(content) > FILE_BYTES_MAX:
        raise DataFault(
            path, f"has {len(content)} bytes", f"a bundle's file has at most {FILE_BYTES_MAX}"
        )
    return content


def check_model(folder, contents):
    """Files of two bundles would be found out on the machine: better here."""
    path = folder / METADATA_FILE
    try:
        named = json.loads(contents[METADATA_FILE])["model-sha256"]
    except (ValueError, TypeError, KeyError):
        raise DataFault(path, "has no model-sha256", "export the bundle again") from None
    found = hashlib.sha256(contents[MODEL_FILE]).hexdigest()
    if found != named:
        raise DataFault(
            path,
            f"names a model with sha256 {named}, {MODEL_FILE} has {found}",
            "the files are of two bundles, or damaged: export the bundle again",
        )


def write(file, packed):
    """Under another name first: a server may be reading the old one."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.write_bytes(packed)
        os.replace(new, file)
    except OSError as error:
        raise DataFault(file, f"cannot be written: {error.strerror}", "check its folder") from None
