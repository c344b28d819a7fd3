"""Fuzzing of what strangers send: images to the real server, and the files that the library itself parses."""
