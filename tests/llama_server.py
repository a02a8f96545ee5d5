"""llama.cpp's own HTTP server as a program, out of PyPI's prebuilt xllamacpp: MODEL.gguf --port N.

Run in an environment of its own: uvx --from xllamacpp==2026.10.11549 python tests/llama_server.py ...
"""

import argparse
import threading

import xllamacpp  # pyright: ignore[reportMissingImports]

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--slots", type=int, default=1, help="texts at once")
parser.add_argument("--context", type=int, default=2048, help="tokens of a slot")
options = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path, params.port = options.model, options.port
params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
