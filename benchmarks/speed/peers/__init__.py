"""What a served model is compared with, one module per peer; all are asked and measured in the same way."""
