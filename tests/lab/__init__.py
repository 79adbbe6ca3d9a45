"""What the demo, the tests and the benchmarks share: the testbed, workloads on it, and clients.

Everything here is a real part on the real testbed (scripts/testbed); nothing is mocked.
"""
