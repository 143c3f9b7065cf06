"""python -m examples.whatsapp run|demo"""

from __future__ import annotations

import argparse
import signal
import sys

# Ctrl-C while modules load: end without a traceback; Program sets its own
signal.signal(signal.SIGINT, signal.SIG_DFL)

from examples.whatsapp.program import main  # noqa: E402

parser = argparse.ArgumentParser(
    prog="python -m examples.whatsapp", description="WhatsApp webhooks through Packhorse."
)
parser.add_argument(
    "mode",
    choices=["run", "demo"],
    help="run: until Ctrl-C. demo: one round, ends by itself with a summary that adds up.",
)
sys.exit(main(parser.parse_args().mode))
