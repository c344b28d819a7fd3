"""What a server bears over time: soak, overload, isolation, fuzzing."""
