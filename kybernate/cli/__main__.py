"""`python -m kybernate.cli` is `kybernate`."""

import sys

from kybernate.cli.main import main

sys.exit(main())
