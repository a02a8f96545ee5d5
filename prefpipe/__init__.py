"""What the stages share. Imports neither config nor a stage; takes plain values."""
