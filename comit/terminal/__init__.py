"""What a person or a monitor reads while comit runs."""
