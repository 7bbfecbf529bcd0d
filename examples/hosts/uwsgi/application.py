import sys

import prefork_cache
import uwsgidecorators

from app import application  # noqa: F401

uwsgidecorators.postfork(lambda: print(prefork_cache.after_fork(), file=sys.stderr))  # the one line
