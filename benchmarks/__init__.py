"""Every claim of speed or memory, one command each: python -m benchmarks.NAME [--check] [--json F].

Each is measured beside its peer in the same run, alternating, as a machine that is busy with
something else then slows both. `--check` exits 1 when a bar is missed, and `--json FILE` keeps
the figures.
"""
