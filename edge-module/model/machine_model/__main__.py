"""The commands: train, export, evaluate, golden, pack."""

import argparse
import json
import os
import pathlib
import sys

from .recordings import EXIT_DATA, DataFault, data_folder, load_femto, load_motor

HERE = pathlib.Path(__file__).parents[1]


def main(arguments=None):
    arguments = parser().parse_args(arguments)
    try:
        # What a command returns is its exit code; nothing is 0.
        return arguments.run(arguments) or 0
    except DataFault as fault:
        print(fault, file=sys.stderr)
        return fault.code


def parser():
    top = argparse.ArgumentParser(prog="machine_model", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    data = {"default": os.environ.get("DATA_DIR"), "type": pathlib.Path, "metavar": "FOLDER"}

    add_train(commands)

    export = commands.add_parser(
        "export", help="train on all recordings of the motor and write both bundles"
    )
    export.add_argument("--data", help="folder of the recordings (or DATA_DIR)", **data)
    export.add_argument("--out", type=pathlib.Path, default=HERE / "bundles", metavar="FOLDER")
    export.set_defaults(run=run_export)

    evaluate = commands.add_parser(
        "evaluate", help="judge recordings by the committed bundles and limits; trains nothing"
    )
    evaluate.add_argument(
        "--data", help="folder with any of adi_motor, femto, skab (or DATA_DIR)", **data
    )
    evaluate.add_argument(
        "--out",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="where report.txt, report.json and report.png go",
    )
    evaluate.add_argument(
        "--edge-module",
        type=pathlib.Path,
        metavar="PATH",
        help="the program that judges (or EDGE_MODULE_BIN; without both: ../../target/release/edge-module)",
    )
    evaluate.add_argument(
        "--bundles", type=pathlib.Path, default=HERE / "bundles", metavar="FOLDER"
    )
    evaluate.set_defaults(run=run_evaluate)

    golden = commands.add_parser("golden", help="write ../core/tests/golden/features.json")
    golden.set_defaults(run=run_golden)

    pack = commands.add_parser(
        "pack", help="make one file of a bundle, for a disk or a server, and print its sha256"
    )
    pack.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="the bundle")
    pack.add_argument("file", type=pathlib.Path, metavar="FILE", help="the tar to write")
    pack.set_defaults(run=run_pack)
    return top


def add_train(commands):
    train = commands.add_parser(
        "train",
        help="cross-validate on recordings and show thresholds, writing no bundle; "
        "or with --lake make the next version of a bundle from what people found",
    )
    # Its default is looked at later: with --lake only what is named counts.
    train.add_argument(
        "--data", help="folder of the recordings (or DATA_DIR)", type=pathlib.Path, metavar="FOLDER"
    )
    train.add_argument(
        "--femto",
        action="store_true",
        help="the limit of the bearings instead of the motor's models",
    )
    lake = train.add_argument_group("from what people found")
    lake.add_argument(
        "--lake",
        metavar="PATH",
        help="folder or address of the aggregator's tables; DATA_DIR does not count then, --data does",
    )
    lake.add_argument(
        "--model", type=pathlib.Path, metavar="FOLDER", help="the bundle in force, of one layer"
    )
    lake.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where the report goes, and the candidate if it is not worse",
    )
    lake.add_argument(
        "--edge-module",
        type=pathlib.Path,
        metavar="PATH",
        help="the program that judges the held-out trips; without it the votes of this one",
    )
    train.set_defaults(run=run_train)


def data_of(arguments):
    if arguments.data is None:
        raise DataFault(
            "--data", "is not given", "name the folder of the recordings with it or with DATA_DIR"
        )
    return arguments.data


def run_train(arguments):
    from . import femto, motor

    if arguments.lake is not None:
        return run_train_lake(arguments)
    if arguments.data is None and "DATA_DIR" in os.environ:
        arguments.data = pathlib.Path(os.environ["DATA_DIR"])
    if arguments.femto:
        print(
            json.dumps(
                femto.leave_one_out(load_femto(data_folder(data_of(arguments), "femto"))), indent=1
            )
        )
        return None
    windows = motor.Windows(load_motor(data_folder(data_of(arguments), "adi_motor")))
    rows = range(len(windows.recordings))
    models = motor.fit(windows, rows)
    shape_margin, line_margin = motor.commissioning_margins(windows, rows, models)
    print(
        json.dumps(
            {
                "shape": {
                    "weights": [round(float(weight), 6) for weight in models.shape.weights],
                    "bias": round(models.shape.bias, 6),
                    "threshold-logit": round(models.shape.threshold, 6),
                    "margin-logit": round(shape_margin, 4),
                },
                "line": {
                    "threshold-db": round(models.line_threshold * motor.DECIBEL, 4),
                    "margin-logit": round(line_margin, 4),
                },
                "held-out": motor.cross_validate(windows),
            },
            indent=1,
        )
    )
    return None


def run_train_lake(arguments):
    from . import feedback

    for name in ("model", "out"):
        if getattr(arguments, name) is None:
            raise DataFault(f"--{name}", "is not given", "train --lake needs --model and --out")
    return feedback.run(
        arguments.lake, arguments.model, arguments.out, arguments.data, arguments.edge_module
    )


def run_export(arguments):
    from . import bundle

    recordings = load_motor(data_folder(data_of(arguments), "adi_motor"))
    for written in bundle.export(recordings, arguments.out):
        print(json.dumps(written, indent=1))


def run_evaluate(arguments):
    from . import evaluate

    evaluate.run(data_of(arguments), arguments.out, arguments.bundles, arguments.edge_module)


def run_golden(_arguments):
    from . import golden

    golden.write()


def run_pack(arguments):
    from . import pack

    print(pack.pack(arguments.folder, arguments.file))


if __name__ == "__main__":
    sys.exit(main())
