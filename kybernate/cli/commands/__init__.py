"""The commands. Each module: SUMMARY (one line), `arguments(parser)`, `run(options)` which returns the exit status."""
