"""What a caller gives: paths, URLs, bytes, arrays, PDF and TIFF pages, read and encoded."""
