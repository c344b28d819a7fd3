"""Fuzzing: changed images for the real server, and changed files for the library's own parsers."""
