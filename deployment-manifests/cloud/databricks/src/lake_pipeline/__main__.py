"""`python -m lake_pipeline`."""

from lake_pipeline.command import main

main()
