"""Reads every table of lakes with Spark and delta-spark: read_spark.py JARS LAKE…, see canonical.py.

`make readers` installs what it needs.
"""

import glob
import os
import sys

os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")

from pyspark.sql import SparkSession, functions as F, types as T  # noqa: E402

from canonical import bits, entries, print_lakes  # noqa: E402


def session(jars):
    builder = (
        SparkSession.builder.master("local[2]").appName("readers")
        .config("spark.jars", ",".join(sorted(glob.glob(os.path.join(jars, "*.jar")))))
        .config("spark.driver.extraClassPath", os.path.join(jars, "*")).config("spark.driver.memory", "1g")
        .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC").config("spark.sql.shuffle.partitions", "1")
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.databricks.delta.snapshotPartitions", "1"))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def selected(field):
    """Times as numbers: Python's own would go through the zone of this machine."""
    column = F.col(f"`{field.name}`")
    if isinstance(field.dataType, T.TimestampType):
        return F.unix_micros(column).alias(field.name)
    if isinstance(field.dataType, T.DateType):
        return F.unix_date(column).alias(field.name)
    if isinstance(field.dataType, T.StructType):
        inner = [F.unix_micros(column[child.name]).alias(child.name) for child in field.dataType]
        return F.when(column.isNotNull(), F.struct(*inner)).alias(field.name)
    return column


def text(kind, value):
    if value is None:
        return None
    if isinstance(kind, T.BooleanType):
        return "true" if value else "false"
    if isinstance(kind, (T.IntegerType, T.LongType)):
        return str(value)
    if isinstance(kind, T.DoubleType):
        return bits(value)
    if isinstance(kind, T.StringType):
        return value
    if isinstance(kind, T.BinaryType):
        return bytes(value).hex()
    if isinstance(kind, T.MapType):
        return entries((key, text(kind.valueType, item)) for key, item in value.items() if item is not None)
    if isinstance(kind, T.StructType):
        fields = ((field.name, text(field.dataType, value[field.name])) for field in kind)
        return entries((name, of) for name, of in fields if of is not None)
    raise SystemExit(f"no table of the lake has the type {kind}")


def main():
    spark = session(sys.argv[1])

    def read(folder):
        table = spark.read.format("delta").load(folder)
        rows = table.select(*map(selected, table.schema.fields))
        kinds = rows.schema.fields
        texts = ({kind.name: text(kind.dataType, row[kind.name]) for kind in kinds} for row in rows.collect())
        return table.columns, texts

    print_lakes(sys.argv[2:], read)
    spark.stop()


main()
