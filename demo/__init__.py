"""The demo model: which basic colours cover a noticeable part of a picture."""
