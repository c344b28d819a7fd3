"""The demo model: which basic colors cover a noticeable part of a picture."""
