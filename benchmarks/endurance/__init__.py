"""How a server holds up: soak, overload, isolation, fuzzing."""
