"""The local engine against transformers' continuous batching, on the first shape of `sampling`.

    uv run python -m benchmarks.generate_batch

generate_batch gets each prompt n times, as its documentation has it for several samples, and room
for as many at once as it is fastest with (TEXTS_AT_ONCE); else as in benchmarks/sampling.py. Writes benchmarks/results/generate_batch.json.
"""

import torch
from transformers import logging

from benchmarks import machine, make_parser, write_results
from benchmarks.sampling import SHAPES, TINY, measure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    logging.set_verbosity_error()
    shape = TINY if args.tiny else SHAPES[0]
    write_results(
        "generate_batch",
        {
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "shapes": [measure(shape, args.rounds, ("generate_batch",))],
        },
        args.results,
    )


if __name__ == "__main__":
    main()
