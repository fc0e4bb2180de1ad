"""Runs the Spark job of deployment-manifests/cloud/databricks on this machine, as Databricks would on a cluster.

    lake_pipeline_job.py JARS LOCAL_DIR ARGUMENTS...

JARS is target/setup/spark-jars, LOCAL_DIR a folder for what Spark puts aside, ARGUMENTS those of `lake-pipeline`. LAKE_PIPELINE_FAULT
names a table: the job is killed as by a power cut once a batch's rows are in it, before anything else is.
"""

import glob
import os
import signal
import sys

os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../deployment-manifests/cloud/databricks/src")
sys.path.insert(0, SOURCES)
sys.dont_write_bytecode = True
# The Python workers of Spark need the package too.
os.environ["PYTHONPATH"] = SOURCES
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

from pyspark.sql import SparkSession  # noqa: E402

from lake_pipeline.command import main  # noqa: E402
from lake_pipeline.lake import STATE, Lake  # noqa: E402
from lake_pipeline.pipeline import Pipeline  # noqa: E402


# A real-time query keeps a core for each Kafka partition.
CORES = 16 if sys.argv[3] == "matches" else 2


def session(jars, local):
    builder = (
        SparkSession.builder.master(f"local[{CORES}]").appName("lake-pipeline")
        .config("spark.jars", ",".join(sorted(glob.glob(os.path.join(jars, "*.jar")))))
        .config("spark.driver.extraClassPath", os.path.join(jars, "*")).config("spark.driver.memory", "2g")
        .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        .config("spark.local.dir", os.path.join(local, "spark")).config("spark.sql.warehouse.dir", os.path.join(local, "warehouse"))
        .config("spark.sql.shuffle.partitions", "1").config("spark.databricks.delta.snapshotPartitions", "1")
        # Small batches: compiling them, in Java and in machine code, takes longer than they do.
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .config("spark.sql.codegen.wholeStage", "false").config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        .config("spark.sql.adaptive.enabled", "false")
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog"))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")


def die(spark):
    """No more of Java and of Python: nothing is flushed, closed or told."""
    os.kill(spark._jvm.java.lang.ProcessHandle.current().pid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(fault):
    append, write_state = Lake.append, Pipeline.write_state

    def append_and_die(self, rows, table, app_id, batch_id):
        append(self, rows, table, app_id, batch_id)
        if table == fault:
            die(self.spark)

    def write_state_and_die(self, *arguments):
        write_state(self, *arguments)
        if fault == STATE:
            die(self.spark)

    Lake.append, Pipeline.write_state = append_and_die, write_state_and_die


if sys.argv[3] != "check":
    session(sys.argv[1], sys.argv[2])
if os.environ.get("LAKE_PIPELINE_FAULT"):
    arm(os.environ["LAKE_PIPELINE_FAULT"])
main(sys.argv[3:])
