"""Scripts that make and measure what the pack ships: training, evidence, the 2-D toy, benchmarks. The pack never
imports them.
"""
