"""Many sites on one machine: engines, baselines and benchmarks."""
