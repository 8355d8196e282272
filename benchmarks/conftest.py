"""Benchmarks are scripts: pytest looks for no tests and no examples in them."""

collect_ignore_glob = ["*.py", "suite/*.py"]
