"""The benchmarks by their names, as commands and results have them."""

from revisit.evaluation.benchmarks.amber import Amber
from revisit.evaluation.benchmarks.benchmark import Benchmark
from revisit.evaluation.benchmarks.chair import Chair
from revisit.evaluation.benchmarks.hallusionbench import HallusionBench
from revisit.evaluation.benchmarks.mme import Mme
from revisit.evaluation.benchmarks.pope import Pope

BENCHMARKS: dict[str, type[Benchmark]] = {
    each.name: each for each in (Chair, Pope, Amber, Mme, HallusionBench)
}
