"""What the stages share. Imports neither config nor a stage; takes plain values."""

import logging

# Before anything imports it: it warns of a CPU kernel that it can do without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
