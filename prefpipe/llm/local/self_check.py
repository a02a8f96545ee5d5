"""Whether the local engine computes what a model's own attention computes; asked before it is used."""

import numpy as np
import torch
from transformers import PreTrainedModel

from prefpipe.llm.local.runner import Runner
from prefpipe.models.memory import is_out_of_memory


@torch.inference_mode()
def check_attention(model: PreTrainedModel) -> None:
    """Eight tokens, read and continued, must get the logits of the model's own attention.

    A model may have what this engine's has not (attention sinks, softcaps, state-space layers), or
    not call it at all; then it would write wrong texts without a word. Raises SystemExit.
    """
    config = model.config.get_text_config()
    name, rope = config.model_type, str(getattr(config, "rope_parameters", None))
    if "'dynamic'" in rope or "'longrope'" in rope:
        raise SystemExit(
            f"{name}: its position encoding changes with the longest text of a batch, so that a "
            "text would depend on its batch mates; use engine server for this model"
        )
    model.eval()
    ids = np.arange(8) % config.vocab_size
    given = torch.from_numpy(ids)[None].to(model.device)
    want = model(given, use_cache=False).logits[0, -1].float()
    try:
        runner = Runner(model)
        runner.store.reserve(slots=1, prompt_tokens=6, rows=1, new_tokens=2)
        runner.prefill([ids[:6].tolist()], 0)
        slot, prompt_tokens = np.array([0]), np.array([6])
        for age in (0, 1):
            logits = runner.decode(ids[[6 + age]], slot, np.array([age]), prompt_tokens)[0]
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise SystemExit(
            f"{name}: the local engine cannot run this model's attention ({error}); use engine "
            "server for it"
        ) from error
    off = (logits - want).norm() / want.norm()
    if not off < (1e-3 if model.dtype == torch.float32 else 0.05):
        raise SystemExit(
            f"{name}: the local engine's attention is not this model's (its logits are off by "
            f"{off:.1%}); use engine server for it"
        )
