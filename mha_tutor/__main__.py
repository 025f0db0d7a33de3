"""`python -m mha_tutor` is the same as `mha-tutor`."""

import sys

from mha_tutor.cli import main

sys.exit(main())
