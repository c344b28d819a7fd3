"""From the bytes of an image to its pixels: headers, limits, decoding, resizing."""
