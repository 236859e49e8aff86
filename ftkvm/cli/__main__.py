"""``python3 -m ftkvm.cli``"""

from ftkvm.cli.main import run

run()
