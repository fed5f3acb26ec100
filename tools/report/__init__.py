"""The page that `make report` writes, from what the benchmarks have left."""
