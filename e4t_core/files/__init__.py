"""What is kept on disk: how it is written whole or not at all, read, and checked."""
