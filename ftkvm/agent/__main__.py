"""``python3 -m ftkvm.agent``"""

import os
import sys

from ftkvm.agent.main import main

status = main()
sys.stderr.flush()
os._exit(status)  # a worker that hangs in a system call must not keep the process
