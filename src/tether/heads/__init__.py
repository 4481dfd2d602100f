"""What is put on a backbone."""
