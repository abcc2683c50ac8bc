"""How fast pyar is on this machine beside what one would use instead: `python -m benchmarks --help`."""
