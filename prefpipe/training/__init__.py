"""TRL's trainers on batches that pay for each prompt once.

dataset   rows -> token ids, by the one renderer; what does not fit is left out by name
layout    pairs -> packs behind one copy of their prompt; the order that keeps a prompt together
dpo       DPOTrainer on that layout
curve     a trainer's log -> loss_curve.csv and loss_curve.png
loading   model and tokenizer
"""
