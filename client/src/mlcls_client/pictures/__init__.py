"""Annotated pictures: captions, fonts, drawing."""
