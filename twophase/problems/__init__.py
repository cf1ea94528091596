"""What is trained: toys, networks for images, physics-informed problems."""
