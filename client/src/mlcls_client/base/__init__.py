"""What knows nothing of images and servers: files, texts, threads."""
