"""Serve a reward model or a pairwise model, for the reward function of an RL framework or another machine.

Reads   MODEL                 a folder of train_reward_model.py or train_pairwise_model.py, any one-label
                              classifier, or a language model of the A/B format
Writes  nothing               it answers over HTTP until Ctrl-C

Requests that wait together are one batch, and what their texts begin with is computed once; scores
are those of rank_responses.py. The endpoints are those of vLLM (/classify, /pooling, /score), SGLang
(/classify) and OpenRLHF (/get_reward): prefpipe/serving/reward_app.py; docs/scale.md shows each, and a
run of TRL's GRPO. Of a pairwise model a score is how probably the response is better than the others
to the same prompt in the request.

    uv run --extra serve serve_reward.py data/models/reward --port 8001
    curl localhost:8001/score -H "content-type: application/json" \\
        -d '{"text_1": "2+2?", "text_2": ["4", "5"]}'
"""

from pydantic_settings import CliPositionalArg

from prefpipe.ranges import Positive
from prefpipe.settings import Script


class Settings(Script, env_prefix="SERVE_REWARD_"):
    model: CliPositionalArg[str]
    """A folder or a hub name; which kind of model it is, is seen from its files."""
    host: str = "127.0.0.1"
    """Who may ask: this machine alone, or with 0.0.0.0 every machine that reaches it; there is no key."""
    port: Positive = 8001
    """Where it listens."""
    max_length: Positive | None = None
    """Most tokens of a row, for a model that brings no format of its own; None: its positions."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights. None: decided by memory, as in rank_responses.py."""


def main(s: Settings) -> None:
    try:
        from prefpipe.serving.reward_app import RewardServer, make_app
    except ModuleNotFoundError as error:
        raise SystemExit(f"serve_reward: {error}: run it with uv run --extra serve") from None
    from prefpipe.serving.scorers import open_scorer

    scorer = open_scorer(s.model, max_length=s.max_length, load_in_4bit=s.load_in_4bit)
    app = make_app(scorer, s.model)
    words = f"{s.model}: a {scorer.kind} model at http://{s.host}:{s.port}; Ctrl-C ends it"
    RewardServer(app, s.host, s.port, words).serve_until_ctrl_c()
    waiting = app.state.waiting
    print(f"{app.state.requests:,} requests, {waiting.rows:,} rows in {waiting.batches:,} batches")


if __name__ == "__main__":
    Settings.run(main)
