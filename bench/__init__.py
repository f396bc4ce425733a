"""Benchmarks: ratios measured in one run, against a peer or a limit.

`./dev bench` lists them, `./dev bench NAME --json FILE` runs one (as root). The JSON file is a list of objects:

    quantity   what was measured
    value      our figure: a median, in `unit`
    against    what it is held against. A limit is a number. A figure that was measured beside ours is an object:
               `value` (what the ratio divides by), `name` (whose it is), `medians` (of all that ran beside it, raw CRIU
               and runc too) and `runs` (every single run, ours under "kybernate")
    ratio      value divided by that number
    bar        the ratio that is allowed
    holds      whether ratio <= bar

Beside FILE a second file `<FILE without .json>.machine.json` says what it was measured on.

Who is compared takes turns within one run, so that a machine that gets slower gets slower for all. Everything happens
in a mount namespace of its own with a /run in memory, as every machine with systemd has it: CRIU keeps what it knows
about the kernel there, and only there. Page caches are warm: what was just written is read.
"""
