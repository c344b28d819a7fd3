"""PaddleX's `main.py`: its configuration files and its five modes."""
