"""The embedded model and the generated world it was trained on. See README.md."""
