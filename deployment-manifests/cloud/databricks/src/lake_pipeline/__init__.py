"""The cloud aggregator's pipeline as a Spark Structured Streaming job: the same topics, the same Delta tables.

Data flows one way: Kafka -> `decode` -> `judge` (repeats, late, broken) -> the tables of `lake` -> `windows` (recounted from
`telemetry`) -> `anomalies`, then the state of the sensors. `pipeline` puts that in order, `command` starts it.
"""
