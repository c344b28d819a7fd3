"""What a served model is compared with, one module for each peer; all answer and are measured in the same way."""
