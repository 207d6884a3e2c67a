"""`python -m jaxformer.cli` is `jaxformer`."""

import sys

from jaxformer.cli import main

sys.exit(main())
