"""``python3 -m ftkvm.agent``"""

import os
import sys

from ftkvm.agent.ha.guard import bridge
from ftkvm.config import Paths

# safety: first of all, before what takes seconds to import: a watchdog that the agent before us left armed
guard = bridge(Paths().config, Paths().run)
guard.start()

from ftkvm.agent.main import main  # noqa: E402

status = main(guard)
sys.stderr.flush()
os._exit(status)  # a worker that hangs in a system call must not keep the process
