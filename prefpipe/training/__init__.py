"""TRL's trainers on batches that pay for each prompt once, and what stands around a training."""
